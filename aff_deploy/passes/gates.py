"""What may be the gate w: a sigmoid, a tanh read as one, a softmax over two, a hard sigmoid, a clip read as one.

tanh(t) = 2 sigmoid(2 t) - 1
1 / (1 + exp(-t)) = sigmoid(t),  sigmoid(-t) = 1 - sigmoid(t)
softmax(t, u) = (sigmoid(t - u), 1 - sigmoid(t - u))
clip(alpha t + beta, 0, 1) = hardsigmoid(6 alpha t + 6 beta - 3),  hardsigmoid(z) = clip(z / 6 + 1 / 2, 0, 1)
clip(t, low, high) = low + (high - low) hardsigmoid(6 (t - low) / (high - low) - 3)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from aff_deploy.ops.operator import Gate as GateName
from aff_deploy.passes.algebra import ONE, Polynomial, add, constant
from aff_deploy.passes.graph import is_absent, is_op, named_axes, producer, small_value, uniform_value

MAX_MOVES = 8
"""Operators that move w, one behind the other, that are followed."""
MOVES = ("Identity", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Reshape")
SOFTMAX_BY_AXIS = 13
"""The opset from which on Softmax works along one axis."""


@dataclass(frozen=True)
class Tail:
    """A tensor that is a function of w, perhaps moved.

    Attributes:
        tensor: the tensor.
        values: its value as a polynomial in w; of a stack, one for each item.
        axis: along which it is a stack, each item having one there; None if it is none.
        moves: what has moved w from the logits' layout to the tensor's, in order.
        nodes: what makes the tensor from what makes w.
    """

    tensor: gs.Tensor
    values: tuple[Polynomial, ...]
    axis: int | None = None
    moves: tuple[gs.Node, ...] = ()
    nodes: tuple[gs.Node, ...] = ()


@dataclass(frozen=True)
class Gate:
    """A node that makes w, up to an affine map before and behind.

    Attributes:
        node: the operator.
        name: which function w is of its logits.
        factor, shift: the logits are ``factor * t + shift``, t being the sum of `parts`.
        parts: tensors with a factor each.
        tails: what the gate's node, and what only moves its output, make of w, which goes by the output's name.
        nodes: the node and others that make it a gate.
        twins: the nodes that make the gate's complement.
    """

    node: gs.Node
    name: GateName
    factor: float
    shift: float
    parts: tuple[tuple[gs.Tensor, float], ...]
    tails: tuple[Tail, ...]
    nodes: tuple[gs.Node, ...]
    twins: tuple[gs.Node, ...] = ()

    @property
    def output(self) -> gs.Tensor:
        return self.node.outputs[0]


def read_gate(node: gs.Node, opset: int) -> Gate | None:
    """The gate that `node` is, or None."""
    if is_op(node, "Softmax"):
        return _read_softmax(node, opset)
    if is_op(node, "Div", "Reciprocal"):
        return _read_reciprocal(node)
    if not is_op(node, "Sigmoid", "Tanh", "HardSigmoid", "Clip"):
        return None
    if node.op == "Clip":
        return _read_clip(node)
    w = (node.outputs[0].name,)
    if node.op == "Sigmoid":
        return _sigmoid(node)
    if node.op == "Tanh":
        return _gate(node, "Sigmoid", 2.0, 0.0, {w: 2.0, ONE: -1.0})
    alpha, beta = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
    # 1/6 as a float32 is not quite 1/6; a factor that is one up to that is one.
    factor = 6.0 * alpha
    return _gate(node, "HardSigmoid", 1.0 if abs(factor - 1.0) < 1e-6 else factor, 6.0 * beta - 3.0, {w: 1.0})


def _gate(node: gs.Node, name: GateName, factor: float, shift: float, value: Polynomial) -> Gate:
    tails = tuple(_moved(Tail(node.outputs[0], (value,))))
    return Gate(node, name, factor, shift, ((node.inputs[0], 1.0),), tails, (node,))


def _sigmoid(node: gs.Node) -> Gate:
    """With it the sigmoids of the negated logits, which are one minus this one."""
    w = (node.outputs[0].name,)
    gate = _gate(node, "Sigmoid", 1.0, 0.0, {w: 1.0})
    logits, negation = node.inputs[0], producer(node.inputs[0])
    behind: list[tuple[gs.Node, tuple[gs.Node, ...]]] = [
        (other, (negative,)) for negative in logits.outputs if is_op(negative, "Neg") for other in negative.outputs[0].outputs
    ]
    if is_op(negation, "Neg") and negation is not None:
        behind += [(other, ()) for other in negation.inputs[0].outputs]
    others = [(other, makers) for other, makers in behind if is_op(other, "Sigmoid") and other is not node]
    tails = list(gate.tails)
    for other, makers in others:
        tails += _moved(Tail(other.outputs[0], ({ONE: 1.0, w: -1.0},), nodes=(*makers, other)))
    return replace(gate, tails=tuple(tails), twins=tuple(other for other, _ in others))


def _read_reciprocal(node: gs.Node) -> Gate | None:
    """``1 / (1 + exp(-t))``."""
    total = producer(node.inputs[-1])
    if total is None or not is_op(total, "Add") or (is_op(node, "Div") and not _is_one(node.inputs[0])):
        return None
    power = next((maker for tensor in total.inputs if is_op(maker := producer(tensor), "Exp")), None)
    if power is None or not any(_is_one(tensor) for tensor in total.inputs):
        return None
    tails = tuple(_moved(Tail(node.outputs[0], ({(node.outputs[0].name,): 1.0},))))
    return Gate(node, "Sigmoid", 1.0, 0.0, ((power.inputs[0], -1.0),), tails, (node, total, power))


def _is_one(tensor: gs.Tensor) -> bool:
    """Whether a tensor is the number 1, which cannot broadcast anything."""
    return isinstance(tensor, gs.Constant) and tuple(tensor.shape) in ((), (1,)) and uniform_value(tensor) == 1.0


def _read_softmax(node: gs.Node, opset: int) -> Gate | None:
    """A softmax over two stacked tensors, along the axis of the stack."""
    stack, shape = producer(node.inputs[0]), node.inputs[0].shape
    if stack is None or shape is None or not is_op(stack, "Concat") or len(stack.inputs) != 2:
        return None
    rank = len(shape)
    axis = node.attrs.get("axis", 1 if opset < SOFTMAX_BY_AXIS else -1) % rank
    # Before, the softmax was over all axes from this one on.
    if stack.attrs["axis"] % rank != axis or (opset < SOFTMAX_BY_AXIS and axis != rank - 1):
        return None
    if any(tensor.shape is None or len(tensor.shape) != rank or tensor.shape[axis] != 1 for tensor in stack.inputs):
        return None
    w = (node.outputs[0].name,)
    tails = tuple(_moved(Tail(node.outputs[0], ({w: 1.0}, {ONE: 1.0, w: -1.0}), axis)))
    one, other = stack.inputs
    return Gate(node, "Sigmoid", 1.0, 0.0, ((one, 1.0), (other, -1.0)), tails, (node, stack))


def _moved(tail: Tail) -> Iterator[Tail]:
    """The tail, and whatever only moves it, or picks one of a stack."""
    yield tail
    for node in tail.tensor.outputs:
        moved = _moved_by(node, tail) if len(tail.nodes) < MAX_MOVES and node.inputs[0] is tail.tensor else None
        if moved is not None:
            yield from _moved(moved)


def _moved_by(node: gs.Node, tail: Tail) -> Tail | None:
    nodes = (*tail.nodes, node)
    if tail.axis is None:
        return replace(tail, tensor=node.outputs[0], moves=(*tail.moves, node), nodes=nodes) if is_op(node, *MOVES) else None
    rank = len(node.outputs[0].shape or ())
    if is_op(node, "Unsqueeze") and rank:
        added = sorted(int(axis) % rank for axis in named_axes(node) or ())
        axis = next(i for i in range(rank) if i not in added and i - sum(a < i for a in added) == tail.axis) if added else -1
        return None if axis < 0 else replace(tail, tensor=node.outputs[0], axis=axis, moves=(*tail.moves, node), nodes=nodes)
    index = small_value(node.inputs[1], 1) if is_op(node, "Gather") else None
    if index is None or index.ndim or node.attrs.get("axis", 0) % (rank + 1) != tail.axis:
        return None
    squeeze = gs.Node("Squeeze", attrs={"axes": [tail.axis]})
    value = tail.values[int(index)] if -len(tail.values) <= int(index) < len(tail.values) else None
    return None if value is None else Tail(node.outputs[0], (value,), None, (*tail.moves, squeeze), nodes)


def clip_bounds(node: gs.Node) -> tuple[float, float] | None:
    """The bounds of a Clip, if it has two and they are numbers."""
    bounds = [None if is_absent(node.inputs, i) else uniform_value(node.inputs[i]) for i in (1, 2)]
    return None if bounds[0] is None or bounds[1] is None else (bounds[0], bounds[1])


def _read_clip(node: gs.Node) -> Gate | None:
    low, high = clip_bounds(node) or (0.0, 0.0)
    if not low < high:
        return None
    span = high - low
    value = add({(node.outputs[0].name,): span}, constant(low))
    return _gate(node, "HardSigmoid", 6.0 / span, -6.0 * low / span - 3.0, value)
