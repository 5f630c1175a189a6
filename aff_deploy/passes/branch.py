"""One branch of the attention: two linear maps over the channels with an activation between, pooled or not.

    W2 . act(W1 . p(source) + b1) + b2,   p the identity (local) or the global average (global)

Read backwards from the branch's end, then followed forwards to be sure that every value ends up where
a 1x1 convolution would have put it. What does not fit raises `Refused` with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_graphsurgeon as gs

from aff_deploy.ops.operator import Branch as Kind
from aff_deploy.passes.activations import Activation, read_activation
from aff_deploy.passes.algebra import MAX_NODES, is_spread_like, scalar
from aff_deploy.passes.axes import AVERAGES, MOVERS, Layout, follow, layout_of, sum_behind
from aff_deploy.passes.fold_batchnorm import read_batchnorm
from aff_deploy.passes.graph import described, is_absent, is_op, producer
from aff_deploy.passes.linear import LINEAR, Linear, Weight, follow_linear, follows_channels, read_affine, read_linear


class Refused(Exception):
    """Why a candidate is not a member of the family, in words that a person can act on.

    Attributes:
        near: whether the candidate looked enough like a fusion that its owner should hear of it.
        foreign: whether nothing about its logits looked like attention.
    """

    def __init__(self, reason: str, *, near: bool = True, foreign: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.near = near
        self.foreign = foreign


@dataclass(frozen=True)
class Branch:
    """One way to read a branch, how its values lie at its end, and the nodes it consists of."""

    kind: Kind
    source: gs.Tensor
    first: Linear
    second: Linear
    activation: Activation
    layout: Layout
    nodes: tuple[gs.Node, ...] = field(repr=False)


@dataclass(frozen=True)
class _Move:
    """An operator that moves or averages values; a sum that is divided is two."""

    node: gs.Node
    inner: gs.Node | None = None


@dataclass(frozen=True)
class _Affine:
    """Arithmetic with constant vectors; it counts into the linear map before it."""

    node: gs.Node
    vectors: tuple[Weight, ...]


# What was met on the way back.
_Step: TypeAlias = "_Move | _Affine | Linear | Activation"


def read_branch(end: gs.Tensor) -> tuple[Branch, ...]:
    """Every way to read the branch whose last tensor is `end`, the one with the nearest source first.

    The nearest source may be a pooled tensor, read locally, where a farther one is pooled on the way.

    Raises:
        Refused: what was found where something else was expected.
    """
    steps: list[_Step] = []
    second, tensor = _back_to_linear(end, steps, "second")
    tensor = _back_through_movers(tensor, steps)
    activation = read_activation(tensor)
    if activation is None:
        raise _no_activation(tensor)
    steps.append(activation)
    first, tensor = _back_to_linear(_back_through_movers(activation.before, steps), steps, "first")
    if first.channels_out != second.channels_in:
        raise Refused(f"the linear maps of a branch disagree: {first.channels_out} and {second.channels_in} channels")
    found = tuple(_readings(tensor, steps, first, second, activation))
    if not found and layout_of(tensor) is None:
        raise Refused(f"the rank or the number of channels of {tensor.name!r}, which a branch reads, is not known", near=False)
    if not found:
        raise Refused(f"a branch that ends in {end.name!r} mixes axes as no 1x1 convolution does", near=False)
    return found


def _readings(tensor: gs.Tensor, steps: list[_Step], first: Linear, second: Linear, activation: Activation) -> Iterator[Branch]:
    """Try each tensor from the first linear map back through movers and averages as the source."""
    steps = list(steps)
    for _ in range(MAX_NODES):
        layout = _follow_all(layout_of(tensor), steps)
        if layout is not None and layout.kind is not None:
            nodes = tuple(node for step in steps for node in _nodes_of(step))
            yield Branch(layout.kind, tensor, first, second, activation, layout, nodes)
        node = producer(tensor)
        total = None if node is None else sum_behind(node)
        last = node if total is None else total
        if (
            node is None
            or last is None
            or not (total or is_op(node, *MOVERS, *AVERAGES))
            or isinstance(last.inputs[0], gs.Constant)
        ):
            return
        steps.append(_Move(node, total))
        tensor = last.inputs[0]


def _nodes_of(step: _Step) -> tuple[gs.Node, ...]:
    if isinstance(step, Activation):
        return step.nodes
    return (step.node, step.inner) if isinstance(step, _Move) and step.inner is not None else (step.node,)


def _follow_all(layout: Layout | None, steps: list[_Step]) -> Layout | None:
    """The layout at the branch's end, if each step may be followed."""
    for step in reversed(steps):
        if layout is None:
            return None
        if isinstance(step, Linear):
            layout = follow_linear(layout, step)
        elif isinstance(step, Activation):
            layout = layout if _keeps_shape(step, layout) else None
        elif isinstance(step, _Affine):
            layout = layout if all(follows_channels(layout, vector) for vector in step.vectors) else None
        else:
            layout = follow(layout, step.node)
    return layout


