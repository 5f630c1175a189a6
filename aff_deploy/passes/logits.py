"""Backwards from a gate: its logits as a sum of branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import onnx_graphsurgeon as gs

from aff_deploy.passes.algebra import ARITHMETIC, MAX_NODES, ONE, Polynomial, combine, leaf, scalar
from aff_deploy.passes.branch import Branch, Refused, read_branch
from aff_deploy.passes.graph import is_op, producer
from aff_deploy.passes.linear import read_affine


@dataclass(frozen=True)
class Term:
    """A branch in the logits, with the factor in front of it."""

    branch: Branch
    factor: float


@dataclass(frozen=True)
class Logits:
    """Branches of one source with their factors, local first, a constant shift, and the nodes that add them up."""

    terms: tuple[Term, ...]
    shift: float
    nodes: tuple[gs.Node, ...]


def read_logits(z: gs.Tensor) -> list[Logits]:
    """Every way to read `z` as a sum of one local and one global branch, or one of them.

    Raises:
        Refused: there is none, and why.
    """
    expanded = _expand_sum(z, {})
    polynomial, tensors, nodes = expanded.polynomial, expanded.tensors, tuple(expanded.nodes.values())
    many = next((monomial for monomial in polynomial if len(monomial) > 1), None)
    if many is not None:
        near = any(not isinstance(_branches_or_reason(tensors[name]), Refused) for name in many)
        raise Refused("the branches are multiplied; the operator adds them", near=near)
    found = {name[0]: factor for name, factor in polynomial.items() if name != ONE}
    read = [_branches_or_reason(tensors[name]) for name in found]
    good = [branches for branches in read if not isinstance(branches, Refused)]
    bad = [refusal for refusal in read if isinstance(refusal, Refused)]
    if bad or not good:
        # A gate with no branch at all is somebody else's sigmoid.
        raise Refused(bad[0].reason if bad else "the logits are constant", near=bool(good))
    if len(good) > 2:
        raise Refused(f"the logits are a sum of {len(good)} branches; the operator has one local and one global")
    combinations = [[Term(b, f) for b, f in zip(chosen, found.values(), strict=True)] for chosen in product(*good)]
    reasons = [_disagreement([term.branch for term in terms]) for terms in combinations]
    fitting = [terms for terms, reason in zip(combinations, reasons, strict=True) if not reason]
    if not fitting:
        # The last combination has the farthest sources, and with them the fewest differences.
        raise Refused(reasons[-1])
    shift = polynomial.get(ONE, 0.0)
    return [Logits(tuple(sorted(t, key=lambda term: term.branch.kind, reverse=True)), shift, nodes) for t in fitting]


@dataclass(frozen=True)
class _Sum:
    """A tensor as a polynomial, the nodes that make it so, and the tensors it is made of, by name."""

    polynomial: Polynomial
    nodes: Mapping[int, gs.Node]
    tensors: Mapping[str, gs.Tensor]


def _expand_sum(tensor: gs.Tensor, known: dict[str, _Sum], depth: int = 0) -> _Sum:
    """`tensor` expanded through arithmetic down to what arithmetic, or a bias added to it, does not make.

    `known` keeps what has been expanded: in a chain of ``t + t`` there are exponentially many ways to
    the same tensor.
    """
    if tensor.name not in known:
        known[tensor.name] = _expanded(tensor, known, depth) or _Sum(leaf(tensor), {}, {tensor.name: tensor})
    return known[tensor.name]


def _expanded(tensor: gs.Tensor, known: dict[str, _Sum], depth: int) -> _Sum | None:
    node = producer(tensor)
    if node is None or not is_op(node, *ARITHMETIC) or _is_vector_step(node) or scalar(tensor) is not None:
        return None
    if depth >= MAX_NODES:
        return None
    parts: dict[str, _Sum] = {}

    def of(operand: gs.Tensor) -> Polynomial:
        parts[operand.name] = _expand_sum(operand, known, depth + 1)
        return parts[operand.name].polynomial

    polynomial = combine(node, of)
    if polynomial is None:
        return None
    nodes = {id(node): node}
    tensors: dict[str, gs.Tensor] = {}
    for part in parts.values():
        nodes.update(part.nodes)
        tensors.update(part.tensors)
    return _Sum(polynomial, nodes, tensors) if len(nodes) <= MAX_NODES else None


def _is_vector_step(node: gs.Node) -> bool:
    """Whether a node adds or multiplies by a vector, which belongs to the linear map before it."""
    step = read_affine(node)
    return step is not None and any(dim != 1 for dim in step[1].shape)


def _branches_or_reason(tensor: gs.Tensor) -> tuple[Branch, ...] | Refused:
    try:
        return read_branch(tensor)
    except Refused as refusal:
        return refusal


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
    if one.second.channels_out != other.second.channels_out:
        return "the branches have different numbers of output channels"
    return ""
