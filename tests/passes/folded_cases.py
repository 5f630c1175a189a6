"""Inputs for every operator that folding computes: the edges of each type, and each way to name axes and indices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
from onnx import numpy_helper

from aff_deploy.passes.fold_constants import FOLDED_TYPES
from tests.passes.graphs import Array

DType = np.dtype[Any]
FLOATS = FOLDED_TYPES[:4]


@dataclass(frozen=True)
class Case:
    """A node's inputs, None where one is left out, and its attributes."""

    inputs: tuple[Array | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


Cases = Iterator[Case]


def plain(kind: DType) -> Array:
    """Small numbers of a type, which every other type of its kind has too."""
    numbers = [0, 1, 2, 3, 7, 100] if kind.kind in "u?" else [0, 1, 2, 3, 7, 100, -1, -2, -7]
    halves = [-0.0, 0.5, -0.5, 1.5, -2.5, 3.5] if kind in FLOATS else []
    return np.array([*numbers, *halves], np.float64).astype(kind)


def edges(kind: DType) -> Array:
    """With them the largest, the least and the subnormal ones, infinities and NaN."""
    if kind.kind == "b":
        return plain(kind)
    if kind in FLOATS:
        limits = ml_dtypes.finfo(kind)
        ends = [float(end) for end in (limits.max, limits.min, limits.tiny, float(limits.tiny) / 4)]
        return np.concatenate([plain(kind), np.array([*ends, np.inf, -np.inf, np.nan]).astype(kind)])
    whole = np.iinfo(kind)
    return np.concatenate([plain(kind), np.array([whole.max, whole.min, whole.max - 1], kind)])


def grid(kind: DType, *shape: int) -> Array:
    return np.resize(plain(kind), shape)


def whole(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def _each(kind: DType, _: int) -> Cases:
    values = edges(kind)
    yield from (Case((each,)) for each in (values, values[1].reshape(()), values[:0].reshape(0, 3)))


def _pairs(kind: DType, _: int) -> Cases:
    values = edges(kind)
    yield Case((values[:, None], values[None]))
    yield from (Case((values, values[2])), Case((values[2].reshape(()), values[:0])))


def _quotients(kind: DType, _: int) -> Cases:
    values = edges(kind)
    if kind in FLOATS:
        yield Case((values[:, None], values[None]))
        return
    divisors = values[values != 0]
    yield Case((values[values != values.min()][:, None], divisors[None]))
    yield Case((values[:, None], divisors[divisors != np.array(-1).astype(kind)][None]))
    yield Case((values, np.array(7, kind)))


def _remainders(kind: DType, opset: int) -> Cases:
    for case, fmod in product(_quotients(kind, opset), (1,) if kind in FLOATS else (0, 1)):
        yield Case(case.inputs, {"fmod": fmod})


def _powers(kind: DType, _: int) -> Cases:
    yield Case((edges(kind)[:, None], edges(kind)[None]))


def _several(kind: DType, opset: int) -> Cases:
    yield from _pairs(kind, opset)
    yield from (Case((edges(kind),)), Case((edges(kind), edges(kind)[::-1], edges(kind)[:1])))


def _clip(kind: DType, _: int) -> Cases:
    low, high = (np.array(number).astype(kind) for number in (1, 3))
    yield from (Case((edges(kind), low, high)), Case((edges(kind), high, low)))
    yield from (Case((plain(kind), None, high)), Case((plain(kind), high)), Case((plain(kind),)))


def _where(kind: DType, _: int) -> Cases:
    yield Case((np.array([[True], [False]]), edges(kind), edges(kind)[::-1]))
    yield Case((np.array(True), edges(kind)[:1], edges(kind)))


def _casts(kind: DType, _: int) -> Cases:
    for target in FOLDED_TYPES:
        wraps = kind.kind in "iub" or target.kind == "f" or target in FLOATS
        values = edges(kind) if wraps else np.abs(plain(kind))
        yield Case((values,), {"to": numpy_helper.from_array(np.zeros(1, target)).data_type})


def _casts_like(kind: DType, opset: int) -> Cases:
    for case, target in zip(_casts(kind, opset), FOLDED_TYPES, strict=True):
        yield Case((*case.inputs, np.zeros(1, target)))


def _reshape(kind: DType, opset: int) -> Cases:
    yield from (Case((grid(kind, 2, 3, 4), whole(*to))) for to in ((6, 4), (-1,), (0, -1), (0, 0, 2, 2), (2, 0, -1)))
    yield from (Case((grid(kind, 0, 3), whole(0, 3))), Case((grid(kind, 1), whole())))
    if opset >= 14:
        yield Case((grid(kind, 0, 3), whole(3, 0)), {"allowzero": 1})


def _axes(values: Array, *named: tuple[int, ...], by_input: bool, **attributes: Any) -> Cases:
    for axes in named:
        if by_input:
            yield Case((values, whole(*axes)), attributes)
        else:
            yield Case((values,), {**attributes, "axes": list(axes)})


def _squeeze(kind: DType, opset: int) -> Cases:
    values = grid(kind, 1, 3, 1, 2, 1)
    yield from _axes(values, (0,), (-1,), (0, 2), (2, 0), (-1, 0), (4, 2, 0), by_input=opset >= 13)
    yield Case((values,))


def _unsqueeze(kind: DType, opset: int) -> Cases:
    named = ((0,), (-1,), (1,), (0, 2), (2, 0), (-1, 0), (0, -1), (3, 1), (0, 1, 2))
    yield from _axes(grid(kind, 3, 2), *named, by_input=opset >= 13)
    yield from _axes(grid(kind), (0,), by_input=opset >= 13)


def _reductions(since: int) -> Callable[[DType, int], Cases]:
    def cases(kind: DType, opset: int) -> Cases:
        values = grid(kind, 2, 3, 4)
        for keep in (0, 1):
            yield from _axes(values, (0,), (-1,), (0, 2), (1, -1), (2, 0), by_input=opset >= since, keepdims=keep)
            yield Case((values,), {"keepdims": keep})
        if opset >= since:
            yield from (Case((values, whole()), {"noop_with_empty_axes": 1}), Case((values, whole())))
        yield Case((grid(kind),))

    return cases


def _flatten(kind: DType, _: int) -> Cases:
    yield from (Case((grid(kind, 2, 3, 4),), {"axis": axis}) for axis in range(-3, 4))
    yield from (Case((grid(kind, 5),)), Case((grid(kind),), {"axis": 0}))


def _transpose(kind: DType, _: int) -> Cases:
    yield from (Case((grid(kind, 2, 3, 4),), {"perm": order}) for order in ([2, 0, 1], [0, 1, 2]))
    yield from (Case((grid(kind, 2, 3),)), Case((grid(kind),)))


def _concat(kind: DType, _: int) -> Cases:
    yield from (Case((grid(kind, 2, 3), grid(kind, 2, 1), grid(kind, 2, 0)), {"axis": axis}) for axis in (1, -1))
    yield Case((grid(kind, 3),), {"axis": 0})


def _gather(kind: DType, _: int) -> Cases:
    for axis, index in ((axis, index) for axis in (0, 1, -1) for index in (1, -1, [0, 2], [[0, -1], [1, 1]], [])):
        yield from (Case((grid(kind, 3, 4), np.array(index, t)), {"axis": axis}) for t in (np.int64, np.int32))


def _gather_nd(kind: DType, opset: int) -> Cases:
    for indices in ([[0, 1], [1, -1]], [[1]], [[[0, 1, 2]], [[1, 2, -4]]]):
        yield Case((grid(kind, 2, 3, 4), np.array(indices)))
    if opset >= 12:
        yield Case((grid(kind, 2, 3, 4), whole(0, 1).reshape(2, 1)), {"batch_dims": 1})


FAR = 10**12


def _slice(kind: DType, _: int) -> Cases:
    for starts, ends, *more in (
        ((0,), (2,), (0,)), ((-2,), (FAR,), (1,)), ((-FAR,), (FAR,), (1,), (2,)), ((3,), (-FAR,), (0,), (-1,)),
        ((1, 0), (3, 2)), ((4,), (1,), (-1,), (-2,)), ((2,), (1,), (0,)), ((0, 1), (FAR, FAR), (1, 0), (2, 3)),
        ((0,), (-1,), (-1,)), ((FAR,), (0,), (0,), (-1,)),
    ):  # fmt: skip
        yield Case((grid(kind, 4, 5), *(whole(*numbers) for numbers in (starts, ends, *more))))
    yield Case((grid(kind, 4, 5), *(np.array([number], np.int32) for number in (1, 3, 1))))


def _expand(kind: DType, _: int) -> Cases:
    yield from (Case((grid(kind, 3, 1), whole(*to))) for to in ((3, 4), (2, 1, 4), (1,), (1, 1), (1, 3, 1)))
    yield from (Case((grid(kind), whole(2, 2))), Case((grid(kind), whole())), Case((grid(kind, 1, 3), whole(0, 3))))


def _constant_of_shape(kind: DType, _: int) -> Cases:
    value = numpy_helper.from_array(plain(kind)[2:3], "value")
    yield from (Case((whole(*shape),), {"value": value}) for shape in ((2, 3), (), (0,), (2, 0)))
    yield Case((whole(2),))


def _range(kind: DType, _: int) -> Cases:
    for numbers in ((0, 5, 1), (5, 0, -2), (1, 1, 1), (3, 1, 1), (0, 10, 3), (-7, 8, 4)):
        yield Case(tuple(np.array(number).astype(kind) for number in numbers))


def _non_zero(kind: DType, _: int) -> Cases:
    yield from (Case((values,)) for values in (grid(kind, 3, 4), grid(kind, 0), grid(kind, 5), grid(kind, 2, 1, 3)))


def _trilu(kind: DType, _: int) -> Cases:
    for upper in (0, 1):
        yield Case((grid(kind, 2, 4, 5),), {"upper": upper})
        yield from (Case((grid(kind, 2, 4, 5), np.array(k)), {"upper": upper}) for k in (0, 1, -1, 9, -9))


def _cumsum(kind: DType, _: int) -> Cases:
    for exclusive, reverse in ((0, 0), (0, 1), (1, 0), (1, 1)):
        attributes = {"exclusive": exclusive, "reverse": reverse}
        yield from (Case((grid(kind, 3, 4), np.array(axis, np.int32)), attributes) for axis in (0, 1, -1))


def _scatter_nd(kind: DType, _: int) -> Cases:
    yield Case((grid(kind, 4, 3), whole(1, 3).reshape(2, 1), grid(kind, 2, 3)))
    yield Case((grid(kind, 4, 3), np.array([[0, 1], [-1, 2]]), grid(kind, 2)))


def _matmul(kind: DType, _: int) -> Cases:
    for one, other in (((2, 3), (3, 4)), ((3,), (3, 4)), ((2, 2, 3), (3, 1)), ((3,), (3,))):
        yield Case((grid(kind, *one), grid(kind, *other)))


CASES: dict[str, Callable[[DType, int], Cases]] = {
    **dict.fromkeys(("Abs", "Neg", "Ceil", "Floor", "Round", "Sqrt", "Reciprocal", "Exp", "Log", "Sin", "Cos"), _each),
    **dict.fromkeys(("Not", "IsInf", "IsNaN", "Identity", "Size"), _each),
    **dict.fromkeys(("Add", "Sub", "Mul", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"), _pairs),
    **dict.fromkeys(("And", "Or", "Xor"), _pairs),
    **dict.fromkeys(("Min", "Max", "Sum"), _several),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ReduceL2"), _reductions(18)),
    "ReduceSum": _reductions(13), "Div": _quotients, "Mod": _remainders, "Pow": _powers, "Clip": _clip, "Where": _where,
    "Cast": _casts, "CastLike": _casts_like, "Reshape": _reshape, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Flatten": _flatten, "Transpose": _transpose, "Concat": _concat, "Gather": _gather, "GatherND": _gather_nd,
    "Slice": _slice, "Expand": _expand, "ConstantOfShape": _constant_of_shape, "Range": _range, "NonZero": _non_zero,
    "Trilu": _trilu, "CumSum": _cumsum, "ScatterND": _scatter_nd, "MatMul": _matmul,
}  # fmt: skip
