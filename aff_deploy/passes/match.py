"""The recogniser: reduces an attention subgraph to the canonical form, or says why it cannot.

It starts at a gate w, a Sigmoid, and works in both directions.

* Backwards: the logits are expanded into a sum of terms, and each term is read as a branch.
* Forwards: every tensor computed from w by arithmetic is expanded into a polynomial in w and other
  tensors. The furthest one that equals ``s (x w + y (1 - w))`` or ``s x w`` is the output.

Nothing is recognised by name, by position or by who exported it. Whatever does not reduce exactly
is left alone, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import onnx_graphsurgeon as gs

from aff_deploy.ops.operator import Context
from aff_deploy.passes.algebra import ARITHMETIC, ONE, Polynomial, combine, expand_scaling, leaf, scalar, substitute
from aff_deploy.passes.branch import Branch, Refused, read_branch
from aff_deploy.passes.graph import is_op, output_names, producer

MAX_CONE = 48
"""Nodes to look at behind a gate; a fusion has fewer than ten."""
MAX_LEAVES = 4
"""Tensors other than w that a blend may be made of before sums among them are taken apart."""


@dataclass(frozen=True)
class Term:
    """A branch in the logits, with the factor in front of it."""

    branch: Branch
    factor: float


@dataclass(frozen=True)
class Site:
    """One canonical fusion found in a graph.

    Attributes:
        gate: the node that computes w.
        x, y: what is blended; y is None for a gate on x alone.
        a: what the attention looks at.
        context: how `a` relates to x and y, and ``context_factor`` the factor if it is a sum.
        scale: the factor s.
        terms: the branches of the logits, local first; their factors belong into W2 and b2.
        output: the tensor that the fused operator will make.
        nodes: what it will replace.
    """

    gate: gs.Node
    x: gs.Tensor
    y: gs.Tensor | None
    a: gs.Tensor
    context: Context
    context_factor: float
    scale: float
    terms: tuple[Term, ...]
    logit_shift: float
    output: gs.Tensor
    nodes: tuple[gs.Node, ...] = field(repr=False)


def find_sites(graph: gs.Graph) -> Iterator[Site | tuple[gs.Node, str]]:
    """Every fusion in a topologically sorted graph, and every near miss as (gate, reason)."""
    outputs = output_names(graph)
    order = {id(node): i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if not is_op(node, "Sigmoid"):
            continue
        try:
            yield _read_site(node, order, outputs)
        except Refused as refusal:
            if refusal.near:
                yield node, refusal.reason


def _read_site(gate: gs.Node, order: Mapping[int, int], outputs: frozenset[str]) -> Site:
    blends = _read_blends(gate.outputs[0], order)
    try:
        logits = _read_logits(gate.inputs[0])
    except Refused as refusal:
        # A full blend is rare enough outside the family that its owner will want to know.
        raise Refused(refusal.reason, near=refusal.near or any(blend.y is not None for blend in blends)) from None
    if not blends:
        raise Refused("what is done with the gate is neither x*w + y*(1-w) nor x*w")
    reasons: list[Refused] = []
    for blend in blends:
        try:
            return _assemble(gate, logits, blend, outputs)
        except Refused as refusal:
            reasons.append(refusal)
    raise reasons[0]


def _assemble(gate: gs.Node, logits: _Logits, blend: _Blend, outputs: frozenset[str]) -> Site:
    a = logits.terms[0].branch.source
    context, factor, context_nodes = _read_context(a, blend)
    if blend.y is None and context != "self":
        raise Refused(f"the gate is on {blend.x.name!r}, but the attention looks at {a.name!r}; a gate must look at what it weights")
    if blend.y is None and all(term.branch.kind == "global" for term in logits.terms):
        raise Refused("a global gate on a single input (squeeze and excitation) is not an attentional fusion", near=False)
    nodes = {id(n): n for n in (gate, *logits.nodes, *_between(blend, gate.outputs[0]), *context_nodes)}
    for term in logits.terms:
        nodes.update((id(n), n) for n in term.branch.nodes)
    inputs = [blend.x, *([] if blend.y is None else [blend.y]), *([a] if context == "explicit" else [])]
    for tensor in inputs:
        if id(producer(tensor)) in nodes:
            raise Refused(f"{tensor.name!r} is blended and is also part of the attention", near=False)
    _require_private(nodes, blend.output, outputs)
    _require_shapes(logits.terms, blend, a)
    return Site(gate, blend.x, blend.y, a, context, factor, blend.scale, logits.terms, logits.shift, blend.output, tuple(nodes.values()))


# ------------------------------------------------------------------------------ backwards: the logits


@dataclass(frozen=True)
class _Logits:
    """Branches with factors, a constant shift, and the nodes that add them up."""

    terms: tuple[Term, ...]
    shift: float
    nodes: tuple[gs.Node, ...]


def _read_logits(z: gs.Tensor) -> _Logits:
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
    kinds = [term.branch.kind for term in terms]
    if len(terms) > 2:
        raise Refused(f"the logits are a sum of {len(terms)} branches; the operator has one local and one global")
    if len(set(kinds)) < len(kinds):
        why = "neither is pooled" if kinds[0] == "local" else "both are pooled"
        raise Refused(f"both branches are {kinds[0]} ({why}); the operator has one local and one global branch")
    _require_agreement(terms)
    return _Logits(tuple(terms), polynomial.get(ONE, 0.0), tuple(nodes))


def _expand_sum(tensor: gs.Tensor, nodes: list[gs.Node], tensors: dict[str, gs.Tensor]) -> Polynomial:
    """`tensor` expanded through arithmetic down to what arithmetic does not make."""
    node = producer(tensor)
    if node is not None and is_op(node, *ARITHMETIC) and scalar(tensor) is None and len(nodes) < MAX_CONE:
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
            raise Refused(
                f"the local branch reads {first.source.name!r}, the global one {branch.source.name!r}; both must read the same tensor"
            )
        if (branch.activation, branch.alpha) != (first.activation, first.alpha):
            raise Refused(f"the branches have different activations, {first.activation} and {branch.activation}")
        if branch.second.channels_out != first.second.channels_out:
            raise Refused("the branches have different numbers of output channels")


# ------------------------------------------------------------------------------ forwards: the blend


@dataclass(frozen=True)
class _Blend:
    """``output = scale * (x w + y (1 - w))``, or without y ``scale * x w``."""

    x: gs.Tensor
    y: gs.Tensor | None
    scale: float
    output: gs.Tensor


def _read_blends(w: gs.Tensor, order: Mapping[int, int]) -> list[_Blend]:
    """Every tensor behind w that is a blend or a gate: blends first, the furthest first."""
    values: dict[str, Polynomial | None] = {w.name: {(w.name,): 1.0}}
    tensors: dict[str, gs.Tensor] = {}

    def value(tensor: gs.Tensor) -> Polynomial | None:
        if tensor.name in values:
            return values[tensor.name]
        _note_tensors(tensor, tensors)
        return expand_scaling(tensor)

    blends: list[_Blend] = []
    for node in _arithmetic_cone(w, order):
        output = node.outputs[0]
        values[output.name] = polynomial = combine(node, value)
        blend = None if polynomial is None else _as_blend(polynomial, w, output, tensors)
        if blend is not None:
            blends.append(blend)
    # The sort is stable and the cone topological: reversed, the furthest comes first.
    return sorted(reversed(blends), key=lambda blend: blend.y is None)


def _arithmetic_cone(w: gs.Tensor, order: Mapping[int, int]) -> list[gs.Node]:
    """Arithmetic nodes that depend on w through arithmetic alone, in topological order."""
    found: dict[int, gs.Node] = {}
    frontier = [w]
    while frontier and len(found) < MAX_CONE:
        for node in frontier.pop(0).outputs:
            if is_op(node, *ARITHMETIC) and id(node) in order and id(node) not in found:
                found[id(node)] = node
                frontier.append(node.outputs[0])
    return sorted(found.values(), key=lambda node: order[id(node)])


def _note_tensors(tensor: gs.Tensor, tensors: dict[str, gs.Tensor]) -> None:
    """Remember the tensor objects that `expand_scaling(tensor)` may name."""
    tensors[tensor.name] = tensor
    node = producer(tensor)
    if is_op(node, "Mul", "Div", "Neg", "Identity") and node is not None:
        for operand in node.inputs:
            if scalar(operand) is None:
                _note_tensors(operand, tensors)


def _as_blend(polynomial: Polynomial, w: gs.Tensor, output: gs.Tensor, tensors: Mapping[str, gs.Tensor]) -> _Blend | None:
    """`polynomial` read as a blend or gate, sums among its leaves taken apart where that helps."""
    names = sorted({name for monomial in polynomial for name in monomial if name != w.name})
    if len(names) > MAX_LEAVES:
        return None
    sums = [name for name in names if is_op(producer(tensors[name]), "Add", "Sub", "Sum")]
    for chosen in (subset for count in range(len(sums) + 1) for subset in combinations(sums, count)):
        inner = dict(tensors)
        expanded = _take_apart(polynomial, chosen, inner)
        roles = None if expanded is None else _roles(expanded, w.name)
        if roles is not None:
            x, y, scale = roles
            return _Blend(inner[x], None if y is None else inner[y], scale, output)
    return None


def _take_apart(polynomial: Polynomial, chosen: Sequence[str], tensors: dict[str, gs.Tensor]) -> Polynomial | None:
    """`polynomial` with each chosen leaf replaced by the sum that makes it; notes the new leaves."""
    for name in chosen:
        node = tensors[name].inputs[0]
        for operand in node.inputs:
            _note_tensors(operand, tensors)
        value = combine(node, expand_scaling)
        expanded = None if value is None else substitute(polynomial, name, value)
        if expanded is None:
            return None
        polynomial = expanded
    return polynomial


def _roles(polynomial: Polynomial, w: str) -> tuple[str, str | None, float] | None:
    """x, y and s if the polynomial is ``s (x w + y (1 - w))`` or ``s x w``."""
    free: dict[str, float] = {}
    weighted: dict[str, float] = {}
    for monomial, coefficient in polynomial.items():
        rest = [name for name in monomial if name != w]
        if len(rest) != 1 or len(monomial) - 1 not in (0, 1):
            return None
        (weighted if len(monomial) == 2 else free)[rest[0]] = coefficient
    if not free and len(weighted) == 1:
        ((x, scale),) = weighted.items()
        return x, None, scale
    if len(free) != 1 or len(weighted) != 2:
        return None
    ((y, scale),) = free.items()
    others = {name: coefficient for name, coefficient in weighted.items() if name != y}
    if len(others) != 1 or weighted.get(y) != -scale:
        return None
    ((x, coefficient),) = others.items()
    return (x, y, scale) if coefficient == scale else None


def _between(blend: _Blend, w: gs.Tensor) -> tuple[gs.Node, ...]:
    """Nodes from the blend's output back to x, y and w; constants and their makers included."""
    ends = {tensor.name for tensor in (blend.x, blend.y, w) if tensor is not None}
    nodes: dict[int, gs.Node] = {}
    stack = [blend.output]
    while stack:
        tensor = stack.pop()
        node = producer(tensor)
        if tensor.name in ends or isinstance(tensor, gs.Constant) or (node is not None and id(node) in nodes):
            continue
        if node is None or len(nodes) > MAX_CONE:
            raise Refused(f"the blend also depends on {tensor.name!r}")
        nodes[id(node)] = node
        stack.extend(tensor for tensor in node.inputs if not tensor.is_empty())
    return tuple(nodes.values())


