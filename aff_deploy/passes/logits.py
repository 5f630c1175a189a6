"""Backwards from a gate: its logits as a sum of branches.

The logits are ``sum of (factor * branch) + shift``, the factors and the shift being numbers or vectors over
the channels, whatever order the values are in on the way: every step is followed in the layout that the
values have there. Whatever else goes in is refused, even where it cancels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from aff_deploy.passes.algebra import MAX_NODES, scalar
from aff_deploy.passes.axes import MOVERS, Layout, broadcast
from aff_deploy.passes.branch import Branch, Refused, read_branch
from aff_deploy.passes.fold_batchnorm import read_batchnorm
from aff_deploy.passes.forms import Form, Vector, combined
from aff_deploy.passes.graph import is_op, producer
from aff_deploy.passes.linear import Linear, read_weight

MAX_BRANCHES = 4
"""Beyond two, some must differ in their second linear map alone."""

# The logits as tensors with a factor in front of each: a softmax over two is a sigmoid of their difference.
Difference: TypeAlias = "Sequence[tuple[gs.Tensor, float]]"


@dataclass(frozen=True)
class Term:
    """A branch in the logits, what it is multiplied by and what is added: numbers, or vectors over the channels."""

    branch: Branch
    factor: Vector
    shift: Vector = 0.0
    more: tuple[tuple[Linear, Vector], ...] = ()
    """Other linear maps, with their factors, of the same values as the branch's second."""


@dataclass(frozen=True)
class Logits:
    """Branches of one source, local first, the layout of their sum, and the nodes that add them up."""

    terms: tuple[Term, ...]
    layout: Layout
    nodes: tuple[gs.Node, ...] = field(repr=False)


def read_logits(parts: Difference) -> list[Logits]:
    """Every way to read the sum of `parts` as one local and one global branch, or one of them.

    Raises:
        Refused: there is none, and why.
    """
    leaves: dict[str, gs.Tensor] = {}
    nodes: dict[int, gs.Node] = {}
    for tensor, _ in parts:
        if _spread(tensor) is None:
            _collect(tensor, leaves, nodes)
    read = {name: _branches_or_reason(tensor) for name, tensor in leaves.items()}
    good = {name: branches for name, branches in read.items() if not isinstance(branches, Refused)}
    bad = [refusal for refusal in read.values() if isinstance(refusal, Refused)]
    if bad or not good:
        reason = next((r for r in bad if r.near), bad[0]) if bad else Refused("the logits are constant")
        # A gate with no branch at all is somebody else's sigmoid.
        raise Refused(reason.reason, near=bool(good) or _is_product(reason), foreign=reason.foreign and not good)
    if len(good) > MAX_BRANCHES:
        raise Refused(f"the logits are a sum of {len(good)} branches; the operator has one local and one global")
    found: list[Logits] = []
    refused: list[Refused] = []
    for chosen in _choices(good):
        try:
            found.append(_read(parts, chosen, tuple(nodes.values())))
        except Refused as refusal:
            refused.append(refusal)
    if not found:
        # The last choice has the farthest sources, and with them the fewest differences.
        raise refused[-1]
    return found


def _choices(good: Mapping[str, tuple[Branch, ...]]) -> Iterator[Mapping[str, Branch]]:
    """One branch for each name: all of one source, which every name has, the nearest first; then the farthest of all."""
    by_source = [{id(branch.source): branch for branch in branches} for branches in good.values()]
    common = [source for source in by_source[0] if all(source in branches for branches in by_source)]
    for source in common:
        yield {name: branches[source] for name, branches in zip(good, by_source, strict=True)}
    if not common:
        yield {name: branches[-1] for name, branches in good.items()}


