"""Backwards from a gate: its logits as a sum of branches."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from aff_deploy.passes.algebra import ARITHMETIC, MAX_NODES, ONE, Polynomial, combine, leaf, scalar
from aff_deploy.passes.branch import Branch, Refused, read_branch
from aff_deploy.passes.graph import is_op, producer


@dataclass(frozen=True)
class Term:
    """A branch in the logits, with the factor in front of it."""

    branch: Branch
    factor: float


@dataclass(frozen=True)
class Logits:
    """Branches with factors, a constant shift, and the nodes that add them up."""

    terms: tuple[Term, ...]
    shift: float
    nodes: tuple[gs.Node, ...]


def read_logits(z: gs.Tensor) -> Logits:
    nodes: list[gs.Node] = []
    tensors: dict[str, gs.Tensor] = {}
    polynomial = _expand_sum(z, nodes, tensors)
    product = next((monomial for monomial in polynomial if len(monomial) > 1), None)
    if product is not None:
        near = any(_is_branch(tensors[name]) for name in product)
        raise Refused("the branches are multiplied; the operator adds them", near=near)
    found = [(tensors[name[0]], factor) for name, factor in polynomial.items() if name != ONE]
    branches = [_branch_or_reason(tensor) for tensor, _ in found]
    good = [branch for branch in branches if isinstance(branch, Branch)]
    bad = [branch for branch in branches if isinstance(branch, Refused)]
    if bad:
        # A gate with no branch at all is somebody else's sigmoid.
        raise Refused(bad[0].reason, near=bool(good))
    if not good:
        raise Refused("the logits are constant", near=False)
    terms = sorted((Term(b, f) for b, (_, f) in zip(good, found, strict=True)), key=lambda t: t.branch.kind, reverse=True)
    if len(terms) > 2:
        raise Refused(f"the logits are a sum of {len(terms)} branches; the operator has one local and one global")
    _require_agreement(terms)
    kinds = [term.branch.kind for term in terms]
    if len(set(kinds)) < len(kinds):
        why = "neither is pooled" if kinds[0] == "local" else "both are pooled"
        raise Refused(f"both branches are {kinds[0]} ({why}); the operator has one local and one global branch")
    return Logits(tuple(terms), polynomial.get(ONE, 0.0), tuple(nodes))


def _expand_sum(tensor: gs.Tensor, nodes: list[gs.Node], tensors: dict[str, gs.Tensor]) -> Polynomial:
    """`tensor` expanded through arithmetic down to what arithmetic does not make."""
    node = producer(tensor)
    if node is not None and is_op(node, *ARITHMETIC) and scalar(tensor) is None and len(nodes) < MAX_NODES:
        mine: list[gs.Node] = [node]
        inner: dict[str, gs.Tensor] = {}
        polynomial = combine(node, lambda t: _expand_sum(t, mine, inner))
        if polynomial is not None:
            nodes.extend(mine)
            tensors.update(inner)
            return polynomial
    tensors[tensor.name] = tensor
    return leaf(tensor)


def _branch_or_reason(tensor: gs.Tensor) -> Branch | Refused:
    try:
        return read_branch(tensor)
    except Refused as refusal:
        return refusal


def _is_branch(tensor: gs.Tensor) -> bool:
    return isinstance(_branch_or_reason(tensor), Branch)


def _require_agreement(terms: list[Term]) -> None:
    first = terms[0].branch
    for term in terms[1:]:
        branch = term.branch
        if branch.source is not first.source:
            sources = f"one branch reads {first.source.name!r}, the other {branch.source.name!r}"
            raise Refused(f"{sources}; both must read the same tensor")
        if (branch.activation, branch.alpha) != (first.activation, first.alpha):
            raise Refused(f"the branches have different activations, {first.activation} and {branch.activation}")
        if branch.second.channels_out != first.second.channels_out:
            raise Refused("the branches have different numbers of output channels")
