"""Biases that make up for rounded weights: on other data than they were observed on, and only where they may."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser

from aff_deploy.passes import optimize
from aff_deploy.precision.bias import correct_biases
from aff_deploy.precision.prepare import prepared
from aff_deploy.precision.values import rounded
from aff_deploy.runtimes import Array
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from tests.passes.attention import Attention

HALVES = pytest.mark.parametrize("half", [TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["float16", "bfloat16"])


def random_weights(model: onnx.ModelProto, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name))
    return model


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
    model, _ = prepared(optimize(Attention().build()).model, half)
    exact = onnx.ModelProto()
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
