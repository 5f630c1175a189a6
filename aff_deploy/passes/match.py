"""The recogniser: reduces an attention subgraph to the canonical form, or says why it cannot.

It starts at a gate w, as a rule a Sigmoid, and works in both directions.

* Backwards: the logits are expanded into a sum of terms, and each term is read as a branch.
* Forwards: every tensor computed from w by arithmetic is expanded into a polynomial in w and other
  tensors. The furthest one that equals ``s (x w + y (1 - w))`` or ``s x w`` is the output.

Nothing is recognised by name, by position or by who exported it. Whatever does not reduce exactly
is left alone, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import product

import onnx_graphsurgeon as gs

from aff_deploy.ops.operator import Context
from aff_deploy.passes.algebra import MAX_NODES, polynomial_in
from aff_deploy.passes.blend import Blend, nodes_between, read_blends, require_no_broadcast, without_gate
from aff_deploy.passes.branch import Refused
from aff_deploy.passes.gates import Gate, read_gate
from aff_deploy.passes.graph import is_op, output_names, producer, same_shape
from aff_deploy.passes.logits import Logits, Term, read_logits


@dataclass(frozen=True)
class Site:
    """One canonical fusion found in a graph.

    Attributes:
        gate: what computes w.
        x, y: what is blended; y is None for a gate on x alone.
        a: what the attention looks at.
        context: how `a` relates to x and y, and ``context_factor`` the factor if it is a sum.
        scale: the factor s.
        terms: the branches of the logits, local first.
        logit_factor, logit_shift: what else to do to the logits; like the terms' factors, this
            belongs into W2 and b2.
        outputs: the tensors that the fused operator will make: the blend, or the shares of x and y.
        nodes: what it will replace.
    """

    gate: Gate
    x: gs.Tensor
    y: gs.Tensor | None
    a: gs.Tensor
    context: Context
    context_factor: float
    scale: float
    terms: tuple[Term, ...]
    logit_factor: float
    logit_shift: float
    outputs: tuple[gs.Tensor, ...]
    nodes: tuple[gs.Node, ...] = field(repr=False)


def find_sites(graph: gs.Graph) -> Iterator[Site | tuple[gs.Node, str]]:
    """Every fusion in a topologically sorted graph, and every near miss as (gate, reason)."""
    outputs = output_names(graph)
    order = {id(node): i for i, node in enumerate(graph.nodes)}
    inside: set[int] = set()
    for node in graph.nodes:
        gate = read_gate(node)
        if gate is None:
            continue
        try:
            site = _read_site(gate, order, outputs, inside)
            inside |= {id(inner) for inner in site.nodes if all(inner.outputs[0] is not made for made in site.outputs)}
            yield site
        except Refused as refusal:
            if refusal.near:
                yield node, refusal.reason


def _read_site(gate: Gate, order: Mapping[int, int], outputs: frozenset[str], inside: AbstractSet[int]) -> Site:
    """The site of `gate`; what the nodes `inside` other sites make will be gone.

    Raises:
        Refused: there is none, and why.
    """
    blends = read_blends(gate.output, gate.value, order)
    try:
        readings = read_logits(gate.node.inputs[0])
    except Refused as refusal:
        # A full blend is rare enough outside the family that its owner will want to know.
        raise Refused(refusal.reason, near=refusal.near or any(ways[0].y is not None for ways in blends)) from None
    if not blends:
        # A Clip is as a rule somebody's activation.
        raise Refused("what is done with the gate is neither x*w + y*(1-w) nor x*w", near=not is_op(gate.node, "Clip"))
    reasons: list[Refused] = []
    for ways in blends:
        sites: list[Site] = []
        for logits, blend in product(readings, ways):
            try:
                sites.append(_assemble(gate, logits, blend, outputs, inside))
            except Refused as refusal:
                reasons.append(refusal)
        if sites:
            # With factors taken out of x and y, the context may turn out to be their sum.
            return min(sites, key=lambda site: site.context == "explicit")
    raise reasons[0]


def _assemble(gate: Gate, logits: Logits, blend: Blend, outputs: frozenset[str], inside: AbstractSet[int]) -> Site:
    a = logits.terms[0].branch.source
    context, factor, context_nodes = _read_context(a, blend)
    if blend.y is None and context != "self":
        raise Refused(f"the output is neither x*w + y*(1-w) nor the gate {a.name!r}*w on what the attention looks at")
    if blend.y is None and all(term.branch.kind == "global" for term in logits.terms):
        raise Refused("a global gate on a single input (squeeze and excitation) is not an attentional fusion", near=False)
    blending = nodes_between(blend, gate.output)
    arithmetic = (*logits.nodes, *blending, *context_nodes)
    require_no_broadcast(arithmetic, (blend.x, a))
    nodes = {id(node): node for node in (gate.node, *arithmetic)}
    for term in logits.terms:
        nodes.update((id(n), n) for n in term.branch.nodes)
    inputs = [blend.x, *([] if blend.y is None else [blend.y]), *([a] if context == "explicit" else [])]
    for tensor in inputs:
        if id(producer(tensor)) in nodes:
            raise Refused(f"{tensor.name!r} is blended and is also part of the attention", near=False)
        if id(producer(tensor)) in inside:
            raise Refused(f"{tensor.name!r} is inside another fusion")
    shared = without_gate(blending, gate.output) - {id(node) for node in context_nodes}
    _require_private(nodes, blend.outputs, outputs, shared)
    _require_shapes(logits.terms, blend, a)
    return Site(
        gate=gate,
        x=blend.x,
        y=blend.y,
        a=a,
        context=context,
        context_factor=factor,
        scale=blend.scale,
        terms=logits.terms,
        logit_factor=gate.factor,
        logit_shift=gate.factor * logits.shift + gate.shift,
        outputs=blend.outputs,
        nodes=tuple(nodes.values()),
    )


def _read_context(a: gs.Tensor, blend: Blend) -> tuple[Context, float, list[gs.Node]]:
    """How the attention's input relates to what is blended."""
    if blend.y is None:
        return ("self", 1.0, []) if a is blend.x else ("explicit", 1.0, [])
    node = producer(a)
    if node is not None and is_op(node, "Add", "Sum", "Mul", "Div"):
        nodes: list[gs.Node] = []
        ends = {blend.x.name, blend.y.name}
        polynomial = polynomial_in(a, ends, nodes)
        if polynomial is not None and set(polynomial) == {(name,) for name in ends} and len(set(polynomial.values())) == 1:
            return "sum", next(iter(polynomial.values())), nodes
    return "explicit", 1.0, []


