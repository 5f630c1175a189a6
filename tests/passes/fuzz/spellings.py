"""Operators whose form changes with the opset, and small idioms with several spellings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.passes.fuzz.builder import Builder

_AXES_ARE_INPUT = {"Squeeze": 13, "Unsqueeze": 13, "ReduceSum": 13}
_REDUCE_AXES_ARE_INPUT = 18


def ints(b: Builder, *values: int) -> str:
    return b.constant(np.asarray(values, dtype=np.int64))


def with_axes(b: Builder, op: str, x: str, axes: Sequence[int], **attributes: Any) -> str:
    """Squeeze, Unsqueeze or a reduction over `axes`, some of them counted from the end."""
    rank = b.rank(x) + (len(axes) if op == "Unsqueeze" else 0)
    axes = [axis - rank if b.chance(0.25) else axis for axis in axes]
    if b.opset >= _AXES_ARE_INPUT.get(op, _REDUCE_AXES_ARE_INPUT):
        return b.op(op, x, ints(b, *axes), **attributes)
    return b.op(op, x, axes=list(axes), **attributes)


def clip(b: Builder, x: str, low: float, high: float) -> str:
    return b.op("Clip", x, b.constant(np.asarray(low)), b.constant(np.asarray(high)))


def number(b: Builder, value: float, like: str) -> str:
    """A number beside the tensor `like`: a scalar, of any rank, or spread over a shape."""
    how, rank = b.rng.random(), max(b.rank(like), 1)
    kind = b.dtypes[like]
    if how < 0.6:
        return b.constant(np.asarray(value), kind)
    if how < 0.75:
        return b.constant(np.full([1] * b.rng.randint(1, rank), value), kind)
    if how < 0.8:
        # May broadcast something; the second feed tells.
        dims = [size if b.chance(0.5) else 1 for size in b.shape(like)]
        b.note("full constant")
        return b.constant(np.full(dims, value), kind)
    if how < 0.83:
        b.note("broadcasting constant")
        return b.constant(np.full([b.rng.randint(1, 4), *[1] * (rank - 1)], value), kind)
    if how < 0.93:
        b.note("ConstantOfShape")
        fill = numpy_helper.from_array(np.asarray([value], dtype=kind))
        return b.op("ConstantOfShape", b.op("Shape", like), value=fill, dtype=kind)
    b.note("Expand of a number")
    return b.op("Expand", b.constant(np.asarray(value), kind), b.op("Shape", like))


def add(b: Builder, one: str, other: str) -> str:
    """``one + other``."""
    how = b.rng.random()
    if b.chance(0.5):
        one, other = other, one
    if how < 0.8:
        return b.op("Add", one, other)
    if how < 0.9:
        return b.op("Sum", one, other)
    return b.op("Sub", one, b.op("Neg", other))


def times(b: Builder, x: str, factor: float) -> str:
    """``x * factor`` by a number."""
    if factor == -1.0 and b.chance(0.5):
        return b.op("Neg", x)
    if b.chance(0.25) and factor:
        return b.op("Div", x, number(b, 1.0 / factor, x))
    operands = [x, number(b, factor, x)]
    b.rng.shuffle(operands)
    return b.op("Mul", *operands)


def complement(b: Builder, w: str, whole: float = 1.0) -> str:
    """``whole - w``."""
    one = number(b, whole, w)
    if b.chance(0.75):
        return b.op("Sub", one, w)
    return b.op("Add", *b.rng.sample([one, b.op("Neg", w)], 2))


def dimension(b: Builder, x: str, axis: int, *, scalar: bool = False) -> str:
    """The size of one axis, computed."""
    shape = b.op("Shape", x)
    b.note("computed dimension")
    if scalar:
        return b.op("Gather", shape, b.constant(np.asarray(axis, dtype=np.int64)))
    how = b.rng.randrange(4)
    if how == 0:
        return b.op("Gather", shape, ints(b, axis))
    if how == 1:
        return b.op(
            "Slice",
            shape,
            ints(b, axis),
            ints(b, axis + 1),
            *([ints(b, 0)] if b.chance(0.5) else []),
        )
    if how == 2 and b.opset >= 15:
        return b.op("Shape", x, start=axis, end=axis + 1)
    return with_axes(b, "Unsqueeze", dimension(b, x, axis, scalar=True), [0])


def reshape(b: Builder, x: str, like: str, axes: Sequence[int | str]) -> str:
    """Reshape to sizes, written as numbers, zeros, -1 or computed.

    Args:
        axes: numbers, or ``"k"`` for the size of axis k of `like`.
    """
    sizes = [b.shape(like)[int(axis)] if isinstance(axis, str) else axis for axis in axes]
    shape = b.shape(x)
    how = b.rng.random()
    if how < 0.25 and b.fixed(like) and -1 not in sizes:
        return b.op("Reshape", x, ints(b, *sizes))
    if how < 0.6:
        named = [isinstance(axis, str) for axis in axes]
        # A zero keeps the size of the same axis.
        kept = [named[i] and int(axes[i]) == i and shape[i : i + 1] == (sizes[i],) for i in range(len(sizes))]
        parts = [0 if kept[i] else size for i, size in enumerate(sizes)]
        open_ = [i for i, part in enumerate(parts) if part and named[i]]
        if len(open_) == 1 and -1 not in parts:
            parts[open_[0]] = -1
        return b.op("Reshape", x, ints(b, *parts))
    entries = [dimension(b, like, int(axis)) if isinstance(axis, str) else ints(b, axis) for axis in axes]
    if b.chance(0.15):
        b.note("shape through int32")
        target = b.op("Concat", *[b.op("Cast", e, to=int(TensorProto.INT32)) for e in entries], axis=0)
        return b.op("Reshape", x, b.op("Cast", target, to=int(TensorProto.INT64)))
    return b.op("Reshape", x, b.op("Concat", *entries, axis=0))


def transpose(b: Builder, x: str, order: Sequence[int]) -> str:
    return b.op("Transpose", x, perm=list(order))


def batchnorm(b: Builder, x: str) -> str:
    """BatchNormalization over axis 1, with statistics of any kind."""
    channels = b.channels(x)
    gamma, beta, mean = (b.numbers.normal(size=channels) for _ in range(3))
    var = b.numbers.uniform(0.2, 3.0, size=channels)
    if b.extreme and b.chance(0.5):
        b.note("extreme BatchNormalization")
        var *= 10.0 ** b.numbers.uniform(-6, 4, size=channels)
        gamma *= 10.0 ** b.numbers.uniform(-4, 1, size=channels)
    if b.chance(0.1):
        gamma[0] = 0.0
    b.note("BatchNormalization")
    statistics = [b.constant(v) for v in (gamma, beta, mean, np.maximum(var, 1e-6))]
    attributes = {"epsilon": b.pick(1e-5, 1e-3)} if b.chance(0.6) else {}
    return b.op("BatchNormalization", x, *statistics, **attributes)


def noop(b: Builder, x: str) -> str:
    """A node that computes nothing."""
    how = b.rng.randrange(5)
    if how == 0 and b.opset >= 12:
        return b.op("Dropout", x)
    if how == 1:
        return b.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(b.dtypes[x]))
    if how == 2:
        return transpose(b, x, range(b.rank(x)))
    if how == 3 and 3 <= b.rank(x) <= 4 and b.dtypes[x] == np.float32:
        return b.op(b.pick("MaxPool", "AveragePool"), x, kernel_shape=[1] * (b.rank(x) - 2))
    return b.op("Identity", x)


def unary(b: Builder, x: str) -> str:
    if b.chance(0.2):
        return noop(b, x)
    op = b.pick(
        "Relu",
        "Tanh",
        "Sigmoid",
        "Neg",
        "Abs",
        "Softplus",
        "LeakyRelu",
        "HardSigmoid",
        "Elu",
        "Softmax",
    )
    if op == "Softmax":
        return b.op(op, x, **b.pick({}, {"axis": 1}, {"axis": b.rank(x) - 1}))
    return b.op(op, x)


def arithmetic(b: Builder, x: str) -> str:
    """With a number, or a constant that broadcasts over some of the axes."""
    if b.chance(0.4):
        return times(b, x, b.pick(-1.0, 0.5, 2.0, 3.0, 0.1))
    rank = b.rng.randint(0, b.rank(x))
    dims = [size if b.chance(0.5) else 1 for size in b.shape(x)[b.rank(x) - rank :]]
    operands = [x, b.constant(b.numbers.normal(size=dims))]
    return b.op(b.pick("Add", "Mul", "Sub", "Max"), *(operands[::-1] if b.chance(0.3) else operands))
