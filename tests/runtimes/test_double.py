"""The evaluation in float64: each operator of ours against ONNX Runtime, and float64 wherever a float is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser

from aff_deploy.errors import DataError, ModelError
from aff_deploy.passes import optimize
from aff_deploy.runtimes.double import DoubleRunner, in_double
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from aff_deploy.spec import TensorSpec
from tests.passes.attention import AFF

ROUNDING = 64 * np.finfo(np.float32).eps
"""Of ONNX Runtime's float32, relative to the largest output, in sums of some ten numbers."""


def model_of(body: str, shape: str, opset: int = 18, kind: str = "float", **weights: np.ndarray) -> onnx.ModelProto:
    """A graph from x to y, of unknown shape; what else it reads is `weights`."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]>\ng ({kind}[{shape}] x) => (float y) {{ {body} }}'
    model: onnx.ModelProto = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    return model


def assert_agrees(model: onnx.ModelProto, x: np.ndarray) -> None:
    wide = DoubleRunner(model).infer(in_double({"x": x}))["y"]
    (narrow,) = OnnxRuntimeRunner(model).infer({"x": x}).values()
    assert wide.dtype == (np.float64 if narrow.dtype.kind == "f" else narrow.dtype)
    assert wide.shape == narrow.shape
    assert np.abs(wide - narrow).max() <= ROUNDING * max(1.0, float(np.abs(narrow).max()))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


W33 = {"w": normal(6, 4, 3, 3, seed=1), "b": normal(6, seed=2)}
W4 = {"w": normal(4, 3, 3, 3)}
TWICE = {"none": np.zeros(0, "f"), "s": np.float32([1, 1, 2, 2])}
MORE = {"none": np.zeros(0, "f"), "s": np.float32([1, 1, 2, 1.6])}
GROUPED = {"w": normal(6, 2, 3, 2, seed=1)}
CASES: dict[str, tuple[str, tuple[int, ...], dict[str, np.ndarray]]] = {
    "conv": ("y = Conv(x, w, b)", (2, 4, 7, 5), W33),
    "conv padded": ("y = Conv<pads=[1,0,2,1], strides=[2,1]>(x, w, b)", (2, 4, 7, 5), W33),
    "conv dilated": ("y = Conv<dilations=[2,1], group=2>(x, w)", (1, 4, 9, 5), GROUPED),
    "conv same upper": ('y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w, b)', (1, 4, 8, 5), W33),
    "conv same lower": ('y = Conv<auto_pad="SAME_LOWER", strides=[2,3]>(x, w, b)', (1, 4, 8, 5), W33),
    "conv 1d": ("y = Conv<pads=[1,1]>(x, w)", (2, 4, 9), {"w": normal(3, 4, 3)}),
    "conv 3d": ("y = Conv(x, w)", (1, 2, 4, 5, 6), {"w": normal(3, 2, 2, 3, 1)}),
    "transposed": ("y = ConvTranspose<strides=[2,3], pads=[1,0,1,2]>(x, w)", (2, 4, 5, 4), {"w": normal(4, 3, 3, 4)}),
    "transposed in groups": (
        "y = ConvTranspose<group=2, dilations=[2,1], output_padding=[1,0], strides=[2,1]>(x, w, b)",
        (2, 4, 5, 4),
        {"w": normal(4, 3, 3, 2), "b": normal(6)},
    ),
    "transposed same": ('y = ConvTranspose<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', (1, 4, 5, 4), W4),
    "max pool": ("y = MaxPool<kernel_shape=[3,2], strides=[2,2], pads=[1,0,1,1]>(x)", (2, 3, 8, 7), {}),
    "max pool ceil": ("y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)", (2, 3, 8, 7), {}),
    "max pool dilated": ("y = MaxPool<kernel_shape=[2,2], dilations=[2,3]>(x)", (2, 3, 8, 7), {}),
    "average pool": ("y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", (2, 3, 8, 7), {}),
    "average pool with padding": (
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,0,1], count_include_pad=1>(x)",
        (2, 3, 8, 7),
        {},
    ),
    "average pool ceil": ("y = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)", (2, 3, 8, 6), {}),
    "global max pool, rank 3": ("y = GlobalMaxPool(x)", (2, 3, 4), {}),
    "global max pool": ("y = GlobalMaxPool(x)", (2, 3, 4, 5), {}),
    "norm": ("y = LpNormalization<axis=1, p=1>(x)", (4, 6), {}),
    "norm, the second": ("y = LpNormalization<axis=0, p=2>(x)", (4, 6), {}),
    "lrn": ("y = LRN<size=5, alpha=0.5>(x)", (2, 6, 2, 2), {}),
    "lrn, many rows": ("y = LRN<size=3, alpha=0.5, bias=2.0>(x)", (7, 6, 2, 2), {}),
    "mean and variance": ("y = MeanVarianceNormalization(x)", (2, 3, 4, 4), {}),
    "nearest": ('y = Resize<mode="nearest">(x, none, s)', (1, 2, 3, 5), MORE),
    "nearest, floor": (
        'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, none, s)',
        (1, 2, 3, 5),
        TWICE,
    ),
    "linear": ('y = Resize<mode="linear">(x, none, s)', (1, 2, 3, 5), MORE),
    "linear, corners": (
        'y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, none, none, s)',
        (1, 2, 3, 5),
        {"none": np.zeros(0, "f"), "s": np.array([1, 2, 7, 4])},
    ),
    "a constant": ("c = Constant<value_floats: floats = [0.1, 0.2]>() y = Mul(x, c)", (3, 2), {}),
    "logs far down": ("y = LogSoftmax(x)", (1, 300), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_operator_agrees_with_onnxruntime(name: str) -> None:
    body, shape, weights = CASES[name]
    model = model_of(body, ", ".join(map(str, shape)), **weights)
    assert_agrees(model, 40 * normal(*shape, seed=7) if "far" in name else normal(*shape, seed=7))


@pytest.mark.parametrize("opset", [11, 12, 13, 18])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("attributes", ["", "<axis = 0>", "<axis = -2>"])
def test_softmax_means_what_its_opset_says(opset: int, operator: str, attributes: str) -> None:
    assert_agrees(model_of(f"y = {operator}{attributes}(x)", "2, 3, 4", opset), normal(2, 3, 4))


def test_unsqueeze_in_any_order() -> None:
    assert_agrees(model_of("y = Unsqueeze<axes = [2, 0]>(x)", "3, 3", 11), normal(3, 3))
    assert_agrees(model_of("y = Unsqueeze(x, axes)", "3, 3", 18, axes=np.array([2, 0])), normal(3, 3))


@pytest.mark.parametrize("shape", [(), (3, 2)])
def test_where_nothing_is_zero(shape: tuple[int, ...]) -> None:
    model = model_of("i = NonZero(x) y = Cast<to: int = 1>(i)", ", ".join(map(str, shape)))
    assert_agrees(model, np.ones(shape, np.float32))


@pytest.mark.parametrize("scale", [np.float32(0.1), np.float32([0.1, 0.2, 0.3])])
def test_a_quantised_tensor_is_worth_its_numbers(scale: np.ndarray) -> None:
    zero = np.full(scale.shape, 3, np.int8)
    model = model_of("y = DequantizeLinear(x, s, z)", "2, 3, 4", kind="int8", s=scale, z=zero)
    x = np.random.default_rng(0).integers(-128, 127, (2, 3, 4)).astype(np.int8)
    assert_agrees(model, x)


def test_a_cast_rounds_to_half_precision_and_not_to_float32() -> None:
    x = np.array([1 + 2.0**-40, 1 + 2.0**-9 + 2.0**-12])
    to_half = model_of(f"y = Cast<to: int = {TensorProto.FLOAT16}>(x)", "2")
    to_float = model_of(f"y = Cast<to: int = {TensorProto.FLOAT}>(x)", "2")
    assert DoubleRunner(to_half).infer({"x": x})["y"].tolist() == [1.0, 1 + 2.0**-9]
    assert DoubleRunner(to_float).infer({"x": x})["y"].tolist() == x.tolist()


@pytest.mark.parametrize("dims", ["2,16,6,6", "N,16,6,6", "N,8,5,6"])
def test_functions_are_evaluated_in_float64_too(dims: str) -> None:
    model = AFF.but(dims=dims, channels=int(dims.split(",")[1])).build()
    fused = optimize(model).model
    assert len(fused.functions) == 1
    shape = (2, *(int(size) for size in dims.split(",")[1:]))
    feeds = in_double({name: normal(*shape, seed=i) for i, name in enumerate("xy")})
    want, got = (DoubleRunner(each).infer(feeds)["out"] for each in (model, fused))
    assert np.abs(want - got).max() <= 1e-14 * np.abs(want).max()


def test_nested_graphs_are_evaluated_in_float64_too() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 18]>\ng (float[1, 1, 2] x, bool c) => (float[1, 1, 2] y)'
        "<float[1, 1, 1] w = {3.0}> {\n"
        "y = If (c) <then_branch = t () => (float[1, 1, 2] u) { u = Conv(x, w) },"
        " else_branch = e () => (float[1, 1, 2] v) { v = Neg(x) }>\n}"
    )
    runner = DoubleRunner(parser.parse_model(text))
    x = np.array([[[1 + 2.0**-40, 2.0]]])
    assert runner.infer({"x": x, "c": np.array(True)})["y"].tolist() == (3 * x).tolist()
    assert runner.infer({"x": x, "c": np.array(False)})["y"].tolist() == (-x).tolist()


def test_inputs_and_outputs_are_those_of_the_model() -> None:
    model = model_of("y = Relu(x)", "N, 3")
    model.graph.input.append(onnx.helper.make_tensor_value_info("k", TensorProto.INT64, [2]))
    runner = DoubleRunner(model)
    assert runner.inputs == (TensorSpec("x", ("N", 3), "float64"), TensorSpec("k", (2,), "int64"))
    assert runner.outputs == ("y",)
    with pytest.raises(DataError, match="got dtype float32"):
        runner.infer({"x": normal(2, 3), "k": np.array([1, 2])})


def test_what_cannot_be_evaluated_says_so() -> None:
    model = model_of("y = theirs.Op(x)", "2")
    model.opset_import.append(onnx.helper.make_opsetid("theirs", 1))
    with pytest.raises(ModelError, match=r"cannot be evaluated in double precision: .*'Op'"):
        DoubleRunner(model)
    cubic = model_of('y = Resize<mode="cubic">(x, n, s)', "1, 1, 4, 4", n=np.zeros(0, "f"), s=np.float32([1, 1, 2, 2]))
    with pytest.raises(ModelError, match="Resize of mode cubic"):
        DoubleRunner(cubic).infer(in_double({"x": normal(1, 1, 4, 4)}))