def _require_private(
    nodes: Mapping[int, gs.Node], made: tuple[gs.Tensor, ...], outputs: frozenset[str], shared: AbstractSet[int]
) -> None:
    """Nothing inside may be seen from outside, but for what `shared` nodes make: it would vanish.

    A Shape that x has too may be read off x, and one that only serves the inside may vanish too.
    """
    for node in nodes.values():
        for tensor in node.outputs:
            if any(tensor is own for own in made):
                continue
            if tensor.name in outputs:
                raise Refused(f"the inner tensor {tensor.name!r} is an output of the model; drop that output to fuse")
            readers = (n for n in tensor.outputs if id(n) not in nodes and id(node) not in shared)
            reader = next((n for n in readers if not _reads_size(n, tensor, made[0], nodes, outputs)), None)
            if reader is not None:
                raise Refused(f"the inner tensor {tensor.name!r} is also read by {reader.op} {reader.name!r} outside")


def _reads_size(
    reader: gs.Node, tensor: gs.Tensor, made: gs.Tensor, nodes: Mapping[int, gs.Node], outputs: frozenset[str]
) -> bool:
    """Whether `reader` is a Shape of `tensor` that the fusion's output has too, or that leads nowhere but inside."""
    if not is_op(reader, "Shape"):
        return False
    if same_shape(tensor, made):
        return True
    seen, frontier = {id(reader)}, [reader]
    while frontier and len(seen) <= MAX_NODES:
        for result in frontier.pop().outputs:
            if result.name in outputs:
                return False
            new = [node for node in result.outputs if id(node) not in nodes and id(node) not in seen]
            seen.update(id(node) for node in new)
            frontier.extend(new)
    return not frontier and len(seen) <= MAX_NODES


def _require_shapes(terms: tuple[Term, ...], blend: Blend, a: gs.Tensor) -> None:
    """The operator does not broadcast: x, y, a and the output have one shape, but for a's channels."""
    channels = terms[0].branch.second.channels_out
    whole = [tensor for tensor in (blend.x, blend.y, *blend.outputs) if tensor is not None]
    for tensor in (*whole, a):
        if tensor.shape is None or len(tensor.shape) != len(blend.x.shape or ()):
            raise Refused(f"the shape of {tensor.name!r} is {tensor.shape}, that of {blend.x.name!r} is {blend.x.shape}")
        for axis, (mine, other) in enumerate(zip(tensor.shape, blend.x.shape, strict=True)):
            if axis != 1 and mine != other and (1 in (mine, other) or (isinstance(mine, int) and isinstance(other, int))):
                raise Refused(f"{tensor.name!r} and {blend.x.name!r} have different sizes {mine} and {other} on axis {axis}")
    for tensor in whole:
        if tensor.shape[1] != channels:
            raise Refused(f"{tensor.name!r} has {tensor.shape[1]} channels, the attention {channels}")
