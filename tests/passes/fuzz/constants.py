"""Subgraphs of constants alone, of as many operators as fold or must not."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from tests.passes.fuzz.builder import Builder
from tests.passes.fuzz.nodes import Invalid
from tests.passes.fuzz.spellings import ints, number, with_axes

_UNARY = """
    Abs Neg Exp Floor Ceil Round Sign Sqrt Sigmoid Tanh Softplus Softsign Erf Relu Sin Cos
    Atan Sinh Elu Selu LeakyRelu ThresholdedRelu Celu HardSigmoid HardSwish Mish Gelu Shrink
    Softmax LogSoftmax Hardmax Identity GlobalAveragePool GlobalMaxPool
    MeanVarianceNormalization LpNormalization Reciprocal Transpose Flatten Det GlobalLpPool
"""
_ALONG = ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "Flatten")
_BINARY = """
    Add Sub Mul Div Pow Max Min Mean Sum PRelu Mod MatMul Gemm Concat Where
"""
_REDUCTIONS = """
    ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSumExp
    ReduceSumSquare ReduceLogSum ArgMax ArgMin
"""


def constant_subgraph(b: Builder) -> str:
    """A tensor of one to four operators on constants."""
    shape = [b.rng.randint(1, 4) for _ in range(b.rng.randint(0, 4))]
    x = b.constant(b.numbers.normal(size=shape) * b.pick(1.0, 1.0, 30.0))
    for _ in range(b.rng.randint(1, 4)):
        try:
            with b.attempt():
                x = _step(b, x)
        except Invalid:
            continue
        if b.dtypes[x].kind != "f":
            return x
    return x


def _step(b: Builder, x: str) -> str:
    how, rank = b.rng.random(), b.rank(x)
    if how < 0.4:
        op = b.pick(*_UNARY.split())
        if op.startswith("Global") and rank < 3:
            raise Invalid("ONNX Runtime pools three axes or more")
        return b.op(op, x, **(_axis(b, rank) if op in _ALONG else {}))
    if how < 0.55:
        return _binary(b, x)
    if how < 0.65 and rank:
        op = b.pick(*_REDUCTIONS.split())
        keep: dict[str, Any] = b.pick({}, {"keepdims": 0})
        if op.startswith("Arg"):
            return b.op(op, x, axis=b.rng.randrange(rank), **keep)
        return with_axes(b, op, x, b.rng.sample(range(rank), b.rng.randint(1, rank)), **keep)
    return _shaped(b, x)


def _axis(b: Builder, rank: int) -> dict[str, Any]:
    return {"axis": b.rng.randrange(-rank, rank)} if rank and b.chance(0.6) else {}


def _binary(b: Builder, x: str) -> str:
    op = b.pick(*_BINARY.split())
    other = number(b, b.pick(2.0, -0.5, 3.0), x)
    if b.chance(0.5):
        other = b.constant(b.numbers.normal(size=b.shape(x)))
    if op == "Concat":
        return b.op(op, x, other, axis=b.rng.randrange(max(b.rank(x), 1)))
    if op == "Where":
        return b.op(op, b.op("Less", x, other), x, other)
    return b.op(op, *b.rng.sample([x, other], 2), **({"fmod": 1} if op == "Mod" else {}))


def _shaped(b: Builder, x: str) -> str:
    rank, shape = b.rank(x), b.shape(x)
    how = b.rng.randrange(18)
    if how == 0:
        return with_axes(b, "Unsqueeze", x, b.rng.sample(range(rank + 2), 2))
    if how == 1 and 1 in shape:
        return with_axes(b, "Squeeze", x, [shape.index(1)])
    if how == 2 and rank:
        return b.op("Reshape", x, ints(b, *b.pick([-1], [1, -1], [0, -1], list(shape[::-1]))))
    if how == 3 and rank:
        return b.op("Expand", x, ints(b, 2, *shape))
    if how == 4 and rank:
        return b.op("Tile", x, ints(b, *[2] * rank))
    if how == 5 and rank:
        return b.op("Gather", x, ints(b, *b.pick([0], [-1, 0], [0, 0])), axis=b.rng.randrange(rank))
    if how == 6 and rank:
        starts, ends = b.pick((0, 1), (-1, -9), (1, 9), (-2, 9))
        return b.op(
            "Slice",
            x,
            ints(b, starts),
            ints(b, ends),
            ints(b, rank - 1),
            ints(b, -1 if ends < -1 else 1),
        )
    if how == 7 and rank:
        return b.op(
            "CumSum",
            x,
            b.constant(np.asarray(rank - 1)),
            **b.pick({}, {"exclusive": 1}, {"reverse": 1}),
        )
    if how == 8:
        return b.op(
            "Cast",
            x,
            to=int(
                b.pick(
                    TensorProto.INT64,
                    TensorProto.FLOAT16,
                    TensorProto.DOUBLE,
                    TensorProto.INT32,
                )
            ),
        )
    if how == 9:
        return b.op("NonZero", x)
    if how == 10:
        return b.op("Shape", x)
    if how == 11:
        return b.op("Size", x)
    if how == 12 and rank == 4:
        return b.op("LRN", x, size=3)
    if how == 13 and rank == 4 and shape[1] % 4 == 0:
        return b.op("DepthToSpace", x, blocksize=2, mode=b.pick("DCR", "CRD"))
    if how == 14 and rank == 2 and b.opset >= 14:
        return b.op("Trilu", x, upper=b.pick(0, 1))
    if how == 15 and rank >= 2:
        scales = [b.constant(b.numbers.normal(size=shape[1])) for _ in range(2)]
        return b.op("InstanceNormalization", x, *scales)
    if how == 16 and rank == 4:
        weight = b.constant(b.numbers.normal(size=(2, shape[1], 1, 1)))
        return b.op("Conv", x, weight)
    if how == 17:
        return b.op("ConstantOfShape", ints(b, 2, 3), dtype=np.float32)
    return b.op("Clip", x, b.constant(np.asarray(-0.5)), b.constant(np.asarray(0.5)))
