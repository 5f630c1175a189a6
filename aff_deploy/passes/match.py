"""The recogniser: reduces an attention subgraph to the canonical form, or says why it cannot.

It starts at a gate w, as a rule a Sigmoid, and works in both directions.

* Backwards: the logits are expanded into a sum of terms, and each term is read as a branch.
* Forwards: every tensor computed from w by arithmetic is expanded into a polynomial in w and other
  tensors. The furthest one that equals ``s (x w + y (1 - w))`` or ``s x w`` is the output.

Nothing is recognised by name, by position or by who exported it. Whatever does not reduce exactly
is left alone, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from aff_deploy.ops.operator import Context
from aff_deploy.passes.activations import Activation
from aff_deploy.passes.algebra import polynomial_in
from aff_deploy.passes.axes import Layout, follow
from aff_deploy.passes.blend import Blend, nodes_between, read_blends, require_no_broadcast, without_gate
from aff_deploy.passes.branch import Refused
from aff_deploy.passes.gates import Gate, Tail, read_gate
from aff_deploy.passes.graph import is_op, output_names, producer
from aff_deploy.passes.logits import Logits, Term, read_logits
from aff_deploy.passes.private import require_private
from aff_deploy.passes.rounding import merge_weights
from aff_deploy.passes.weights import Weight, WeightMaker


@dataclass(frozen=True)
class Site:
    """One canonical fusion found in a graph.

    Attributes:
        gate: what computes w.
        x, y: what is blended; y is None for a gate on x alone.
        a: what the attention looks at.
        context: how `a` relates to x and y, and ``context_factor`` the factor if it is a sum.
        scale: the factor s.
        terms: the branches of the logits, local first; their factors and shifts are in the weights.
        weights: the operator's weights, branch by branch; empty while the site is being chosen.
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
    outputs: tuple[gs.Tensor, ...]
    nodes: tuple[gs.Node, ...] = field(repr=False)
    weights: tuple[Weight, ...] = field(repr=False, default=())

    @property
    def inputs(self) -> tuple[gs.Tensor, ...]:
        """The features that the fused operator will read."""
        return (self.x, *(() if self.y is None else (self.y,)), *((self.a,) if self.context == "explicit" else ()))


def find_sites(graph: gs.Graph) -> Iterator[Site | tuple[gs.Node, str]]:
    """Every fusion in a topologically sorted graph, and every near miss as (gate, reason)."""
    outputs = dict.fromkeys(output_names(graph), "read inside a nested graph (an If, Loop or Scan)")
    outputs |= {tensor.name: "an output of the model; drop that output to fuse" for tensor in graph.outputs}
    order = {id(node): i for i, node in enumerate(graph.nodes)}
    inside: set[int] = set()
    done: set[int] = set()
    told: set[int] = set()
    maker = WeightMaker({})
    for node in graph.nodes:
        gate = None if id(node) in done else read_gate(node, graph.opset)
        if gate is None:
            continue
        try:
            site = _read_site(gate, order, outputs, inside)
            site = replace(site, weights=maker.of(site.terms, site.context_factor, site.x))
            inside |= {id(inner) for inner in site.nodes if all(inner.outputs[0] is not made for made in site.outputs)}
            # A gate's complement is the same gate.
            done |= {id(inner) for inner in site.nodes}
            yield site
        except Refused as refusal:
            if refusal.near and id(node) not in told:
                told |= {id(twin) for twin in gate.twins}
                yield node, refusal.reason


def _read_site(gate: Gate, order: Mapping[int, int], outputs: Mapping[str, str], inside: AbstractSet[int]) -> Site:
    """The site of `gate`; what the nodes `inside` other sites make will be gone.

    Raises:
        Refused: there is none, and why.
    """
    try:
        readings = read_logits(gate.parts)
    except Refused as refusal:
        # A full blend is rare enough outside the family that its owner will want to know.
        full = not (refusal.near or refusal.foreign) and any(ways[0].y is not None for ways in read_blends(gate, order))
        raise Refused(refusal.reason, near=refusal.near or full) from None
    blends = read_blends(gate, order)
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


