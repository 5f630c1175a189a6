"""The body in place of the calls: exact, no function left, names that are found again, and the same a second time."""

from __future__ import annotations

import copy
from random import Random

import numpy as np
import onnx
import pytest

from aff_deploy.onnx_file import check_onnx
from aff_deploy.ops import is_fusion
from aff_deploy.passes import optimize
from tests.passes.attention import AFF, LOCAL, Attention, iaff
from tests.passes.graphs import Array, assert_exact, assert_parity, feeds_of, op_types
from tests.passes.random_graphs import random_graph
from tests.passes.test_functions import in_function, in_if
from tests.passes.test_fuse_attention import MEMBERS, feeds_for


def assert_plain(model: onnx.ModelProto) -> None:
    """No call, no function and no import of our domain, and nothing left to fold."""
    check_onnx(model)
    assert not [function for function in model.functions if function.domain == "aff_deploy"]
    assert all(entry.domain != "aff_deploy" for entry in model.opset_import)
    assert not [node for node in model.graph.node if is_fusion(node.domain, node.op_type)]
    assert not {"Constant", "CastLike"} & set(op_types(model))


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_in_place_is_exact_and_the_same_a_second_time(name: str) -> None:
    convex = len(name) % 2 == 0
    before = MEMBERS[name][0].build()
    once = optimize(before, inline=True, convex=convex)
    assert_plain(once.model)
    assert [fusion.kind for fusion in once.fusions] == [MEMBERS[name][1]]
    assert_exact(before, once.model, feeds_for(before))
    assert optimize(once.model, inline=True, convex=convex).model == once.model


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_in_place(seed: int) -> None:
    graph = random_graph(Random(seed))
    once = optimize(graph.model, inline=True)
    assert_plain(once.model)
    assert_exact(graph.model, once.model, graph.feeds())
    assert optimize(once.model, inline=True).model == once.model


@pytest.mark.parametrize("opset", [11, 12, 13, 15, 18])
def test_every_opset(opset: int) -> None:
    before = AFF.but(opset=opset, blend=AFF.blend.replace("Constant<value_float: float = 1.0>()", "Div(x, x)")).build()
    before = before if opset > 11 else AFF.but(opset=opset, blend="d = Sub(x, y)\nwd = Mul(w, d)\nout = Add(y, wd)").build()
    result = optimize(before, inline=True)
    assert_plain(result.model)
    assert_parity(before, result.model)


def test_every_activation() -> None:
    texts = {
        "LeakyRelu": "l_h = LeakyRelu<alpha: float = 0.2>(l_t)",
        "Elu": "l_h = Elu<alpha: float = 0.7>(l_t)",
        "Mish": "l_h = Mish(l_t)",
        "HardSwish": "l_h = HardSwish(l_t)",
        "Gelu": "l_h = Gelu(l_t)",
        "Relu6": "zero = Constant<value_float: float = 0.0>()\nsix = Constant<value_float: float = 6.0>()\n"
        "l_h = Clip(l_t, zero, six)",
    }
    for name, text in texts.items():
        local = LOCAL.replace("l_h = Relu(l_t)", text)
        before = AFF.but(local=local, branch="", pool="", logits="z = Identity(l)", opset=20).build()
        once = optimize(before, inline=True)
        assert [fusion.activation for fusion in once.fusions] == [name.lower()]
        assert_parity(before, once.model)
        again = optimize(once.model, inline=True)
        assert again.fusions == once.fusions
        assert again.model == once.model


def test_nodes_are_found_by_their_site() -> None:
    before = AFF.build()
    for tensor in before.graph.initializer:
        for node in before.graph.node:
            node.input[:] = [f"layer1.0.fuse.{name}.weight" if name == tensor.name else name for name in node.input]
        tensor.name = f"layer1.0.fuse.{tensor.name}.weight"
    fused, inlined = optimize(before), optimize(before, inline=True)
    (site,) = fused.fusions
    assert inlined.fusions == fused.fusions
    assert len(inlined.model.graph.node) > 8
    assert all(node.name.startswith(f"{site.name}/") for node in inlined.model.graph.node)
    assert len({node.name for node in inlined.model.graph.node}) == len(inlined.model.graph.node)
    assert f"{site.name}/w" in {output for node in inlined.model.graph.node for output in node.output}


def test_a_taken_name_is_not_taken_again() -> None:
    before = AFF.build()
    name = optimize(before).fusions[0].name
    extra = onnx.helper.make_node("Relu", ["x"], [f"{name}/w"], name=f"{name}/total")
    before.graph.node.append(extra)
    before.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}/w", 1, ["N", 8, 5, 6]))
    result = optimize(before, inline=True)
    assert_plain(result.model)
    assert_parity(before, result.model)


def test_half_precision_pools_in_float32_there_too() -> None:
    one = "one_f = Constant<value_float: float = 1.0>()\none = Cast<to: int = 10>(one_f)"
    before = AFF.but(dtype="float16", blend=AFF.blend.replace("one = Constant<value_float: float = 1.0>()", one)).build()
    once = optimize(before, inline=True)
    assert_plain(once.model)
    makers = {output: node for node in once.model.graph.node for output in node.output}
    (pool,) = (node for node in once.model.graph.node if node.op_type == "GlobalAveragePool")
    assert makers[pool.input[0]].op_type == "Cast"
    assert_exact(before, once.model, feeds_for(before, 0.2))
    assert optimize(once.model, inline=True).model == once.model


@pytest.mark.parametrize("hide", [in_if, in_function])
def test_calls_inside_other_graphs_go_too(hide: object) -> None:
    model = hide(copy.deepcopy(optimize(AFF.build()).model))  # type: ignore[operator]
    inlined = optimize(model, inline=True).model
    check_onnx(inlined)
    assert b"AttentionalFusion" not in inlined.SerializeToString()
    for answer in (True, False):
        given: dict[str, Array] = {**feeds_of(AFF.build()), "c": np.array(answer)} if hide is in_if else feeds_of(AFF.build())
        assert_exact(model, inlined, given)


def test_what_was_fused_before_is_written_in_place_without_fusing() -> None:
    before = Attention().build()
    fused = optimize(before).model
    result = optimize(fused, fuse=False, inline=True)
    assert_plain(result.model)
    assert_parity(before, result.model)


def test_a_second_run_without_it_fuses_again() -> None:
    """What computes the same is the same to the recogniser, whoever wrote it."""
    before = iaff(share_global=True).build()
    fused, inlined = optimize(before), optimize(before, inline=True)
    again = optimize(inlined.model)
    assert again.fusions == fused.fusions
    assert_parity(before, again.model)


def test_the_account_names_the_step() -> None:
    result = optimize(AFF.build(), inline=True, convex=True)
    assert [(done.name, done.rewrites) for done in result.passes[-2:]] == [("make_convex", 1), ("inline_calls", 1)]
    assert result.passes[-1].nodes == len(result.model.graph.node)
    assert len(result.convex) == 1
