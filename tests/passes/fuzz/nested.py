"""Nested graphs that read tensors from outside."""

from __future__ import annotations

import numpy as np
from onnx import helper

from tests.passes.fuzz.builder import Builder
from tests.passes.fuzz.spellings import arithmetic, dimension, noop, times, unary


def branching(b: Builder, x: str) -> str:
    """An If whose branches read tensors from outside."""
    b.note("If")
    if b.chance(0.4):
        condition = b.input([], dtype=np.bool_)
    else:
        condition = b.op("Greater", dimension(b, x, 0, scalar=True), b.constant(np.int64(1)))
    kinds = [b.pick(unary, arithmetic), b.pick(unary, arithmetic, noop)]
    graphs = [b.nested(lambda kind=kind: [kind(b, x)]) for kind in kinds]  # type: ignore[misc]
    node = helper.make_node("If", [condition], [b.name()], then_branch=graphs[0], else_branch=graphs[1])
    b.add(node, b.dtypes[x])
    return node.output[0]


def looping(b: Builder, x: str) -> str:
    """A Loop that carries x and reads another tensor from outside."""
    b.note("Loop")
    other = unary(b, x)
    arguments = [b.name("i"), b.name("cond"), b.name("carried")]
    for i, values in enumerate(b.values):
        values.update(zip(arguments, (np.asarray(0), np.asarray(True), b.values[i][x]), strict=True))
    b.dtypes.update(zip(arguments, (np.dtype(np.int64), np.dtype(np.bool_), b.dtypes[x]), strict=True))

    def body() -> list[str]:
        scaled = times(b, arguments[2], 0.5)
        return [b.op("Identity", arguments[1]), b.op("Add", scaled, other)]

    graph = b.nested(body, arguments)
    count = b.constant(np.asarray(b.rng.randint(1, 3), dtype=np.int64), plain=True)
    node = helper.make_node("Loop", [count, "", x], [b.name()], body=graph)
    b.add(node, b.dtypes[x])
    return node.output[0]
