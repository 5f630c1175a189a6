"""The precision of an engine is decided node by node, and a node that stayed wide fails the build."""

from __future__ import annotations

import pytest
from onnx import ModelProto, TensorProto, helper, parser

from aff_deploy.engine.listing import EngineTensor, Layer, Listing
from aff_deploy.engine.proof import Proof, expected_types, prove
from aff_deploy.errors import CheckFailed
from aff_deploy.spec import Precision

HALF = """<ir_version: 8, opset_import: ["" : 18, "aff_deploy" : 1]>
m (float[1,4,2,2] x) => (float[1,4,2,2] out) <float16[4,4,1,1] w, float[4,4,1,1] wide_w> {
    [half] xh = Cast<to: int = 10>(x)
    [narrow] a = Conv(xh, w)
    [back] b = Cast<to: int = 1>(a)
    [wide] c = Conv(b, wide_w)
    d = Cast<to: int = 10>(c)
    [site] e = aff_deploy.Gate(d, w)
    out = Cast<to: int = 1>(e)
}"""
GATE = '<domain: "aff_deploy", opset_import: ["" : 18]> Gate (x, w) => (out) { z = Conv(x, w)\nout = Mul(x, z) }'
CALL = "node_of_z | site (Gate)"


def half_model() -> ModelProto:
    model = parser.parse_model(HALF)
    model.functions.append(parser.parse_function(GATE))
    value = helper.make_tensor_value_info("d", TensorProto.FLOAT16, [1, 4, 2, 2])
    model.graph.value_info.append(value)
    return model


def listing(**types: str) -> Listing:
    nodes = {"narrow": "narrow", "wide": "wide", "call": CALL}
    layers = (Layer(f"layer_{key}", "conv", (types[key],), (), (), (node,)) for key, node in nodes.items() if key in types)
    return Listing(tuple(layers), (), "a test")


def proof(**types: str) -> Proof:
    return prove(half_model(), listing(**types), Precision.FP16, 128)


def test_what_is_expected_comes_from_the_typed_model() -> None:
    assert expected_types(half_model()) == {"narrow": "float16", "wide": "float32", CALL: "float16"}


def test_an_engine_that_follows_the_model_passes() -> None:
    found = proof(narrow="float16", wide="float32", call="float16")
    assert found.passed
    assert (found.nodes, found.in_precision, found.wide_by_design) == (3, 2, ("wide",))
    found.require()


def test_a_node_that_stayed_wide_fails_with_its_layer() -> None:
    found = proof(narrow="float16", wide="float32", call="float32")
    with pytest.raises(
        CheckFailed, match=r"fp16 model: node_of_z \| site \(Gate\) asks for float16, layer layer_call reads float32"
    ):
        found.require()


def test_a_node_that_the_builder_narrowed_fails_too() -> None:
    with pytest.raises(CheckFailed, match="keep its neighbours in fp32 too"):
        proof(narrow="float16", wide="float16", call="float16").require()


def test_a_node_that_no_layer_names_is_not_taken_on_trust() -> None:
    with pytest.raises(CheckFailed, match="no layer of the engine names wide"):
        proof(narrow="float16", call="float16").require()


def test_an_engine_in_which_nothing_is_of_the_precision_fails() -> None:
    found = prove(half_model(), listing(narrow="float16", wide="float32", call="float16"), Precision.BF16, None)
    with pytest.raises(CheckFailed, match="nothing in the engine is seen to be bf16"):
        found.require()


def test_a_call_that_a_plugin_computes_is_one_layer() -> None:
    model = half_model()
    assert expected_types(model, {"site"}) == {"narrow": "float16", "wide": "float32", "site": "float16"}
    layers = (Layer(name, "x", (dtype,), (), (), (name,)) for name, dtype in expected_types(model, {"site"}).items())
    assert prove(model, Listing(tuple(layers), (), "a test"), Precision.FP16, None, plugin_calls={"site"}).passed


NESTED = """<ir_version: 8, opset_import: ["" : 18]>
m (bool c, float[1,4,2,2] x) => (float[1,4,2,2] out) <float[4,4,1,1] w> {
    out = If (c) <then_branch = then () => (float[1,4,2,2] a) { [inside] a = Conv(x, w) },
                  else_branch = other () => (float[1,4,2,2] b) { b = Relu(x) }>
}"""


def test_a_model_whose_products_all_lie_in_nested_graphs_is_not_taken_for_half_precision() -> None:
    engine = Listing((Layer("l", "conv", ("float32",), (), (), ("l",)),), (), "a test")
    found = prove(parser.parse_model(NESTED), engine, Precision.FP16, None)
    assert (found.passed, found.nodes, found.wide_by_design) == (False, 1, ("inside",))
    with pytest.raises(CheckFailed, match=r"nothing in the engine is seen to be fp16.*\(inside\); .*--bf16"):
        found.require()
    assert prove(parser.parse_model(NESTED), engine, Precision.FP32, None).passed


def test_a_model_without_products_proves_nothing() -> None:
    text = '<ir_version: 8, opset_import: ["" : 18]> m (float16[2] x) => (float16[2] out) { out = Relu(x) }'
    engine = Listing((Layer("l", "kgen", ("float16",), (), (), ("node_of_out",)),), (), "a test")
    assert not prove(parser.parse_model(text), engine, Precision.FP16, None).passed


def test_an_input_of_another_type_than_the_model_s_fails() -> None:
    layers = listing(narrow="float16", wide="float32", call="float16").layers
    for dtype, passes in (("float32", True), ("float16", False)):
        ends = (EngineTensor("x", "input", dtype, (1, 4, 2, 2)), EngineTensor("out", "output", "float32", (1, 4, 2, 2)))
        found = prove(half_model(), Listing(layers, ends, "a test"), Precision.FP16, None)
        assert found.passed is passes
        assert [d.node for d in found.dissent] == ([] if passes else ["x"])


QUANTISED = """<ir_version: 8, opset_import: ["" : 18]>
m (float[1,4,2,2] x) => (float[1,4,2,2] out)
<float scale = {0.1}, int8 zero = {0}, int8[4,4,1,1] w8> {
    xq = QuantizeLinear(x, scale, zero)
    xd = DequantizeLinear(xq, scale, zero)
    w = DequantizeLinear(w8, scale, zero)
    [conv] out = Conv(xd, w)
}"""


@pytest.mark.parametrize(("found", "passes"), [("int8", True), ("float32", False)])
def test_a_convolution_of_dequantised_inputs_must_read_int8(found: str, passes: bool) -> None:
    engine = Listing((Layer("c", "conv", (found,), (), (), ("conv",)),), (), "a test")
    result = prove(parser.parse_model(QUANTISED), engine, Precision.INT8, None)
    assert (result.passed, result.in_precision) == (passes, int(passes))