# ------------------------------------------------------------------------------ both: do they belong together?


def _read_context(a: gs.Tensor, blend: _Blend) -> tuple[Context, float, list[gs.Node]]:
    """How the attention's input relates to what is blended."""
    if blend.y is None:
        return ("self", 1.0, []) if a is blend.x else ("explicit", 1.0, [])
    node = producer(a)
    if node is not None and is_op(node, "Add", "Sum", "Mul", "Div"):
        nodes: list[gs.Node] = []
        ends = {blend.x.name, blend.y.name}
        polynomial = _expand_to(a, ends, nodes)
        if polynomial is not None and set(polynomial) == {(name,) for name in ends} and len(set(polynomial.values())) == 1:
            return "sum", next(iter(polynomial.values())), nodes
    return "explicit", 1.0, []


def _expand_to(tensor: gs.Tensor, ends: set[str], nodes: list[gs.Node]) -> Polynomial | None:
    """`tensor` as a polynomial of the tensors named in `ends`; None if it needs others."""
    if tensor.name in ends or scalar(tensor) is not None:
        return leaf(tensor)
    node = producer(tensor)
    if node is None or not is_op(node, *ARITHMETIC) or len(nodes) > 8:
        return None
    nodes.append(node)
    return combine(node, lambda t: _expand_to(t, ends, nodes))