def _assemble(gate: Gate, logits: Logits, blend: Blend, outputs: Mapping[str, str], inside: AbstractSet[int]) -> Site:
    a = logits.terms[0].branch.source
    context, factor, context_nodes = _read_context(a, blend)
    if blend.y is None and context != "self":
        raise Refused(f"the output is neither x*w + y*(1-w) nor the gate {a.name!r}*w on what the attention looks at")
    if blend.y is None and all(term.branch.kind == "global" for term in logits.terms):
        raise Refused("a global gate on a single input (squeeze and excitation) is not an attentional fusion", near=False)
    blending, tails = nodes_between(blend, gate)
    for tail in tails:
        _require_final(logits, tail)
    require_no_broadcast((*blending, *context_nodes), (blend.x, a))
    nodes = {id(node): node for node in (*gate.nodes, *logits.nodes, *blending, *context_nodes)}
    nodes.update((id(node), node) for tail in tails for node in tail.nodes)
    inputs = [blend.x, *([] if blend.y is None else [blend.y]), *([a] if context == "explicit" else [])]
    for tensor in inputs:
        if id(producer(tensor)) in nodes:
            raise Refused(f"{tensor.name!r} is blended and is also part of the attention", near=False)
        if id(producer(tensor)) in inside:
            raise Refused(f"{tensor.name!r} is inside another fusion")
    shared = without_gate(blending, gate) - {id(node) for node in context_nodes}
    require_private(nodes, blend.outputs, outputs, shared, inputs)
    _require_shapes(logits.terms, blend, a)
    _require_precision(gate, logits.terms[0].branch.activation, blend)
    _require_kernels(nodes.values(), blend.x.dtype)
    if merge_weights(lambda: np.full(1, blend.scale), blend.x.dtype) is None:
        raise Refused(f"the scale {blend.scale} does not fit {blend.x.dtype}")
    return Site(
        gate=gate,
        x=blend.x,
        y=blend.y,
        a=a,
        context=context,
        context_factor=factor,
        scale=blend.scale,
        terms=_gated(logits.terms, gate),
        outputs=blend.outputs,
        nodes=tuple(nodes.values()),
    )


def _require_final(logits: Logits, tail: Tail) -> None:
    """The gate lies as the features do where it meets them."""
    layout: Layout | None = logits.layout
    for node in (*tail.moves, *([] if tail.axis is None else [gs.Node("Squeeze", attrs={"axes": [tail.axis]})])):
        layout = None if layout is None else follow(layout, node)
    pooled = all(term.branch.kind == "global" for term in logits.terms)
    if layout is None or not (layout.is_global if pooled else layout.is_local):
        raise Refused(f"the gate {tail.tensor.name!r} mixes axes as no 1x1 convolution does")


def _gated(terms: tuple[Term, ...], gate: Gate) -> tuple[Term, ...]:
    """The terms with the gate's own factor and, on the first, its shift."""
    shifts = [gate.shift, *[0.0] * (len(terms) - 1)]
    return tuple(
        replace(
            term,
            factor=term.factor * gate.factor,
            shift=term.shift * gate.factor + shift,
            more=tuple((linear, factor * gate.factor) for linear, factor in term.more),
        )
        for term, shift in zip(terms, shifts, strict=True)
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
            factor = next(iter(polynomial.values()))
            # The operator adds before it multiplies: in float16 the sum may overflow where the parts did not.
            overflows = a.dtype == np.float16 and abs(factor) < 1.0 and not _adds(nodes, ends)
            return ("explicit", 1.0, []) if overflows else ("sum", factor, nodes)
    return "explicit", 1.0, []


def _adds(nodes: Iterable[gs.Node], ends: AbstractSet[str]) -> bool:
    return any(is_op(node, "Add", "Sum") and {tensor.name for tensor in node.inputs} == ends for node in nodes)


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


def _require_kernels(nodes: Iterable[gs.Node], dtype: np.dtype[Any] | None) -> None:
    """Whatever ran the graph must run the operator, which convolves: in float64 ONNX Runtime multiplies matrices alone."""
    if dtype == np.float64 and not any(is_op(node, "Conv") for node in nodes):
        raise Refused("its linear maps are matrix products in float64; the operator's convolutions have no float64 kernel")


# Those whose formulas hold a number that is not one of float32's: 1/6, or the root of 1/2.
_ROUNDED = ("HardSigmoid", "HardSwish", "Gelu")


def _require_precision(gate: Gate, activation: Activation, blend: Blend) -> None:
    """The operator's numbers are float32: in a double model those that are rounded would show."""
    if blend.x.dtype != np.float64:
        return
    inexact = [name for name in (str(gate.name), activation.name) if name in _ROUNDED]
    inexact += [f"the number {n}" for n in (blend.scale, activation.alpha) if float(np.float32(n)) != n]
    if inexact:
        raise Refused(f"{inexact[0]} is not exact in float32, the operator's own type for it, and the model is in double")
