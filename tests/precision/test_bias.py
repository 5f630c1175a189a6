"""Biases that make up for rounded weights: on other data than they were observed on, and only where they may."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser

from aff_deploy.errors import DataError
from aff_deploy.passes import optimize
from aff_deploy.precision.bias import corrected_biases, find_layers
from aff_deploy.precision.half import to_half
from aff_deploy.precision.prepare import prepare, source_of
from aff_deploy.precision.ranges import observe
from aff_deploy.precision.values import rounded
from aff_deploy.precision.wiring import add_weights
from aff_deploy.runtimes import Array
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from tests.passes.attention import Attention

HALVES = pytest.mark.parametrize("half", [TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["float16", "bfloat16"])


def random_weights(model: onnx.ModelProto, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name))
    return model


def correct_biases(
    model: onnx.ModelProto, half: int, batches: list[dict[str, Array]], *, wide: frozenset[str] = frozenset()
) -> int:
    """Correct the biases of `model` in place, as retyping does on its way; returns how many."""
    source = source_of(model)
    layers = [layer for layer in find_layers(source) if layer.name not in wide]
    seen = observe(source, batches, ranges=False, means_of=[layer.node.input[0] for layer in layers])
    corrected = corrected_biases(layers, source.weights, seen.means, half)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(corrected.get(tensor.name, tensor))
    return len(corrected)


def convolutions(opset: int) -> onnx.ModelProto:
    """A 3x3 convolution, a grouped one and a Gemm, each behind something whose mean is far from zero."""
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    m (float[n,4,6,6] x) => (float[n,5] out) {{
        [one] a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
        h = Relu(a)
        [two] c = Conv<group = 2>(h, w2, b2)
        p = GlobalAveragePool(c)
        f = Flatten(p)
        [three] out = Gemm(f, w3, b3)
    }}"""
    shapes = {"w1": (8, 4, 3, 3), "b1": (8,), "w2": (6, 4, 1, 1), "b2": (6,), "w3": (6, 5), "b3": (5,)}
    return random_weights(parser.parse_model(text), **shapes)


def data(seed: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.uniform(0, 2, (n, 4, 6, 6)).astype(np.float32)} for n in (1, 3, 8)]


def rounding_error(exact: onnx.ModelProto, model: onnx.ModelProto, half: int, batches: list[dict[str, Array]]) -> float:
    """Root mean square error of `model` with its weights (not biases) rounded."""
    narrow = onnx.ModelProto()
    narrow.CopyFrom(model)
    for tensor in narrow.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            values = numpy_helper.to_array(rounded(tensor, half)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with OnnxRuntimeRunner(exact) as reference, OnnxRuntimeRunner(narrow) as candidate:
        errors = [next(iter(candidate.infer(b).values())) - next(iter(reference.infer(b).values())) for b in batches]
    return float(np.sqrt(np.mean([np.mean(error**2) for error in errors])))


@HALVES
@pytest.mark.parametrize("opset", [17, 18])
def test_the_error_of_rounded_weights_falls_on_unseen_data(half: int, opset: int) -> None:
    exact, model = convolutions(opset), convolutions(opset)
    before = rounding_error(exact, model, half, data(2))
    assert correct_biases(model, half, data(1)) == 3
    assert rounding_error(exact, model, half, data(2)) < 0.7 * before


@HALVES
def test_the_biases_inside_a_fusion_are_corrected_too(half: int) -> None:
    model = optimize(Attention().build()).model
    source, _ = prepare(model, half)
    add_weights(source.light, model)
    model, exact = source.light, onnx.ModelProto()
    exact.CopyFrom(model)
    rng = np.random.default_rng(3)
    draw = [{name: rng.uniform(0, 2, (4, 8, 5, 6)).astype(np.float32) for name in ("x", "y")} for _ in range(2)]
    before = rounding_error(exact, model, half, draw[1:])
    assert correct_biases(model, half, draw[:1]) == 4
    assert rounding_error(exact, model, half, draw[1:]) < 0.7 * before


def test_wide_nodes_and_shared_biases_stay_as_they_are() -> None:
    model = convolutions(18)
    biases = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name.startswith("b")}
    assert correct_biases(model, TensorProto.FLOAT16, data(1), wide=frozenset({"one", "three"})) == 1
    changed = {
        t.name for t in model.graph.initializer if t.name in biases and (numpy_helper.to_array(t) != biases[t.name]).any()
    }
    assert changed == {"b2"}

    text = """<ir_version: 8, opset_import: ["" : 18]>
    m (float[n,4,6,6] x) => (float[n,4,6,6] out) { a = Conv(x, w, b)
        out = Conv(a, w, b) }"""
    shared = random_weights(parser.parse_model(text), w=(4, 4, 1, 1), b=(4,))
    assert correct_biases(shared, TensorProto.FLOAT16, data(1)) == 0


OTHERS = {
    "read in a branch": """(float[n,4] x, bool c) => (float[n,4] y) { t = Gemm(x, w, b)
        y = If(c) <then_branch = p () => (float[n,4] o) { o = Relu(t) },
                   else_branch = q () => (float[n,4] r) { r = Add(t, b) }> }""",
    "an output": "(float[n,4] x) => (float[n,4] y, float[4] b) { y = Gemm(x, w, b) }",
    "a default": "(float[n,4] x, float[4] b) => (float[n,4] y) { y = Gemm(x, w, b) }",
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_bias_that_others_see_stays_as_it_is(case: str) -> None:
    model = random_weights(parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> m {OTHERS[case]}'), w=(4, 4), b=(4,))
    feeds = {"x": np.ones((2, 4), np.float32)} | ({"c": np.array(True)} if "branch" in case else {})
    before = model.SerializeToString()
    assert correct_biases(model, TensorProto.FLOAT16, [feeds]) == 0
    assert model.SerializeToString() == before


def test_means_that_are_not_finite_correct_nothing() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]> m (float[n,4] x) => (float[n,4] y) {
        k = Constant<value_float = 3e38>() a = Mul(x, k) y = Gemm(a, w, b) }"""
    model = random_weights(parser.parse_model(text), w=(4, 4), b=(4,))
    before = model.SerializeToString()
    # Finite values, whose sum is beyond fp32.
    assert correct_biases(model, TensorProto.BFLOAT16, [{"x": np.ones((8, 4), np.float32)}]) == 0
    assert model.SerializeToString() == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bfloat16_wants_finite_data_too(value: float) -> None:
    model = convolutions(18)
    with pytest.raises(DataError, match="'x' holds values that are not finite"):
        to_half(model, TensorProto.BFLOAT16, batches=[{"x": np.full((1, 4, 6, 6), value, np.float32)}], observed="it")


def test_inputs_without_rows_and_models_without_inputs() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    m (float s, float[n,4] x) => (float[n,4] y) { a = Mul(x, s) y = Gemm(a, w, b) }"""
    model = random_weights(parser.parse_model(text), w=(4, 4), b=(4,))
    feeds = {"s": np.array(3, np.float32), "x": np.ones((2, 4), np.float32)}
    assert correct_biases(model, TensorProto.FLOAT16, [feeds]) == 1
    text = '<ir_version: 8, opset_import: ["" : 18]> m () => (float[4,4] y) { a = Relu(w) y = Gemm(a, w, b) }'
    model = random_weights(parser.parse_model(text), w=(4, 4), b=(4,))
    assert correct_biases(model, TensorProto.FLOAT16, [{}]) == 1
