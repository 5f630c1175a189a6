"""Tensors stacked along a new axis, item by item: ``stack([x, y]) * stack([w, 1 - w])``, summed or taken apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import onnx_graphsurgeon as gs

from aff_deploy.passes.algebra import ARITHMETIC, Polynomial, add, combine, scalar
from aff_deploy.passes.graph import is_op, named_axes, producer, small_value

MAX_RANK, MAX_ITEMS = 8, 4
STACKING = ("Unsqueeze", "Concat", "ReduceSum", "Gather")


@dataclass(frozen=True)
class Stack:
    """Polynomials, one for each item along `axis` of a tensor of `rank` axes."""

    items: tuple[Polynomial, ...]
    axis: int
    rank: int


Value: TypeAlias = "Polynomial | Stack"


def stacked(node: gs.Node, of: Callable[[gs.Tensor], Value | None]) -> Value | None:
    """The value of what a node makes of stacks, given the values of its inputs; None if it is none."""
    if is_op(node, "Concat"):
        return _stack(node, of)
    if is_op(node, "ReduceSum", "Gather"):
        value = of(node.inputs[0])
        return _taken(node, value) if isinstance(value, Stack) else None
    return _by_item(node, of) if is_op(node, *ARITHMETIC) else None


def stack_nodes(node: gs.Node) -> list[gs.Node]:
    """The node and, if it stacks tensors, those that give each of them the axis."""
    return [node, *(maker for tensor in node.inputs if is_op(node, "Concat") and (maker := producer(tensor)) is not None)]


def _stack(node: gs.Node, of: Callable[[gs.Tensor], Value | None]) -> Stack | None:
    rank = len(node.outputs[0].shape or ())
    makers = [producer(tensor) for tensor in node.inputs]
    if not 0 < rank <= MAX_RANK or not 2 <= len(makers) <= MAX_ITEMS:
        return None
    axis = node.attrs["axis"] % rank
    items: list[Polynomial] = []
    for maker in makers:
        named = named_axes(maker) if maker is not None and is_op(maker, "Unsqueeze") else None
        item = of(maker.inputs[0]) if maker is not None and named is not None and [a % rank for a in named] == [axis] else None
        if item is None or isinstance(item, Stack):
            return None
        items.append(item)
    return Stack(tuple(items), axis, rank)


def _taken(node: gs.Node, stack: Stack) -> Polynomial | None:
    if is_op(node, "ReduceSum"):
        if [axis % stack.rank for axis in named_axes(node) or ()] != [stack.axis] or node.attrs.get("keepdims", 1):
            return None
        total: Polynomial = {}
        for item in stack.items:
            total = add(total, item)
        return total
    index = small_value(node.inputs[1], 1)
    if index is None or index.ndim or node.attrs.get("axis", 0) % stack.rank != stack.axis:
        return None
    return stack.items[int(index)] if -len(stack.items) <= int(index) < len(stack.items) else None


def _by_item(node: gs.Node, of: Callable[[gs.Tensor], Value | None]) -> Stack | None:
    """Arithmetic of stacks of one form and of numbers."""
    values = {tensor.name: of(tensor) for tensor in node.inputs if not tensor.is_empty()}
    stacks = [value for value in values.values() if isinstance(value, Stack)]
    if not stacks or any(
        (s.axis, s.rank, len(s.items)) != (stacks[0].axis, stacks[0].rank, len(stacks[0].items)) for s in stacks
    ):
        return None
    if any(not isinstance(values[t.name], Stack) and scalar(t) is None for t in node.inputs if not t.is_empty()):
        return None
    items: list[Polynomial] = []
    for i in range(len(stacks[0].items)):
        item = combine(node, lambda tensor, i=i: _item(values[tensor.name], i))  # type: ignore[misc]
        if item is None:
            return None
        items.append(item)
    return Stack(tuple(items), stacks[0].axis, stacks[0].rank)


def _item(value: Value | None, index: int) -> Polynomial | None:
    return value.items[index] if isinstance(value, Stack) else value
