"""Replace each recognised attention subgraph by one call of the fused operator.

The call node says in attributes what it computes: context, branches, activation, scale, channels,
inter_channels, and `site`, the name under which it is reported. `plugin_namespace` and
`plugin_version` let TensorRT's parser find a plugin for it; everybody else expands the function.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TypeAlias

import onnx_graphsurgeon as gs

from aff_deploy.ops import DOMAIN, TAKES_ALPHA, Variant
from aff_deploy.passes.elsewhere import find_rewritten
from aff_deploy.passes.graph import Node, drop_unused, fresh_name, is_op, name_counts, sort_nodes
from aff_deploy.passes.match import Site, find_sites
from aff_deploy.passes.private import twin_in_size
from aff_deploy.passes.weights import NewWeight

PLUGIN_VERSION = "1"

# New constants by the key of their weight.
_Made: TypeAlias = "dict[tuple[object, ...], gs.Constant]"


@dataclass(frozen=True)
class Rejection:
    """A place that looks like a fusion and is not one, with what to change to make it one."""

    name: str
    reason: str


def find_rejections(graph: gs.Graph) -> tuple[Rejection, ...]:
    """The near misses of a graph that has been fused as far as it goes."""
    sort_nodes(graph)
    misses = [found for found in find_sites(graph) if not isinstance(found, Site)]
    rewritten = list(find_rewritten(graph))
    known = {id(gate) for gate, _ in rewritten}
    misses = rewritten + [(gate, reason) for gate, reason in misses if id(gate) not in known]
    return tuple(Rejection(gate.name or gate.outputs[0].name, reason) for gate, reason in misses)


def fuse_attention(graph: gs.Graph) -> int:
    """Fuse every site of the graph; returns how many."""
    sort_nodes(graph)
    sites = [found for found in find_sites(graph) if isinstance(found, Site)]
    taken = name_counts((*graph.tensors(), *(node.name for node in graph.nodes)))
    made: _Made = {}
    for site in sites:
        _replace(graph, site, made, taken, fresh_name(_site_name(site), taken))
    drop_unused(graph)
    sort_nodes(graph)
    return len(sites)


def _site_name(site: Site) -> str:
    """The module path that the branches' weights share, as ``layer3.0.attention``; else that of the gate."""
    names = [linear.weight.constant.name for term in site.terms for linear in (term.branch.first, term.branch.second)]
    paths = [name.split(".")[:-1] for name in names]
    path = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))]
    if len(site.terms) == 1 and len(path) > 1:
        path = path[:-1]
    return ".".join(path) or _scope(site.gate.node.name) or site.gate.node.name or site.gate.output.name


def _scope(node_name: str) -> str:
    """``a.b.0.c`` for the ``/a/a.b/a.b.0/c/Sigmoid`` that the TorchScript exporter writes."""
    path: list[str] = []
    for part in node_name.strip("/").split("/")[:-1]:
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path)


def _replace(graph: gs.Graph, site: Site, made: _Made, taken: dict[str, int], name: str) -> None:
    branches = tuple(term.branch.kind for term in site.terms)
    activation = site.terms[0].branch.activation
    variant = Variant(site.context, site.y is not None, branches, activation.name, site.gate.name, split=len(site.outputs) > 1)
    tensors = [site.x] + ([] if site.y is None else [site.y]) + ([site.a] if site.context == "explicit" else [])
    tensors += [weight if isinstance(weight, gs.Constant) else _constant(weight, made, taken) for weight in site.weights]
    attributes = {
        "site": name,
        "context": _context_word(site),
        "branches": list(branches),
        "activation": activation.name,
        "gate": site.gate.name,
        "scale": float(site.scale),
        "channels": site.terms[0].branch.second.channels_out,
        "inter_channels": site.terms[0].branch.first.channels_out,
        "plugin_namespace": DOMAIN,
        "plugin_version": PLUGIN_VERSION,
    }
    if activation.name in TAKES_ALPHA:
        attributes["alpha"] = activation.alpha
    for node in site.nodes:
        for tensor in node.outputs:
            own = any(tensor is output for output in site.outputs)
            for shape in [reader for reader in tensor.outputs if is_op(reader, "Shape") and not own]:
                twin = twin_in_size(tensor, shape, site.inputs)
                # Without one it serves the inside alone, and goes with it.
                shape.inputs = shape.inputs if twin is None else [twin]
    for output in site.outputs:
        output.inputs.clear()
    graph.nodes.append(Node(variant.op_type, name, attributes, tensors, list(site.outputs), domain=DOMAIN))


def _context_word(site: Site) -> str:
    """``sum``, ``self``, ``concat`` of x and y, or ``explicit``."""
    if site.context == "explicit" and site.y is not None and site.a.inputs:
        maker = site.a.inputs[0]
        if maker.op == "Concat" and [t.name for t in maker.inputs] in ([site.x.name, site.y.name], [site.y.name, site.x.name]):
            return "concat"
    return site.context


def _constant(weight: NewWeight, made: _Made, taken: dict[str, int]) -> gs.Constant:
    if weight.key not in made:
        made[weight.key] = gs.Constant(fresh_name(weight.name, taken), weight.values)
    return made[weight.key]
