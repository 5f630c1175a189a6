"""The local functions of a model: whose they are, who else calls them, and in which types."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from aff_deploy.errors import ModelError
from aff_deploy.ops import DOMAIN
from aff_deploy.passes import optimize
from tests.passes.attention import LERP_BLEND, Attention
from tests.passes.graphs import Array, assert_exact, assert_parity, feeds_of


def two_types(opset: int) -> onnx.ModelProto:
    """A float32 site, and a float16 one of the same operator type behind it."""
    wide, narrow = Attention(opset=opset).build(), Attention(opset=opset, dtype="float16", blend=LERP_BLEND).build(seed=1)
    for node in narrow.graph.node:
        node.input[:] = [f"n_{name}" for name in node.input]
        node.output[:] = [f"n_{name}" for name in node.output]
    for tensor in narrow.graph.initializer:
        tensor.name = f"n_{tensor.name}"
    casts = [helper.make_node("Cast", [name], [f"n_{name}"], to=onnx.TensorProto.FLOAT16) for name in ("x", "y")]
    wide.graph.node.extend([*casts, *narrow.graph.node])
    wide.graph.initializer.extend(narrow.graph.initializer)
    narrow.graph.output[0].name = "n_out"
    wide.graph.output.extend(narrow.graph.output)
    return wide


@pytest.mark.parametrize("opset", [13, 14, 18])
def test_one_function_serves_calls_of_two_types(opset: int) -> None:
    model = two_types(opset)
    fused = optimize(model)
    assert len(fused.fusions) == 2
    assert_parity(model, fused.model)


def test_two_types_where_no_function_can_serve_both_are_refused() -> None:
    model = two_types(13)
    model.opset_import[0].version = 12
    with pytest.raises(ModelError, match="mixes float types"):
        optimize(model)


def test_the_type_of_a_constant_x_is_known() -> None:
    twice = "two_f = Constant<value_float: float = 2.0>()\ntwo = Cast<to: int = 10>(two_f)\nout = Mul(o, two)"
    blend = f"{LERP_BLEND.replace('out =', 'o =')}\n{twice}"
    model = Attention(opset=13, dtype="float16", blend=blend).build()
    model.graph.input.remove(next(value for value in model.graph.input if value.name == "x"))
    values = np.random.default_rng(3).normal(size=(2, 8, 5, 6)).astype(np.float16)
    model.graph.initializer.append(numpy_helper.from_array(values, "x"))
    assert_exact(model, optimize(model).model, feeds_of(model, size=2))


def in_if(fused: onnx.ModelProto) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(fused)
    shape = ["N", 8, 5, 6]
    then = helper.make_graph(fused.graph.node, "then", [], [helper.make_tensor_value_info("out", 1, shape)])
    other = helper.make_graph(
        [helper.make_node("Add", ["x", "y"], ["plain"])], "else", [], [helper.make_tensor_value_info("plain", 1, shape)]
    )
    del model.graph.node[:], model.graph.output[:], model.graph.value_info[:]
    model.graph.node.append(helper.make_node("If", ["c"], ["result"], then_branch=then, else_branch=other))
    model.graph.input.append(helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    model.graph.output.append(helper.make_tensor_value_info("result", 1, shape))
    return model


def in_function(fused: onnx.ModelProto) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(fused)
    (call,) = fused.graph.node
    names = [f"i{i}" for i in range(len(call.input))]
    inner = onnx.NodeProto()
    inner.CopyFrom(call)
    inner.input[:], inner.output[:] = names, ["r"]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model.functions.append(helper.make_function("theirs", "Wrap", names, ["r"], [inner], imports))
    model.opset_import.append(helper.make_opsetid("theirs", 1))
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Wrap", list(call.input), list(call.output), domain="theirs"))
    return model


@pytest.mark.parametrize("hide", [in_if, in_function])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another call"])
def test_a_call_inside_another_graph_keeps_its_function(hide: object, beside: bool) -> None:
    fused = optimize(Attention().build()).model
    model = hide(copy.deepcopy(fused))  # type: ignore[operator]
    if beside:
        (call,) = copy.deepcopy(fused).graph.node
        call.output[0], call.name = "beside", "another"
        model.graph.node.append(call)
        model.graph.output.append(helper.make_tensor_value_info("beside", 1, ["N", 8, 5, 6]))
    again = optimize(model).model
    feeds = feeds_of(Attention().build())
    for answer in (True, False):
        given: dict[str, Array] = {**feeds, "c": np.array(answer)} if hide is in_if else feeds
        assert_exact(model, again, given)


THEIRS = {
    "another name": "AttentionalFusionX (q) => (r) { r = Relu(q) }",
    "a foreign name": "Theirs (q) => (r) { r = Relu(q) }",
    "our name, another body": "AttentionalFusion (q) => (r) { r = Relu(q) }",
}


@pytest.mark.parametrize("text", THEIRS.values(), ids=THEIRS.keys())
def test_functions_of_others_in_our_domain_are_not_replaced(text: str) -> None:
    name = text.split()[0]
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18, "{DOMAIN}" : 1]>\n'
        f"m (float[2] x) => (float[2] out) {{ out = {DOMAIN}.{name}(x) }}"
    )
    model.functions.append(parser.parse_function(f'<domain: "{DOMAIN}", opset_import: ["" : 18]> {text}'))
    with pytest.raises(ModelError, match=f"the function '{name}' in domain 'aff_deploy' is not one that aff-deploy wrote"):
        optimize(model)
