"""Replace each recognised attention subgraph by one call of the fused operator.

The call node says in attributes what it computes: context, branches, activation, scale, channels,
inter_channels, and `site`, the name under which it is reported. `plugin_namespace` and
`plugin_version` let TensorRT's parser find a plugin for it; everybody else expands the function.

Factors that stand before the branches or the context, and constants added to the logits, go into
the weights, in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import onnx_graphsurgeon as gs

from aff_deploy.ops import DOMAIN, Variant
from aff_deploy.passes.branch import Linear
from aff_deploy.passes.graph import Array, fresh_name
from aff_deploy.passes.logits import Term
from aff_deploy.passes.match import Site, find_sites

PLUGIN_VERSION = "1"


@dataclass(frozen=True)
class Rejection:
    """A place that looks like a fusion and is not one, with what to change to make it one."""

    name: str
    reason: str


def find_rejections(graph: gs.Graph) -> tuple[Rejection, ...]:
    """The near misses of a graph that has been fused as far as it goes."""
    graph.toposort()
    misses = (found for found in find_sites(graph) if not isinstance(found, Site))
    return tuple(Rejection(gate.name or gate.outputs[0].name, reason) for gate, reason in misses)


def fuse_attention(graph: gs.Graph) -> int:
    """Fuse every site of the graph; returns how many."""
    graph.toposort()
    sites = [found for found in find_sites(graph) if isinstance(found, Site)]
    taken = set(graph.tensors()) | {node.name for node in graph.nodes}
    weights = _Weights(taken, {})
    for site in sites:
        _replace(graph, site, weights, fresh_name(_site_name(site), taken))
    graph.cleanup(remove_unused_node_outputs=False)
    graph.toposort()
    return len(sites)


def _site_name(site: Site) -> str:
    """The module path that the branches' weights share, as ``layer3.0.attention``; else that of the gate."""
    names = [linear.weight.name for term in site.terms for linear in (term.branch.first, term.branch.second)]
    paths = [name.split(".")[:-1] for name in names]
    path = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))]
    if len(site.terms) == 1 and len(path) > 1:
        path = path[:-1]
    return ".".join(path) or _scope(site.gate.name) or site.gate.name or site.gate.outputs[0].name


def _scope(node_name: str) -> str:
    """``a.b.0.c`` for the ``/a/a.b/a.b.0/c/Sigmoid`` that the TorchScript exporter writes."""
    path: list[str] = []
    for part in node_name.strip("/").split("/")[:-1]:
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path)


def _replace(graph: gs.Graph, site: Site, weights: _Weights, name: str) -> None:
    branches = tuple(term.branch.kind for term in site.terms)
    activation = site.terms[0].branch.activation
    variant = Variant(site.context, site.y is not None, branches, activation)
    tensors = [site.x] + ([] if site.y is None else [site.y]) + ([site.a] if site.context == "explicit" else [])
    for i, term in enumerate(site.terms):
        shift = site.logit_shift if i == 0 else 0.0
        tensors += weights.of(term, site.context_factor, shift)
    attributes = {
        "site": name,
        "context": _context_word(site),
        "branches": list(branches),
        "activation": activation,
        "scale": float(site.scale),
        "channels": site.terms[0].branch.second.channels_out,
        "inter_channels": site.terms[0].branch.first.channels_out,
        "plugin_namespace": DOMAIN,
        "plugin_version": PLUGIN_VERSION,
    }
    if activation == "LeakyRelu":
        attributes["alpha"] = site.terms[0].branch.alpha
    site.output.inputs.clear()
    graph.nodes.append(gs.Node(variant.op_type, name, attributes, tensors, [site.output], domain=DOMAIN))


def _context_word(site: Site) -> str:
    """``sum``, ``self``, ``concat`` of x and y, or ``explicit``."""
    if site.context == "explicit" and site.y is not None and site.a.inputs:
        maker = site.a.inputs[0]
        if maker.op == "Concat" and [t.name for t in maker.inputs] in ([site.x.name, site.y.name], [site.y.name, site.x.name]):
            return "concat"
    return site.context


@dataclass(frozen=True)
class _Weights:
    """Makes the operator's weight inputs; a weight that needs no change stays the constant it is."""

    taken: set[str]
    made: dict[tuple[object, ...], gs.Constant]

    def of(self, term: Term, context_factor: float, shift: float) -> list[gs.Tensor]:
        first, second = term.branch.first, term.branch.second
        return [
            self._weight(first, context_factor),
            self._bias(first, 1.0, 0.0),
            self._weight(second, term.factor),
            self._bias(second, term.factor, shift),
        ]

    def _weight(self, linear: Linear, factor: float) -> gs.Tensor:
        if factor == 1.0:
            return linear.weight
        key = (id(linear.weight), factor)
        return self._make(key, linear.weight.name, linear, lambda: np.asarray(linear.weight.values, np.float64) * factor)

    def _bias(self, linear: Linear, factor: float, shift: float) -> gs.Tensor:
        if linear.bias is not None and factor == 1.0 and shift == 0.0:
            return linear.bias

        def values() -> Array:
            old = np.zeros(linear.channels_out) if linear.bias is None else np.asarray(linear.bias.values, np.float64)
            return old * factor + shift

        name = f"{linear.weight.name}_bias" if linear.bias is None else linear.bias.name
        return self._make((id(linear.weight), id(linear.bias), factor, shift), name, linear, values)

    def _make(self, key: tuple[object, ...], name: str, like: Linear, values: Callable[[], Array]) -> gs.Constant:
        if key not in self.made:
            self.made[key] = gs.Constant(fresh_name(name, self.taken), values().astype(like.weight.dtype))
        return self.made[key]
