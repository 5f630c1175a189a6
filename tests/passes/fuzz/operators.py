"""Operators by numpy in float64: inputs, attributes, opset in, the result out; None where a rule does not apply."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array: TypeAlias = "NDArray[Any]"
Values: TypeAlias = "dict[str, Array]"
Attributes: TypeAlias = "dict[str, Any]"

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
SOFTMAX_BY_AXIS = 13


def widened(array: Array) -> Array:
    """Floats as float64, everything else as it is."""
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _axes(inputs: Sequence[Array | None], attributes: Attributes) -> list[int] | None:
    if "axes" in attributes:
        return [int(axis) for axis in attributes["axes"]]
    given = inputs[1] if len(inputs) > 1 else None
    return None if given is None else [int(axis) for axis in given.reshape(-1)]


def _reduce(function: Callable[..., Array]) -> Callable[..., Array]:
    def rule(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array:
        axes = _axes(inputs, attributes)
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return inputs[0]
        return function(
            inputs[0],
            axis=tuple(axes) if axes else None,
            keepdims=bool(attributes.get("keepdims", 1)),
        )

    return rule


def _padded(x: Array, attributes: Attributes, rank: int, fill: float) -> Array:
    pads = attributes.get("pads") or [0] * (2 * rank)
    widths = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    return np.pad(x, widths, constant_values=fill)


def _windows(x: Array, kernel: Sequence[int], attributes: Attributes) -> Array:
    """N x C x positions x window."""
    rank = len(kernel)
    dilations = attributes.get("dilations") or [1] * rank
    strides = attributes.get("strides") or [1] * rank
    extents = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    windows = sliding_window_view(x, extents, axis=tuple(range(2, 2 + rank)))
    steps = [slice(None, None, step) for step in (*strides, *dilations)]
    return windows[(slice(None), slice(None), *steps)]


def _conv(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array:
    x, w = inputs[:2]
    group, rank = attributes.get("group", 1), x.ndim - 2
    windows = _windows(_padded(x, attributes, rank, 0.0), w.shape[2:], attributes)
    grouped = windows.reshape(x.shape[0], group, x.shape[1] // group, *windows.shape[2:])
    weights = w.reshape(group, w.shape[0] // group, *w.shape[1:])
    places, kernel = "xyz"[:rank], "ijk"[:rank]
    y = np.einsum(f"ngc{places}{kernel},gmc{kernel}->ngm{places}", grouped, weights)
    y = y.reshape(x.shape[0], w.shape[0], *y.shape[3:])
    return y if len(inputs) < 3 else y + inputs[2].reshape(-1, *[1] * rank)


def _average_pool(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array:
    kernel = attributes["kernel_shape"]
    # What is padded counts or does not: a NaN does not.
    fill = 0.0 if attributes.get("count_include_pad", 0) else np.nan
    windows = _windows(_padded(inputs[0], attributes, len(kernel), fill), kernel, attributes)
    return np.nanmean(windows, axis=tuple(range(-len(kernel), 0)))


def _max_pool(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array:
    kernel = attributes["kernel_shape"]
    windows = _windows(_padded(inputs[0], attributes, len(kernel), -np.inf), kernel, attributes)
    return windows.max(axis=tuple(range(-len(kernel), 0)))


def _softmax(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array:
    x = inputs[0]
    axis = attributes.get("axis", -1 if opset >= SOFTMAX_BY_AXIS else 1)
    # Before, over all axes from this one on.
    axes = (axis,) if opset >= SOFTMAX_BY_AXIS else tuple(range(axis % x.ndim, x.ndim))
    powers = np.exp(x - x.max(axis=axes, keepdims=True))
    return powers / powers.sum(axis=axes, keepdims=True)


def _batchnorm(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array | None:
    if attributes.get("training_mode", 0):
        return None
    x, *statistics = inputs
    gamma, beta, mean, var = (v.reshape(-1, *[1] * (x.ndim - 2)) for v in statistics)
    return gamma * (x - mean) / np.sqrt(var + attributes.get("epsilon", 1e-5)) + beta


def _gemm(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array:
    a, b = (m.T if attributes.get(f"trans{name}", 0) else m for m, name in zip(inputs, "AB", strict=False))
    bias = 0.0 if len(inputs) < 3 else attributes.get("beta", 1.0) * inputs[2]
    return attributes.get("alpha", 1.0) * (a @ b) + bias


def _reshape(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array:
    x, target = inputs
    keep = not attributes.get("allowzero", 0)
    return x.reshape([x.shape[i] if size == 0 and keep else size for i, size in enumerate(target.tolist())])


def _flatten(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array:
    x, axis = inputs[0], attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _squeeze(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array:
    axes = _axes(inputs, attributes)
    return np.squeeze(inputs[0], None if axes is None else tuple(axes))


def _unsqueeze(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array:
    return np.expand_dims(inputs[0], tuple(_axes(inputs, attributes) or ()))


def _shape(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array:
    return np.asarray(inputs[0].shape[attributes.get("start", 0) : attributes.get("end")], dtype=np.int64)


def _slice(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array:
    x, starts, ends, *rest = inputs
    axes = rest[0].tolist() if rest else range(len(starts))
    steps = rest[1].tolist() if len(rest) > 1 else [1] * len(starts)
    picks = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts.tolist(), ends.tolist(), steps, strict=True):
        # Python reads an end of -1 as the last; ONNX clamps to before the first where it steps backwards.
        picks[axis] = slice(start, None if step < 0 and end < -x.shape[axis] else end, step)
    return x[tuple(picks)]


def _split(inputs: Sequence[Array], attributes: Attributes, opset: int) -> list[Array] | None:
    sizes = attributes.get("split") or (inputs[1].tolist() if len(inputs) > 1 else None)
    return None if sizes is None else np.split(inputs[0], np.cumsum(sizes)[:-1], axis=attributes.get("axis", 0))


def _cast(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array:
    kind = attributes["to"]
    return inputs[0].astype(np.float64 if kind in FLOATS else helper.tensor_dtype_to_np_dtype(kind))


def _constant(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array:
    ((name, value),) = attributes.items()
    if name == "value":
        return widened(numpy_helper.to_array(value))
    return np.asarray(value, dtype=np.float64 if "float" in name else np.int64)


def _constant_of_shape(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array:
    fill = widened(numpy_helper.to_array(attributes["value"])) if "value" in attributes else np.zeros(1)
    return np.full(inputs[0].tolist(), fill.reshape(-1)[0])


def _sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


_erf = np.vectorize(math.erf, otypes=[np.float64])

_PLAIN: dict[str, Callable[..., Array]] = {
    "Abs": np.abs, "Add": np.add, "And": np.logical_and, "Equal": np.equal, "Erf": _erf, "Exp": np.exp, "Floor": np.floor,
    "Greater": np.greater, "Identity": np.asarray, "Less": np.less, "Log": np.log, "MatMul": np.matmul, "Mul": np.multiply,
    "Neg": np.negative, "Not": np.logical_not, "Or": np.logical_or, "Pow": np.power,
    "Reciprocal": lambda x: 1.0 / x, "Relu": lambda x: np.maximum(x, 0.0), "Sigmoid": _sigmoid, "Sign": np.sign,
    "Softplus": lambda x: np.logaddexp(0.0, x), "Sqrt": np.sqrt, "Sub": np.subtract, "Tanh": np.tanh, "Where": np.where,
    "Expand": lambda x, shape: x * np.ones(shape.tolist(), dtype=x.dtype),
    "GlobalAveragePool": lambda x: x.mean(axis=tuple(range(2, x.ndim)), keepdims=True),
    "GlobalMaxPool": lambda x: x.max(axis=tuple(range(2, x.ndim)), keepdims=True),
    "HardSwish": lambda x: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0),
    "Max": lambda *xs: np.maximum.reduce(np.broadcast_arrays(*xs)),
    "Min": lambda *xs: np.minimum.reduce(np.broadcast_arrays(*xs)),
    "Mish": lambda x: x * np.tanh(np.logaddexp(0.0, x)),
    "Size": lambda x: np.asarray(x.size, dtype=np.int64),
    "Sum": lambda *xs: np.sum(np.broadcast_arrays(*xs), axis=0),
}  # fmt: skip


def _divide(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array:
    a, b = inputs
    return a / b if a.dtype.kind == "f" else np.trunc(a / b).astype(a.dtype)


def _clip(inputs: Sequence[Array | None], attributes: Attributes, opset: int) -> Array:
    x, low, high = (*inputs, None, None)[:3]
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _prelu(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array:
    x, slope = inputs
    # The slope may not broadcast x, though ONNX Runtime lets it.
    return np.where(x < 0, np.broadcast_to(slope, x.shape) * x, x)


def _gelu(inputs: Sequence[Array], attributes: Attributes, opset: int) -> Array | None:
    x = inputs[0]
    if attributes.get("approximate", b"none") != b"none":
        return None
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


RULES: dict[str, Callable[..., Array | list[Array] | None]] = {
    **{name: (lambda inputs, attributes, opset, f=f: f(*inputs)) for name, f in _PLAIN.items()},
    "AveragePool": _average_pool, "BatchNormalization": _batchnorm, "Cast": _cast, "Clip": _clip, "Constant": _constant,
    "ConstantOfShape": _constant_of_shape, "Conv": _conv, "Div": _divide, "Flatten": _flatten, "Gelu": _gelu, "Gemm": _gemm,
    "MaxPool": _max_pool, "PRelu": _prelu, "ReduceMax": _reduce(np.max), "ReduceMean": _reduce(np.mean),
    "ReduceSum": _reduce(np.sum),
    "Reshape": _reshape, "Shape": _shape, "Slice": _slice, "Softmax": _softmax, "Split": _split, "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": lambda inputs, a, opset: np.concatenate(inputs, axis=a["axis"]),
    "Dropout": lambda inputs, a, opset: inputs[0],
    "Elu": lambda inputs, a, opset: np.where(inputs[0] < 0, a.get("alpha", 1.0) * np.expm1(inputs[0]), inputs[0]),
    "Gather": lambda inputs, a, opset: np.take(inputs[0], inputs[1].astype(int), axis=a.get("axis", 0)),
    "HardSigmoid": lambda inputs, a, opset: np.clip(a.get("alpha", 0.2) * inputs[0] + a.get("beta", 0.5), 0.0, 1.0),
    "LeakyRelu": lambda inputs, a, opset: np.where(inputs[0] < 0, a.get("alpha", 0.01) * inputs[0], inputs[0]),
    "ReduceProd": _reduce(np.prod),
    "Transpose": lambda inputs, a, opset: np.transpose(inputs[0], a.get("perm")),
}  # fmt: skip