def _read(parts: Difference, chosen: Mapping[str, Branch], nodes: tuple[gs.Node, ...]) -> Logits:
    """The logits, each leaf being the branch that was chosen for it."""
    groups = _groups(chosen)
    if len(groups) > 2:
        raise Refused(f"the logits are a sum of {len(groups)} branches; the operator has one local and one global")
    reason = _disagreement([chosen[group[0]] for group in groups])
    if reason:
        raise Refused(reason)
    if len({branch.second.channels_out for branch in chosen.values()}) > 1:
        raise Refused("the branches have different numbers of output channels")
    known = {name: Form(branch.layout, {name: 1.0}) for name, branch in chosen.items()}
    total: Form | None = None
    # Of several parts each has the shape of the others: a number spread over it makes nothing larger.
    shift = sum((_spread(tensor) or 0.0) * factor for tensor, factor in parts)
    for tensor, factor in parts:
        if _spread(tensor) is not None:
            continue
        form = combined(tensor, known).times(factor)
        layout = form.layout if total is None else broadcast(total.layout, form.layout)
        if layout is None:
            raise Refused(f"the logits {tensor.name!r} do not lie as those that they are compared with", near=False)
        total = form if total is None else total.plus(form, layout)
    assert total is not None
    lost = next((name for name in chosen if not np.any(total.factors.get(name, 0.0))), None)
    if lost is not None:
        # It may hold NaN: then t - t is not nothing.
        raise Refused(f"{lost!r} cancels out of the logits, but not where it is NaN or infinite")
    terms: list[Term] = []
    for name, *others in sorted(groups, key=lambda group: chosen[group[0]].kind, reverse=True):
        more = tuple((chosen[other].second, total.factors[other]) for other in others)
        terms.append(Term(chosen[name], total.factors[name], 0.0 if terms else total.shift + shift, more))
    inner = tuple(node for branch in chosen.values() for node in branch.nodes)
    return Logits(tuple(terms), total.layout, (*nodes, *inner))


def _groups(chosen: Mapping[str, Branch]) -> list[list[str]]:
    """The branches' names, those together that differ in the second linear map alone."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, branch in chosen.items():
        activation = branch.activation
        slope = None if activation.slope is None else activation.slope.key
        key = (branch.kind, id(branch.source), branch.first.key, activation.name, activation.alpha, slope)
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def _collect(tensor: gs.Tensor, leaves: dict[str, gs.Tensor], nodes: dict[int, gs.Node]) -> None:
    """The tensors that `tensor` is a sum of, through numbers, vectors and movers, and the nodes between."""
    stack = [tensor]
    while stack:
        tensor = stack.pop()
        node = producer(tensor)
        operands = None if node is None or len(nodes) >= MAX_NODES else _summands(node)
        if node is None or operands is None:
            leaves[tensor.name] = tensor
        elif id(node) not in nodes:
            nodes[id(node)] = node
            stack.extend(reversed(operands))


def _summands(node: gs.Node) -> list[gs.Tensor] | None:
    """What a node adds up that is not constant; None if it does something else."""
    if is_op(node, *MOVERS, "Neg") or read_batchnorm(node) is not None:
        return None if is_number(node.inputs[0]) else [node.inputs[0]]
    if not is_op(node, "Add", "Sub", "Sum", "Mul", "Div"):
        return None
    moving = [tensor for tensor in node.inputs if not is_number(tensor)]
    if not moving or (is_op(node, "Mul", "Div") and len(moving) != 1):
        return None
    return None if is_op(node, "Div") and moving[0] is not node.inputs[0] else moving


def _spread(tensor: gs.Tensor) -> float | None:
    """The number that a tensor is full of, behind whatever only moves it; None if it is full of none."""
    node = producer(tensor)
    while scalar(tensor) is None and node is not None and is_op(node, *MOVERS):
        tensor = node.inputs[0]
        node = producer(tensor)
    return scalar(tensor)


def is_number(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a constant, or a number spread over a shape."""
    return scalar(tensor) is not None or read_weight(tensor) is not None


def _branches_or_reason(tensor: gs.Tensor) -> tuple[Branch, ...] | Refused:
    node = producer(tensor)
    if is_op(node, "Mul") and node is not None:
        factors: dict[str, gs.Tensor] = {}
        for operand in node.inputs:
            _collect(operand, factors, {})
        near = any(not isinstance(_plain_branches(factor), Refused) for factor in factors.values())
        return Refused("the branches are multiplied; the operator adds them", near=near, foreign=not near)
    return _plain_branches(tensor)


def _plain_branches(tensor: gs.Tensor) -> tuple[Branch, ...] | Refused:
    try:
        return read_branch(tensor)
    except Refused as refusal:
        return refusal


def _is_product(refusal: Refused) -> bool:
    return refusal.near and refusal.reason.startswith("the branches are multiplied")


def _disagreement(branches: Sequence[Branch]) -> str:
    """Why two branches do not belong to one fusion; empty if they do."""
    if len(branches) == 1:
        return ""
    one, other = branches
    if one.source is not other.source:
        return f"one branch reads {one.source.name!r}, the other {other.source.name!r}; both must read the same tensor"
    if one.kind == other.kind:
        why = "neither is pooled" if one.kind == "local" else "both are pooled"
        return f"both branches are {one.kind} ({why}); the operator has one local and one global branch"
    if (one.activation.name, one.activation.alpha) != (other.activation.name, other.activation.alpha):
        return f"the branches have different activations, {one.activation.name} and {other.activation.name}"
    return ""
