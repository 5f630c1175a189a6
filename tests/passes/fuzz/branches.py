"""Branches of attention in random spellings: two linear maps with an activation between."""

from __future__ import annotations

import math

import numpy as np

from tests.passes.fuzz.builder import Builder
from tests.passes.fuzz.spellings import (
    batchnorm,
    clip,
    dimension,
    noop,
    number,
    reshape,
    times,
    transpose,
    with_axes,
)

MISSES = (
    *("max pool", "mean over one axis", "mean over channels", "wrong count", "padded pool"),
    *(
        "kernel",
        "groups",
        "padding",
        "no activation",
        "channel mix",
        "softplus",
        "shuffled reshape",
    ),
)


def average(b: Builder, x: str, miss: str) -> str:
    """The global average of x, N x C x 1...; some misses are something near it."""
    axes = list(range(2, b.rank(x)))
    size = math.prod(b.shape(x)[2:])
    if miss == "max pool":
        return b.op("GlobalMaxPool", x)
    if miss == "mean over one axis" and len(axes) > 1:
        return with_axes(b, "ReduceMean", x, axes[:1])
    if miss == "mean over channels":
        return with_axes(b, "ReduceMean", x, [1, *axes])
    if miss == "padded pool" and b.fixed(x):
        kernel = [n + 2 for n in b.shape(x)[2:]]
        include = b.pick(0, 1)
        return b.op(
            "AveragePool",
            x,
            kernel_shape=kernel,
            pads=[1] * (2 * len(axes)),
            count_include_pad=include,
        )
    how = b.rng.randrange(8)
    b.note(f"average {how}")
    if how < 2 and b.dtype != np.float64:
        return b.op("GlobalAveragePool", x)
    if how == 2 and b.fixed(x):
        return b.op("AveragePool", x, kernel_shape=list(b.shape(x)[2:]))
    if how == 3 and len(axes) > 1:
        return with_axes(b, "ReduceMean", with_axes(b, "ReduceMean", x, axes[1:]), axes[:1])
    if how == 4:
        count = size + 1 if miss == "wrong count" else size
        total = with_axes(b, "ReduceSum", x, axes)
        if b.chance(0.5):
            return times(b, total, 1.0 / count)
        return b.op("Div", total, number(b, float(count), total))
    if how == 5 and b.dtype == np.float32:
        counts = [dimension(b, x, axis, scalar=True) for axis in axes]
        count = counts[0]
        for other in counts[1:]:
            count = b.op("Mul", count, other)
        return b.op("Div", with_axes(b, "ReduceSum", x, axes), b.op("Cast", count, to=1))
    if how == 6:
        flat = reshape(b, x, x, ["0", b.channels(x), -1])
        mean = with_axes(b, "ReduceMean", flat, [2], keepdims=b.pick(0, 1))
        return reshape(b, mean, x, ["0", b.channels(x), *[1] * len(axes)])
    return with_axes(b, "ReduceMean", x, axes)


def activation(b: Builder, x: str, name: str) -> str:
    """An activation, as one operator or spelled out."""
    if name == "silu":
        return b.op("Mul", *b.rng.sample([x, b.op("Sigmoid", x)], 2))
    if name == "hardswish":
        if b.opset >= 14 and b.chance(0.4):
            return b.op("HardSwish", x)
        if b.chance(0.5):
            return b.op("Mul", x, b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))
        shifted = clip(b, b.op("Add", x, number(b, 3.0, x)), 0.0, 6.0)
        return times(b, b.op("Mul", x, shifted), 1.0 / 6.0)
    if name == "gelu":
        if b.opset >= 20 and b.chance(0.4):
            return b.op("Gelu", x)
        inner = b.op("Erf", times(b, x, math.sqrt(0.5)))
        return times(b, b.op("Mul", x, b.op("Add", inner, number(b, 1.0, inner))), 0.5)
    if name == "mish":
        if b.opset >= 18 and b.chance(0.4):
            return b.op("Mish", x)
        return b.op("Mul", x, b.op("Tanh", b.op("Softplus", x)))
    if name == "relu6":
        return clip(b, x, 0.0, 6.0)
    if name == "prelu":
        shape = [b.channels(x), *[1] * (b.rank(x) - 2)] if b.chance(0.5) else [1]
        values = b.numbers.uniform(0.05, 0.5, size=shape) if b.chance(0.5) else np.full(shape, 0.25)
        return b.op("PRelu", x, b.constant(values))
    if ":" not in name:
        return b.op(name, x)
    op, alpha = name.split(":")
    return b.op(op, x, alpha=float(alpha))


ACTIVATIONS = (
    *(
        "Relu",
        "Relu",
        "Relu",
        "Relu",
        "LeakyRelu",
        "LeakyRelu:0.3",
        "Elu",
        "Elu:0.5",
        "Tanh",
        "Sigmoid",
    ),
    *("silu", "hardswish", "gelu", "mish", "relu6", "prelu"),
)


