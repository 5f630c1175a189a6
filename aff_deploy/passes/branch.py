"""One branch of the attention: two pointwise linear maps with an activation between, pooled or not.

    W2 . act(W1 . p(source) + b1) + b2,   p the identity (local) or the global average (global)

Read backwards from the branch's end. What does not fit raises `Refused` with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import onnx_graphsurgeon as gs

from aff_deploy.ops.operator import Branch as Kind
from aff_deploy.passes.graph import Array, is_absent, is_op, producer, rank, small_value


class Refused(Exception):
    """Why a candidate is not a member of the family, in words that a person can act on.

    Attributes:
        near: whether the candidate looked enough like a fusion that its owner should hear of it.
    """

    def __init__(self, reason: str, *, near: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.near = near


@dataclass(frozen=True)
class Linear:
    """A 1x1 convolution: weight out x in x 1..., bias out or None."""

    weight: gs.Constant
    bias: gs.Constant | None
    node: gs.Node

    @property
    def channels_out(self) -> int:
        return int(self.weight.shape[0])

    @property
    def channels_in(self) -> int:
        return int(self.weight.shape[1])


@dataclass(frozen=True)
class Branch:
    """A branch that has been read, and the nodes it consists of."""

    kind: Kind
    source: gs.Tensor
    first: Linear
    second: Linear
    activation: str
    alpha: float
    nodes: tuple[gs.Node, ...] = field(repr=False)


def read_branch(end: gs.Tensor) -> Branch:
    """The branch whose last tensor is `end`.

    Raises:
        Refused: what was found where something else was expected.
    """
    second, hidden = _read_linear(end, "second")
    activation, alpha, activation_nodes, before = _read_activation(hidden)
    first, start = _read_linear(before, "first")
    pool = producer(start)
    nodes = [second.node, *activation_nodes, first.node]
    if first.channels_out != second.channels_in:
        raise Refused(f"the two convolutions of a branch disagree: {first.channels_out} and {second.channels_in} channels")
    if pool is not None and is_global_average(pool):
        return Branch("global", pool.inputs[0], first, second, activation, alpha, (*nodes, pool))
    return Branch("local", start, first, second, activation, alpha, tuple(nodes))


def _name(node: gs.Node) -> str:
    return f"{node.op} {node.name!r}" if node.name else node.op


def _read_linear(end: gs.Tensor, which: str) -> tuple[Linear, gs.Tensor]:
    node = producer(end)
    if node is None:
        raise Refused(f"the {which} convolution of a branch is missing: {end.name!r} is a graph input", near=False)
    if not is_op(node, "Conv"):
        if is_op(node, "BatchNormalization"):
            raise _unfolded(node)
        raise Refused(f"a branch has {_name(node)} where its {which} 1x1 convolution should be", near=False)
    weight, bias = node.inputs[1], None if is_absent(node.inputs, 2) else node.inputs[2]
    if not isinstance(weight, gs.Constant) or (bias is not None and not isinstance(bias, gs.Constant)):
        raise Refused(f"the weights of {_name(node)} are computed, not constant")
    _require_pointwise(node, weight)
    return Linear(weight, bias, node), node.inputs[0]


def _require_pointwise(node: gs.Node, weight: gs.Constant) -> None:
    kernel = tuple(weight.shape[2:])
    if any(size != 1 for size in kernel):
        raise Refused(f"{_name(node)} in a branch has a {'x'.join(map(str, kernel))} kernel; the operator needs 1x1")
    if node.attrs.get("group", 1) != 1:
        raise Refused(f"{_name(node)} in a branch has {node.attrs['group']} groups; the operator needs one")
    if any(step != 1 for step in node.attrs.get("strides", ())):
        raise Refused(f"{_name(node)} in a branch has a stride; the operator needs stride 1")
    if any(node.attrs.get("pads", ())):
        raise Refused(f"{_name(node)} in a branch pads its input; the operator needs no padding")


def _read_activation(hidden: gs.Tensor) -> tuple[str, float, tuple[gs.Node, ...], gs.Tensor]:
    """Activation, its slope, its nodes, and the tensor before it."""
    node = producer(hidden)
    if is_op(node, "Relu") and node is not None:
        return "Relu", 0.0, (node,), node.inputs[0]
    if is_op(node, "LeakyRelu") and node is not None:
        return "LeakyRelu", float(node.attrs.get("alpha", 0.01)), (node,), node.inputs[0]
    if is_op(node, "Mul") and node is not None:
        for sigmoid, t in (node.inputs, node.inputs[::-1]):
            gate = producer(sigmoid)
            if is_op(gate, "Sigmoid") and gate is not None and gate.inputs[0] is t:
                return "Silu", 0.0, (node, gate), t
    _no_activation(hidden, node)


def _unfolded(node: gs.Node) -> Refused:
    return Refused(f"{_name(node)} in a branch could not be folded: its input has other readers, or it is in training mode")


def _no_activation(hidden: gs.Tensor, node: gs.Node | None) -> NoReturn:
    if is_op(node, "Conv") or node is None:
        raise Refused(f"a branch has no activation before {hidden.name!r}", near=False)
    if node.op == "BatchNormalization":
        raise _unfolded(node)
    raise Refused(f"the activation {_name(node)} in a branch is not supported", near=False)


def is_global_average(node: gs.Node) -> bool:
    """Whether a node averages all of the spatial axes, each kept with size 1."""
    if is_op(node, "GlobalAveragePool"):
        return True
    dims = rank(node.inputs[0]) if node.inputs else None
    if dims is None or dims < 3:
        return False
    if is_op(node, "ReduceMean"):
        axes = _axes(node)
        keeps = bool(node.attrs.get("keepdims", 1))
        return keeps and axes is not None and sorted(a % dims for a in axes) == list(range(2, dims))
    if is_op(node, "AveragePool"):
        # A window that covers exactly the whole, static, input.
        spatial = list(node.inputs[0].shape[2:])
        padded = any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        return spatial == list(node.attrs["kernel_shape"]) and not padded
    return False


def _axes(node: gs.Node) -> Sequence[int] | None:
    if "axes" in node.attrs:
        return [int(axis) for axis in node.attrs["axes"]]
    value: Array | None = None if is_absent(node.inputs, 1) else small_value(node.inputs[1])
    return None if value is None else [int(axis) for axis in np.atleast_1d(value)]