def _require_private(nodes: Mapping[int, gs.Node], output: gs.Tensor, outputs: frozenset[str]) -> None:
    """Nothing inside may be seen from outside: it would vanish."""
    for node in nodes.values():
        for tensor in node.outputs:
            if tensor is output:
                continue
            if tensor.name in outputs:
                raise Refused(f"the inner tensor {tensor.name!r} is an output of the model; drop that output to fuse")
            reader = next((n for n in tensor.outputs if id(n) not in nodes), None)
            if reader is not None:
                raise Refused(f"the inner tensor {tensor.name!r} is also read by {reader.op} {reader.name!r}, outside the fusion")


def _require_shapes(terms: tuple[Term, ...], blend: _Blend, a: gs.Tensor) -> None:
    """The operator does not broadcast: x, y, a and the output have one shape, but for a's channels."""
    second = terms[0].branch.second
    whole = [tensor for tensor in (blend.x, blend.y, blend.output) if tensor is not None]
    for tensor in (*whole, a):
        if tensor.shape is None or len(tensor.shape) != len(second.weight.shape):
            raise Refused(f"the shape of {tensor.name!r} is {tensor.shape}; as many axes as the attention's convolutions are needed")
        for axis, (mine, other) in enumerate(zip(tensor.shape, blend.x.shape, strict=True)):
            if axis != 1 and isinstance(mine, int) and isinstance(other, int) and mine != other:
                raise Refused(f"{tensor.name!r} and {blend.x.name!r} have different sizes {mine} and {other} on axis {axis}")
    for tensor in whole:
        if tensor.shape[1] != second.channels_out:
            raise Refused(f"{tensor.name!r} has {tensor.shape[1]} channels, the attention {second.channels_out}; it may not broadcast")
    for term in terms:
        if term.branch.first.channels_in != a.shape[1]:
            raise Refused(f"the attention reads {term.branch.first.channels_in} channels, {a.name!r} has {a.shape[1]}")