def _keeps_shape(activation: Activation, layout: Layout) -> bool:
    """Whether neither the slopes nor a number of the formula make the values that lie so any larger."""
    slope = activation.slope
    if slope is not None:
        return follows_channels(layout, slope)
    numbers = ((node, tensor) for node in activation.nodes for tensor in node.inputs if scalar(tensor) is not None)
    return all(layout.holds(tensor.shape) or is_spread_like(node, tensor) for node, tensor in numbers)


def _back_through_movers(tensor: gs.Tensor, steps: list[_Step]) -> gs.Tensor:
    node = producer(tensor)
    while node is not None and is_op(node, *MOVERS) and len(steps) < MAX_NODES:
        steps.append(_Move(node))
        tensor = node.inputs[0]
        node = producer(tensor)
    return tensor


def _back_to_linear(tensor: gs.Tensor, steps: list[_Step], which: str) -> tuple[Linear, gs.Tensor]:
    """Back through movers and affine steps to the linear map, which is given the affine steps behind it."""
    affine: list[tuple[str, Weight]] = []
    while True:
        tensor = _back_through_movers(tensor, steps)
        node = producer(tensor)
        step = None if node is None else _read_affine(node)
        if node is None or step is None:
            break
        operations, tensor = step
        affine[:0] = operations
        steps.append(_Affine(node, tuple(vector for _, vector in operations)))
    if node is None:
        raise Refused(f"the {which} linear map of a branch is missing: {tensor.name!r} is a graph input", near=False)
    if is_op(node, "BatchNormalization"):
        raise _unfolded(node)
    if not is_op(node, *LINEAR):
        raise Refused(f"a branch has {described(node)} where its {which} 1x1 convolution should be", near=False)
    read = read_linear(node)
    if isinstance(read, str):
        raise Refused(f"{described(node)} in a branch does not fit: {read}")
    linear, before = read
    linear = linear.with_affine(affine)
    steps.append(linear)
    return linear, before


def _read_affine(node: gs.Node) -> tuple[list[tuple[str, Weight]], gs.Tensor] | None:
    """What a node does to a linear map before it, in the words of `Linear.affine`, and the tensor it reads."""
    step = read_affine(node)
    if step is not None:
        operation, weight, tensor = step
        return [(operation, weight)], tensor
    norm, rank = read_batchnorm(node), len(node.inputs[0].shape or ()) if node.inputs else 0
    if norm is None or rank < 2:
        return None
    along = (-1, *[1] * (rank - 2))
    scale, shift = (Weight(gs.Constant("", values.reshape(along))) for values in (norm.scale, norm.shift))
    return [("Mul", scale), ("Add", shift)], node.inputs[0]


def _unfolded(node: gs.Node) -> Refused:
    if node.attrs.get("training_mode", 0) or any(not is_absent(node.outputs, i) for i in range(1, len(node.outputs))):
        return Refused(f"{described(node)} in a branch is in training mode; export the network in eval mode")
    if not all(isinstance(tensor, gs.Constant) for tensor in node.inputs[1:5]):
        return Refused(f"the statistics or weights of {described(node)} in a branch are computed, not constant")
    return Refused(f"{described(node)} in a branch could not be folded: its input has other readers")


def _no_activation(tensor: gs.Tensor) -> Refused:
    node = producer(tensor)
    if node is None or is_op(node, *LINEAR):
        return Refused(f"a branch has no activation before {tensor.name!r}", near=False)
    if is_op(node, "BatchNormalization"):
        return _unfolded(node)
    return Refused(f"the activation {described(node)} in a branch is not supported", near=False)
