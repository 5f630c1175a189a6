"""The precision of an engine is decided node by node, and a node that stayed wide fails the build."""

from __future__ import annotations

import pytest
from onnx import ModelProto, TensorProto, helper, parser

from aff_deploy.engine.listing import Layer, Listing
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
    with pytest.raises(CheckFailed, match=r"not fp16: 1 of 3 .* layer_call \(node_of_z \| site \(Gate\): float32\)"):
        found.require()


def test_a_node_that_no_layer_names_is_not_taken_on_trust() -> None:
    with pytest.raises(CheckFailed, match="no layer of the engine names wide"):
        proof(narrow="float16", call="float16").require()


def test_an_engine_in_which_nothing_is_of_the_precision_fails() -> None:
    found = prove(half_model(), listing(narrow="float16", wide="float32", call="float16"), Precision.BF16, None)
    with pytest.raises(CheckFailed, match="nothing in the engine is bf16"):
        found.require()


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
