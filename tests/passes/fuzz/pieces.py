"""What stands around attention in a random graph: layers, arithmetic, shapes, nested graphs, constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from tests.passes.fuzz.builder import Builder
from tests.passes.fuzz.constants import constant_subgraph
from tests.passes.fuzz.nested import branching, looping
from tests.passes.fuzz.nodes import Invalid
from tests.passes.fuzz.spellings import (
    arithmetic,
    batchnorm,
    dimension,
    ints,
    number,
    reshape,
    times,
    transpose,
    unary,
    with_axes,
)


def convolution(b: Builder, x: str) -> str:
    """Conv or ConvTranspose, perhaps between BatchNormalizations."""
    _require(3 <= b.rank(x) <= 5)
    rank, into = b.rank(x) - 2, b.channels(x)
    if b.chance(0.25):
        x = batchnorm(b, x)
        if b.chance(0.2):
            x = b.op("Relu", x)
    group = b.pick(1, 1, 1, into, 2 if into % 2 == 0 else 1)
    size = b.pick(1, 1, 3)
    out = group * b.rng.randint(1, 4) if group < into else into
    out = into if b.chance(0.6) else out
    _require(out % group == 0)
    attributes: dict[str, Any] = {"group": group} if group > 1 else {}
    bias = [b.constant(b.weights(out))] if b.chance(0.5) else []
    if b.chance(0.12) and rank == 2:
        weight = b.weights(into, out // group, *[size] * rank, fan=into)
        y = b.op("ConvTranspose", x, b.constant(weight), *bias, **attributes)
    else:
        if size == 3:
            attributes["pads"] = b.pick([1] * (2 * rank), [0] * (2 * rank), [1] * rank + [0] * rank)
        weight = b.weights(out, into // group, *[size] * rank, fan=into // group * size**rank)
        y = b.op("Conv", x, b.constant(weight), *bias, **attributes)
    return batchnorm(b, y) if b.chance(0.6) else y


def normalisation(b: Builder, x: str) -> str:
    """BatchNormalization wherever a rank allows it, InstanceNormalization, LayerNormalization."""
    _require(b.rank(x) >= 2)
    if b.chance(0.6):
        return batchnorm(b, x)
    if b.chance(0.5) and b.rank(x) >= 3:
        scales = [b.constant(b.numbers.normal(size=b.channels(x))) for _ in range(2)]
        return b.op("InstanceNormalization", x, *scales, epsilon=1e-2)
    _require(b.opset >= 17)
    scales = [b.constant(b.numbers.normal(size=b.shape(x)[-1])) for _ in range(b.rng.randint(1, 2))]
    return b.op("LayerNormalization", x, *scales, axis=-1, epsilon=1e-2)


def linear(b: Builder, x: str) -> str:
    """Flattened, through Gemm or MatMul with BatchNormalization behind."""
    _require(b.rank(x) >= 2)
    flat = x if b.rank(x) == 2 else with_axes(b, "ReduceMean", x, list(range(2, b.rank(x))), keepdims=0)
    into, out = b.channels(flat), b.rng.randint(1, 6)
    weight = b.weights(out, into, fan=into)
    if b.chance(0.5):
        transposed = b.pick(0, 1)
        w = b.constant(weight if transposed else weight.T.copy())
        bias = [b.constant(b.pick(b.weights(out), b.weights(1), b.weights(1, out)))] if b.chance(0.6) else []
        y = b.op("Gemm", flat, w, *bias, transB=transposed, beta=b.pick(1.0, 0.5))
    else:
        y = b.op("MatMul", flat, b.constant(weight.T.copy()))
    return batchnorm(b, y) if b.chance(0.6) else y


def choice(b: Builder, x: str) -> str:
    """Where of x and a function of x; the condition an input, or computed of one."""
    b.note("Where")
    other = unary(b, x) if b.chance(0.5) else arithmetic(b, x)
    if b.chance(0.4) and b.dtype != np.float16:
        condition = b.op("Greater", x, number(b, 0.1, x))
    else:
        shape: list[int | str] = [size if b.chance(0.6) else 1 for size in b.shape(x)]
        condition = b.input(shape, dtype=np.bool_)
        if b.chance(0.3):
            condition = b.op("Not", condition)
    return b.op("Where", condition, *b.rng.sample([x, other], 2))


def gated_choice(b: Builder, x: str) -> str:
    """A gate, moved or not, on both sides of a Where, as decoders of detection heads write it."""
    b.note("Where of a gate")
    gate = b.op(b.pick("Sigmoid", "Tanh", "HardSigmoid"), convolution(b, x) if b.chance(0.5) else x)
    if b.chance(0.6):
        gate = movers(b, gate)
    sides = [
        times(b, gate, 2.0),
        b.op("Mul", gate, gate) if b.chance(0.5) else arithmetic(b, gate),
    ]
    # In half precision a comparison would be near a tie too often.
    exact = b.dtype != np.float16
    condition = b.op("Greater", gate, number(b, 0.5, gate)) if exact else b.input([1], dtype=np.bool_)
    return b.op("Where", condition, *sides)


def movers(b: Builder, x: str) -> str:
    """A short chain of operators that move values."""
    b.note("movers")
    for _ in range(b.rng.randint(1, 4)):
        rank = b.rank(x)
        how = b.rng.randrange(6)
        if how == 0 and rank > 1:
            x = transpose(b, x, b.rng.sample(range(rank), rank))
        elif how == 1 and rank > 1:
            x = b.op("Flatten", x, **b.pick({}, {"axis": b.rng.randint(0, rank)}))
        elif how == 2 and rank < 5:
            x = with_axes(b, "Unsqueeze", x, [b.rng.randint(0, rank)])
        elif how == 3 and 1 in b.shape(x):
            x = with_axes(b, "Squeeze", x, [b.shape(x).index(1)])
        elif how == 4 and rank > 2:
            x = reshape(b, x, x, ["0", -1, *[str(i) for i in range(3, rank)]])
        else:
            x = b.op("Identity", x)
    return x


def shapes(b: Builder, x: str) -> str:
    """Shape arithmetic: flattening, slicing, spreading by computed sizes."""
    b.note("shape arithmetic")
    how, rank = b.rng.randrange(6), b.rank(x)
    _require(rank > 0)
    if how == 0:
        size = dimension(b, x, rank - 1)
        for axis in range(1, rank - 1):
            size = b.op("Mul", size, dimension(b, x, axis))
        return b.op("Reshape", x, b.op("Concat", dimension(b, x, 0), size, axis=0))
    if how == 1:
        spread = b.op("ConstantOfShape", b.op("Shape", x), dtype=np.float32)
        if b.dtype != np.float32:
            spread = b.op("Cast", spread, to=helper.np_dtype_to_tensor_dtype(b.dtype))
        return b.op(b.pick("Add", "Max"), x, spread)
    if how == 2:
        half = b.op("Div", dimension(b, x, rank - 1), ints(b, 2))
        end = b.op("Add", half, ints(b, 1)) if b.chance(0.5) else dimension(b, x, rank - 1)
        return b.op("Slice", x, ints(b, 0), end, ints(b, rank - 1))
    if how == 3:
        start = b.input([1], dtype=np.int64)
        for i in range(len(b.feeds)):
            b.feeds[i][start] = np.asarray([1])
            b.values[i][start] = np.asarray([1])
        b.note("computed Slice of a Shape")
        tail = b.op("Slice", b.op("Shape", x), start, ints(b, rank), ints(b, 0))
        return b.op("Reshape", x, b.op("Concat", dimension(b, x, 0), tail, axis=0))
    if how == 4:
        ones = b.op("Expand", b.constant(np.asarray(1.0)), b.op("Shape", x))
        return b.op("Sub", ones, x)
    order = b.op("Gather", b.op("Shape", x), ints(b, *reversed(range(rank))))
    return b.op("Reshape", transpose(b, x, reversed(range(rank))), order)  # type: ignore[arg-type]


def repeated(b: Builder, x: str) -> str:
    """A node a second time, and the sum of both."""
    nodes = [n for n in b.nodes if len(n.output) == 1 and len(n.input) and n.op_type not in ("If", "Loop")]
    _require(bool(nodes))
    node = b.rng.choice(nodes)
    b.note("repeated node")
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.output[0], copy.name = b.name(), b.name("again")
    b.add(copy, b.dtypes[node.output[0]])
    _require(b.dtypes[node.output[0]] == b.dtypes[x])
    if b.chance(0.5):
        return b.op("Add", node.output[0], copy.output[0])
    return b.op("Concat", node.output[0], copy.output[0], axis=0)


def folded(b: Builder, x: str) -> str:
    """A subgraph of constants, its every value in sight."""
    made = constant_subgraph(b)
    b.note("constant subgraph")
    axes = list(range(b.rank(x)))
    total = with_axes(b, "ReduceMax", x, axes, keepdims=0) if axes else x
    kind = helper.np_dtype_to_tensor_dtype(b.dtypes[x])
    if b.dtypes[made] != b.dtypes[x]:
        made = b.op("Cast", made, to=kind)
    return b.op("Add", made, total)


def rest(b: Builder, x: str) -> str:
    """One of the operators that no pass looks for."""
    rank, how = b.rank(x), b.rng.randrange(7)
    if how == 0 and rank == 4:
        return b.op("Pad", x, ints(b, 0, 0, 1, 0, 0, 0, 0, 1), b.constant(np.asarray(0.0), plain=True))
    if how == 1 and rank > 1:
        ends = ((0, 1), (0, 1000))
        halves = [b.op("Slice", x, ints(b, start), ints(b, end), ints(b, 1)) for start, end in ends]
        return b.op("Concat", *halves, axis=1)
    if how == 2 and rank:
        return b.op(
            "Cast",
            b.op("ArgMax", b.constant(b.numbers.normal(size=(3, 4))), axis=1),
            to=TensorProto.FLOAT,
        )
    if how == 3 and 3 <= rank <= 5:
        return b.op(
            b.pick("MaxPool", "AveragePool"),
            x,
            kernel_shape=[2] * (rank - 2),
            pads=[1] * (2 * rank - 4),
        )
    if how == 4 and rank:
        return b.op("Tile", x, ints(b, *[2 if i == 1 else 1 for i in range(rank)]))
    if how == 5 and rank > 1 and b.channels(x) % 2 == 0 and b.opset < 18:
        return b.op("Sub", *b.ops("Split", 2, x, axis=1))
    _require(rank > 0)
    reduction = b.pick("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2")
    return with_axes(b, reduction, x, [b.rng.randrange(rank)])


PIECES: tuple[Callable[[Builder, str], str], ...] = (
    *(
        convolution,
        convolution,
        normalisation,
        linear,
        unary,
        arithmetic,
        arithmetic,
        choice,
        gated_choice,
        movers,
    ),
    *(shapes, shapes, branching, looping, repeated, folded, folded, rest),
)


def _require(condition: bool) -> None:
    if not condition:
        raise Invalid("the piece does not fit")
