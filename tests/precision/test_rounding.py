"""The evaluator rounds: each tensor to its type, where ONNX Runtime by itself would compute on in fp32."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from aff_deploy.precision import rounding_model
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from tests.passes.graphs import feeds_of, model_of, run_ort, run_reference
from tests.precision.typed import Array, computed, typed

CAST = {"float16": 10, "bfloat16": 16}


def through(half: str, body: str, values: list[float]) -> Array:
    """What a graph in half precision makes of `values`: `body` leads from `a` to `b`."""
    model = model_of(
        f"g (float[N] x) => (float[N] y) <{half}[1] one, {half}[1] big> {{\n"
        f"a = Cast<to: int = {CAST[half]}>(x)\n{body}\ny = Cast<to: int = 1>(b) }}",
        opset=22,
        one=np.ones(1),
        big=np.full(1, 256.0),
    )
    with OnnxRuntimeRunner(rounding_model(model)) as runner:
        return runner.infer({"x": np.array(values, np.float32)})["y"]


@pytest.mark.parametrize(
    ("half", "given", "expected"),
    [
        (
            "float16",
            [2049.0, 2051.0, 65519.0, 65520.0, -7e4, 1e-9, 0.1],
            [2048, 2052, 65504, np.inf, -np.inf, 0, 0.0999755859375],
        ),
        ("bfloat16", [1 + 2**-8, 1 + 3 * 2**-8, 257.0, 1e38, 3.4e38], [1, 1 + 2**-6, 256, 9.9692e37, np.inf]),
    ],
)
def test_values_are_rounded(half: str, given: list[float], expected: list[float]) -> None:
    for body in ("b = Identity(a)", "b = Mul(a, one)", "c = Mul(a, one)\nb = Mul(c, one)", "b = Abs(a)"):
        sign = np.abs if "Abs" in body else np.asarray
        np.testing.assert_allclose(through(half, body, given), sign(expected), rtol=1e-5)


def test_an_intermediate_that_overflows_gives_infinity() -> None:
    body = "c = Mul(a, big)\nb = Div(c, big)"
    np.testing.assert_array_equal(through("float16", body, [255.0, 256.0, -300.0]), [255.0, np.inf, -np.inf])
    np.testing.assert_array_equal(through("bfloat16", body, [255.0, 256.0, -300.0]), [255.0, 256.0, -300.0])


def test_every_step_is_rounded_not_only_the_last() -> None:
    # 2048 + 1 is 2048 in float16, however often.
    body = "c = Add(a, one)\nd = Add(c, one)\nb = Add(d, one)"
    np.testing.assert_array_equal(through("float16", body, [2048.0]), [2048.0])
    np.testing.assert_array_equal(through("bfloat16", body, [256.0]), [256.0])


def test_it_computes_what_onnx_says_of_float16() -> None:
    model = model_of(
        "g (float16[N, 8] x) => (float16[N, 8] y, float16[N, 8] z) <float16[8] w, float16[8] v> {\n"
        "a = Mul(x, w)\nz = Add(a, v)\nb = Relu(z)\nc = Sub(b, w)\ny = Div(c, v) }"
    )
    feeds = feeds_of(model)
    with OnnxRuntimeRunner(rounding_model(model)) as runner:
        found = runner.infer(feeds)
    for actual, expected in zip(found.values(), run_reference(model, feeds), strict=True):
        assert actual.dtype == np.float16
        np.testing.assert_array_equal(actual, expected)


def test_half_precision_in_attributes_and_functions() -> None:
    model = model_of(
        "g (float16[N, 4] x) => (float16[N, 4] y) { n = Constant<value_ints: ints = [4]>()\n"
        "k = ConstantOfShape(n)\na = f.scaled(x, k)\ny = Relu(a) }",
        domains=', "f" : 1',
        functions='<domain: "f", opset_import: ["" : 18]> scaled (x, k) => (b) {\n'
        "one_f = Constant<value_float: float = 1.0>()\none = CastLike(one_f, x)\na = Mul(x, k)\nb = Add(a, one) }",
    )
    value = numpy_helper.from_array(np.full(1, 2.0, np.float16), "two")
    model.graph.node[1].attribute.append(helper.make_attribute("value", value))
    feeds = {"x": np.array([[1024.0, 1025.0, -3.0, 0.0]], np.float16)}
    with OnnxRuntimeRunner(rounding_model(model)) as runner:
        np.testing.assert_array_equal(runner.infer(feeds)["y"], [[2048.0, 2052.0, 0.0, 1.0]])


def test_an_fp32_model_stays_what_it_is() -> None:
    model = model_of("g (float[N, 4] x) => (float[N, 4] y) <float[4] w> { a = Mul(x, w)\ny = Tanh(a) }")
    assert list(rounding_model(model).graph.node) == list(model.graph.node)
    result = typed(model, precision="fp32")
    np.testing.assert_array_equal(computed(result, feeds_of(model))["y"], run_ort(model, feeds_of(model), optimised=True)[0])


def test_fp16_ends_of_an_fp32_model_are_rounded() -> None:
    model = model_of("g (float[2] x) => (float[2] y) { y = Sqrt(x) }")
    result = typed(model, {"x": np.ones(2, np.float32)}, precision="fp32", io="fp16")
    found = computed(result, {"x": np.array([2.0, 3.0], np.float16)})["y"]
    np.testing.assert_array_equal(found, np.sqrt(np.array([2.0, 3.0], np.float32)).astype(np.float16))
