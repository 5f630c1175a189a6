"""Numbers that a type does not hold, and names and models that nobody expected."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper, parser

from aff_deploy.errors import ModelError
from aff_deploy.precision import quantize as module
from aff_deploy.precision import to_precision
from aff_deploy.precision.values import rounded
from aff_deploy.spec import Precision
from tests.passes.graphs import run_ort
from tests.precision.typed import SLACK, assert_computes, computed, elements, typed, wide

FLT_MAX = np.finfo(np.float32).max
RNG = np.random.default_rng(4)
X = RNG.normal(size=(3, 8)).astype(np.float32)
HALVES = pytest.mark.parametrize("precision", ["fp16", "bf16"])
EIGHT = pytest.mark.parametrize("precision", ["int8", "fp8"])


def net(text: str, *, opset: int = 18, **weights: Any) -> ModelProto:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> m {text}')
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def normal(*shape: int, scale: float = 0.5) -> Any:
    return RNG.normal(0, scale, shape).astype(np.float32)


def eight(model: ModelProto, precision: str, *batches: dict[str, Any]) -> tuple[ModelProto, dict[str, str]]:
    quantised, kept = module.quantize(model, Precision(precision), batches)
    onnx.checker.check_model(quantised)
    return quantised, {node.name: node.reason for node in kept}


# ---- numbers


@pytest.mark.parametrize("half", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_what_is_finite_stays_finite_and_what_is_not_does_not(half: int) -> None:
    values = np.array([FLT_MAX, -FLT_MAX, np.inf, -np.inf, np.nan, 1.0], np.float32)
    narrow = numpy_helper.to_array(rounded(numpy_helper.from_array(values, "v"), half)).astype(np.float64)
    largest = 65504.0 if half == TensorProto.FLOAT16 else 255 * 2.0**120
    np.testing.assert_array_equal(narrow, [largest, -largest, np.inf, -np.inf, np.nan, 1.0])


def test_a_row_that_is_masked_throughout_is_no_nan_in_bfloat16() -> None:
    text = (
        """(float[3,8] x, bool[3,8] m) => (float[3,8] y) { t = MatMul(x, w) s = Where(m, t, low) y = Softmax<axis = -1>(s) }"""
    )
    mask = np.ones((3, 8), np.bool_)
    mask[1] = False
    model = net(text, w=normal(8, 8), low=-FLT_MAX)
    assert assert_computes(model, {"x": X, "m": mask}, "bf16") == {}


def test_weights_among_the_smallest_numbers_of_float16_stay_wide() -> None:
    text = "(float[3,8] x) => (float[3,5] y) { [layer] t = MatMul(x, w) y = Mul(t, up) }"
    model = net(text, w=normal(8, 5, scale=1e-8), up=np.float32(5e4))
    kept = assert_computes(model, {"x": X * 1000})
    assert kept["layer"].startswith("underflows: the weight 'w' reaches only")
    # One tiny filter among others, small weights, and a guard are no reason.
    filters = normal(8, 5) * np.array([1, 1, 1, 1, 1e-8], np.float32)
    text = "(float[3,8] x) => (float[3,5] y) { a = Abs(x) d = Add(a, e) u = Div(x, d) t = MatMul(u, w) y = MatMul(t, v) }"
    model = net(text, w=filters, v=normal(5, 5, scale=1e-4), e=np.float32(1e-12))
    assert assert_computes(model, {"x": X}) == {}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_weights_that_are_no_numbers_are_refused(precision: str, value: float) -> None:
    model = net("(float[3,8] x) => (float[3,5] y) { [layer] y = MatMul(x, w) }", w=np.full((8, 5), value, np.float32))
    with pytest.raises(ModelError, match="weight 'w' of MatMul 'layer' holds NaN or infinities"):
        to_precision(model, Precision(precision), batches=[{"x": X}], observed="it")


# ---- integers from floats


@HALVES
@pytest.mark.parametrize("io", ["fp32", "fp16"])
def test_integers_are_computed_from_fp32(precision: str, io: Any) -> None:
    text = """(float[3] x, float[3,8] z) => (float[3,5] y, bool[3] same) {
        d = Mul(x, two)
        f = Floor(d)
        i = Cast<to = 7>(f)
        t = Gather(table, i)
        same = Equal(x, c)
        s = Add(t, z)
        y = MatMul(s, w)
    }"""
    weights = {"two": np.float32(2), "table": normal(9000, 8), "c": np.float32(2049), "w": normal(8, 5)}
    feeds = {"x": np.array([2049, 4001, 3333], np.float32), "z": X}
    model = net(text, **weights)
    result = typed(model, feeds, precision=precision, io=io)
    kinds = elements(result.model)
    assert kinds["x"] == "FLOAT"
    assert kinds["z"] == ("FLOAT16" if io == "fp16" else "FLOAT")
    assert len(wide(result)) == 4
    assert any("'x' stays fp32" in note for note in result.notes) == (io == "fp16")
    found = computed(result, feeds | ({"z": X.astype("f2")} if io == "fp16" else {}))
    expected = run_ort(model, feeds)
    np.testing.assert_array_equal(found["same"], expected[1])
    assert np.abs(found["y"] - expected[0]).max() <= SLACK[precision] * np.abs(expected[0]).max()


def test_what_makes_the_tensor_is_the_last_that_stays_wide() -> None:
    text = (
        "(float[3,8] x) => (int32[3,5] y) { [a] t = MatMul(x, v) [b] u = MatMul(t, w) [c] r = Relu(u) [d] y = Cast<to = 6>(r) }"
    )
    result = typed(net(text, v=normal(8, 8), w=normal(8, 5)), {"x": X})
    assert set(wide(result)) == {"b", "c", "d"}


# ---- names


COLLISIONS = {
    "b_value": ("y = Add(u, z_value) z = Constant<value_floats = [1.0, 2.0, 3.0, 4.0, 5.0]>()", {"z_value": 5}, "z"),
    "small initializer": ("y = Add(u, b)", {"b": 5}, "b"),
    "large initializer": ("v = MatMul(u, big) y = MatMul(v, b_value)", {"big": (5, 100), "b_value": (100, 5)}, "big"),
}


@HALVES
@pytest.mark.parametrize("case", COLLISIONS)
def test_constants_that_are_outputs(case: str, precision: str) -> None:
    body, shapes, output = COLLISIONS[case]
    weights = {name: normal(*np.atleast_1d(shape)) for name, shape in shapes.items()}
    kind = ",".join(str(d) for d in np.atleast_1d(shapes.get(output, 5)))
    text = f"(float[3,8] x) => (float[3,5] y, float[{kind}] {output}) {{ u = MatMul(x, w) {body} }}"
    assert_computes(net(text, w=normal(8, 5), **weights), {"x": X}, precision)


@pytest.mark.parametrize("io", ["fp32", "fp16"])
def test_tensors_called_as_casts_will_be(io: Any) -> None:
    text = """(float[3,8] x) => (float[3,5] y) { x_fp16 = Mul(x, x) [hot] x_fp32 = Mul(x_fp16, x_fp16_fp32)
        d = Div(x_fp32, x_fp16_fp32) y_fp16 = MatMul(d, y_fp32) y = Relu(y_fp16) }"""
    model = net(text, x_fp16_fp32=np.float32(1e6), y_fp32=normal(8, 5))
    result = typed(model, {"x": X}, io=io)
    found = computed(result, {"x": X.astype("f2") if io == "fp16" else X})["y"]
    assert np.abs(found - run_ort(model, {"x": X})[0]).max() <= 0.02


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_half_outputs_that_no_node_makes(precision: str) -> None:
    text = "(float[3,8] x) => (float[3,5] y, float[3,8] x, float[8,5] w) { t = MatMul(x, w) y = Relu(t) }"
    result = typed(net(text, w=normal(8, 5)), {"x": X}, precision=precision, io="fp16")
    assert {elements(result.model)[name] for name in "xyw"} == {"FLOAT16"}
    assert computed(result, {"x": X.astype("f2")})["x"].dtype == np.float16


# ---- 8 bits


@EIGHT
def test_what_has_no_scale_stays_wide(precision: str) -> None:
    text = """(float[n,8] x) => (float[m,5] a, float[n,5] b, float[n,5] c, float[n,5] d, float[n,0] e) {
        none = Slice(x, from, to, axis)
        [empty] a = MatMul(none, w)
        naught = Sub(x, x)
        [zero] b = MatMul(naught, w)
        [tiny] c = MatMul(x, v)
        [fine] d = MatMul(x, w)
        [void] e = MatMul(x, u)
    }"""
    sliced = {"from": np.array([4]), "to": np.array([9]), "axis": np.array([0])}
    model = net(text, **sliced, w=normal(8, 5), v=normal(8, 5) * 1e-38, u=normal(8, 0))
    quantised, kept = eight(model, precision, {"x": X})
    found = {name: reason.split(" ", 1)[0] for name, reason in kept.items()}
    assert found == {"empty": "'none'", "zero": "'naught'", "tiny": "'v'", "void": "'u'"}
    assert sum(node.op_type == "QuantizeLinear" for node in quantised.graph.node) == 1
    assert to_precision(model, Precision(precision), batches=[{"x": X}], observed="it").kept_wide[0].name == "empty"


@EIGHT
@pytest.mark.parametrize("shape", [(), (1,), (3, 1)])
def test_a_gemm_whose_bias_is_spread_stays_wide(precision: str, shape: tuple[int, ...]) -> None:
    text = "(float[3,8] x) => (float[3,5] y) { [first] t = MatMul(x, v) [last] y = Gemm(t, w, b) }"
    model = net(text, v=normal(8, 8), w=normal(8, 5), b=np.ones(shape, np.float32))
    quantised, _ = eight(model, precision, {"x": X})
    assert [node.input[1] for node in quantised.graph.node if node.name == "last"] == ["w"]


@EIGHT
def test_names_that_quantisation_would_give(precision: str) -> None:
    text = """(float[3,8] x) => (float[3,5] y) { "x/quantised" = Mul(x, x_scale) t = MatMul("x/quantised", w) u = MatMul(x, w)
        q = Mul(t, w_quantized) s = Mul(q, w_scale) v = Add(s, u) y = Add(v, w_zero_point) }""".replace('"x/quantised"', "xq")
    weights = {name: normal(5) for name in ("w_quantized", "w_scale", "w_zero_point")}
    model = net(text, w=normal(8, 5), x_scale=np.float32(2), **weights)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["x/quantised" if name == "xq" else name for name in names]
    quantised, _ = eight(model, precision, {"x": X})
    expected = run_ort(model, {"x": X})[0]
    assert np.abs(run_ort(quantised, {"x": X})[0] - expected).max() < 0.15 * np.abs(expected).max()
    assert {"w_quantized", "w_scale", "w_zero_point", "x_scale"} <= {tensor.name for tensor in quantised.graph.initializer}
    assert "w" not in {tensor.name for tensor in quantised.graph.initializer}


def test_fp8_converts_older_opsets() -> None:
    text = """(float[3,8] x) => (float[3,1] y) {
        t = MatMul(x, w) a, b = Split<axis = 1>(t) c = Sub(a, b) y = ReduceMean<axes = [1]>(c) }"""
    model = net(text, opset=13, w=normal(8, 6))
    quantised, _ = eight(model, "fp8", {"x": X})
    onnx.checker.check_model(quantised, full_check=True)
    (expected,) = run_ort(model, {"x": X})
    assert np.abs(run_ort(quantised, {"x": X})[0] - expected).max() < 0.15 * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_quantised_models_are_refused(precision: str) -> None:
    text = "(float[3,8] x) => (float[3,5] y) { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, w) }"
    model = net(text, w=normal(8, 5), s=np.float32(0.03), z=np.int8(0))
    with pytest.raises(ModelError, match=r"quantised already.*build it without a precision option"):
        to_precision(model, Precision(precision), batches=[{"x": X}], observed="it")


@HALVES
def test_a_model_that_onnx_cannot_infer_is_refused_in_one_line(precision: str) -> None:
    model = net("(float[3,8] x) => (float[3,5] y) { t = MatMul(x, w) y = Relu(t) }", opset=13, w=normal(8, 5))
    for node in model.graph.node:
        node.domain = "ai.onnx"  # the same as none, but not to onnx's converter
    with pytest.raises(ModelError, match=r"opset 13 cannot be brought to .*export it again with --opset"):
        to_precision(model, Precision(precision), batches=[{"x": X}], observed="it")