def branch(b: Builder, source: str, inner: int, out: int, act: str, *, pooled: bool, miss: str) -> str:
    """``W2 act(W1 p(source) + b1) + b2``, N x `out` x positions or, pooled, x 1."""
    b.note("global branch" if pooled else "local branch", f"activation {act}")
    x = average(b, source, miss) if pooled else source
    styles = ["last", "left", "rows"] + ["gemm", "gemm"] * pooled
    if b.dtype != np.float64 or b.chance(0.1):
        styles += ["conv"] * 5 + ["conv1d"]
    style = b.pick(*styles)
    b.note(f"linear {style}")
    rank = b.rank(x)
    if style == "conv":
        return _two(b, x, inner, out, act, miss, _conv)
    if style == "last":
        moved = transpose(b, x, [0, *range(2, rank), 1])
        made = _two(b, moved, inner, out, act, miss, _matmul, channels_last=True)
        return transpose(b, made, [0, rank - 1, *range(1, rank - 1)])
    if style == "gemm":
        flat = b.op("Flatten", x) if b.chance(0.5) else with_axes(b, "Squeeze", x, list(range(2, rank)))
        made = _two(b, flat, inner, out, act, miss, _gemm)
        if b.chance(0.5):
            return with_axes(b, "Unsqueeze", made, list(range(2, rank)))
        return reshape(b, made, made, ["0", out, *[1] * (rank - 2)])
    if style == "rows":
        moved = transpose(b, x, [0, *range(2, rank), 1])
        rows = reshape(b, moved, moved, [-1, b.channels(x)])
        made = _two(b, rows, inner, out, act, miss, _gemm)
        shaped = reshape(b, made, moved, [*[str(i) for i in range(rank - 1)], out])
        if miss == "shuffled reshape":
            return reshape(b, made, x, ["0", out, *[str(i) for i in range(2, rank)]])
        return transpose(b, shaped, [0, rank - 1, *range(1, rank - 1)])
    flat = reshape(b, x, x, ["0", b.channels(x), -1])
    made = _two(b, flat, inner, out, act, miss, _matmul_left if style == "left" else _conv)
    return reshape(b, made, x, ["0", out, *[str(i) for i in range(2, rank)]])


def _two(
    b: Builder,
    x: str,
    inner: int,
    out: int,
    act: str,
    miss: str,
    linear: object,
    *,
    channels_last: bool = False,
) -> str:
    axis = b.rank(x) - 1 if channels_last else 1
    assert callable(linear)
    hidden = _affine(b, linear(b, x, b.shape(x)[axis], inner, miss), axis)
    if b.chance(0.05):
        hidden = noop(b, hidden)
    if miss == "channel mix":
        order = range(b.rank(hidden))[::-1]
        hidden = transpose(b, transpose(b, hidden, order), order)
    if miss == "softplus":
        hidden = b.op("Softplus", hidden)
    elif miss != "no activation":
        hidden = activation(b, hidden, "Relu" if act == "prelu" and axis != 1 else act)
    return _affine(b, linear(b, hidden, inner, out, ""), axis)


def _affine(b: Builder, x: str, axis: int) -> str:
    """What often follows a linear map: BatchNormalization, a vector added or multiplied."""
    if axis == 1 and b.chance(0.35):
        x = batchnorm(b, x)
    if b.chance(0.12):
        b.note("vector arithmetic")
        values = b.weights(b.shape(x)[axis])
        shape = [-1, *[1] * (b.rank(x) - 1 - axis)]
        operation = b.pick("Add", "Add", "Sub", "Mul", "Div")
        if operation == "Div":
            values = np.where(np.abs(values) < 0.1, 0.5, values)
        operands = [x, b.constant(values.reshape(shape))]
        x = b.op(
            operation,
            *(operands[::-1] if operation in ("Add", "Sub") and b.chance(0.5) else operands),
        )
    return x


def _conv(b: Builder, x: str, into: int, out: int, miss: str) -> str:
    rank = b.rank(x) - 2
    kernel, attributes = [1] * rank, {}
    if miss == "kernel":
        kernel, attributes = [3] * rank, {"pads": [1] * (2 * rank)}
    if miss == "padding":
        attributes = {"pads": [0] * (2 * rank - 1) + [1]}
    group = 2 if miss == "groups" and into % 2 == 0 and out % 2 == 0 else 1
    weight = b.constant(b.weights(out, into // group, *kernel, fan=into // group))
    if group > 1 or b.chance(0.3):
        attributes["group"] = group
    bias = [b.constant(b.weights(out) * 0.5)] if b.chance(0.6) else []
    return b.op("Conv", x, weight, *bias, **attributes)


def _matmul(b: Builder, x: str, into: int, out: int, miss: str) -> str:
    if b.chance(0.2):
        weight = b.op("Transpose", b.constant(b.weights(out, into, fan=into)), perm=[1, 0])
    else:
        weight = b.constant(b.weights(out, into, fan=into).T.copy())
    y = b.op("MatMul", x, weight)
    if b.chance(0.6):
        y = b.op("Add", *b.rng.sample([y, b.constant(b.weights(out) * 0.5)], 2))
    return y


def _matmul_left(b: Builder, x: str, into: int, out: int, miss: str) -> str:
    ones = [1] * b.pick(0, 0, 1)
    y = b.op("MatMul", b.constant(b.weights(out, into, fan=into).reshape(*ones, out, into)), x)
    if b.chance(0.5):
        y = b.op("Add", y, b.constant((b.weights(out) * 0.5).reshape(-1, 1)))
    return y


def _gemm(b: Builder, x: str, into: int, out: int, miss: str) -> str:
    if b.chance(0.3):
        return _matmul(b, x, into, out, miss)
    weight, attributes = b.weights(out, into, fan=into), {}
    if b.chance(0.6):
        attributes["transB"] = 1
    if b.chance(0.2):
        attributes |= {"alpha": b.pick(0.5, 2.0), "beta": b.pick(0.5, 2.0, 0.0)}
    bias = b.weights(out) * 0.5
    shaped = bias if b.chance(0.8) else bias[:1] if b.chance(0.5) else bias.reshape(1, -1)
    inputs = [x, b.constant(weight if "transB" in attributes else weight.T.copy())]
    if b.chance(0.8):
        inputs.append(b.constant(shaped))
    return b.op("Gemm", *inputs, **attributes)
