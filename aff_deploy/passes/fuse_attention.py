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
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from aff_deploy.ops import DOMAIN, TAKES_ALPHA, Variant
from aff_deploy.passes.branch import Branch
from aff_deploy.passes.elsewhere import find_rewritten
from aff_deploy.passes.forms import Vector
from aff_deploy.passes.graph import Array, fresh_name, is_op
from aff_deploy.passes.linear import Linear
from aff_deploy.passes.logits import Term
from aff_deploy.passes.match import Site, find_sites
from aff_deploy.passes.private import twin_in_size

PLUGIN_VERSION = "1"

# Linear maps of the same values, each with its factor.
_Parts: TypeAlias = "tuple[tuple[Linear, Vector], ...]"


@dataclass(frozen=True)
class Rejection:
    """A place that looks like a fusion and is not one, with what to change to make it one."""

    name: str
    reason: str


def find_rejections(graph: gs.Graph) -> tuple[Rejection, ...]:
    """The near misses of a graph that has been fused as far as it goes."""
    graph.toposort()
    misses = [found for found in find_sites(graph) if not isinstance(found, Site)]
    rewritten = list(find_rewritten(graph))
    known = {id(gate) for gate, _ in rewritten}
    misses = rewritten + [(gate, reason) for gate, reason in misses if id(gate) not in known]
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


def _replace(graph: gs.Graph, site: Site, weights: _Weights, name: str) -> None:
    branches = tuple(term.branch.kind for term in site.terms)
    activation = site.terms[0].branch.activation
    variant = Variant(site.context, site.y is not None, branches, activation.name, site.gate.name, split=len(site.outputs) > 1)
    tensors = [site.x] + ([] if site.y is None else [site.y]) + ([site.a] if site.context == "explicit" else [])
    for term in site.terms:
        tensors += weights.of(term, site)
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
    graph.nodes.append(gs.Node(variant.op_type, name, attributes, tensors, list(site.outputs), domain=DOMAIN))


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

    def of(self, term: Term, site: Site) -> list[gs.Tensor]:
        """w1, b1, w2, b2 and, for PRelu, the slopes of a branch."""
        branch = term.branch
        first = ((branch.first, site.context_factor),)
        made = [self._matrix(first, site), self._bias(((branch.first, 1.0),), site, 0.0)]
        second = ((branch.second, term.factor), *term.more)
        made += [self._matrix(second, site), self._bias(second, site, term.shift)]
        if branch.activation.slope is not None:
            made.append(self._slope(branch, site))
        return made

    def _matrix(self, parts: _Parts, site: Site) -> gs.Tensor:
        """The sum of the parts' matrices with their factors, as a convolution has it."""
        ((linear, factor), *more) = parts
        matrix, dtype = linear.constant_weight, site.x.dtype
        shape = (linear.channels_out, linear.channels_in, *[1] * (len(site.x.shape) - 2))
        kept = matrix is not None and matrix.dtype == dtype and tuple(matrix.shape) == shape
        if matrix is not None and kept and not more and np.all(factor == 1.0):
            return matrix
        key = (_key(parts), "w", len(shape), str(dtype))
        return self._make(
            key,
            linear.weight.constant.name,
            dtype,
            lambda: np.sum([part.matrix_and_bias()[0] * np.reshape(by, (-1, 1)) for part, by in parts], axis=0).reshape(shape),
        )

    def _bias(self, parts: _Parts, site: Site, shift: Vector) -> gs.Tensor:
        """Likewise the biases, and the shift."""
        ((linear, factor), *more) = parts
        bias, dtype = linear.constant_bias, site.x.dtype
        if bias is not None and bias.dtype == dtype and not more and np.all(factor == 1.0) and not np.any(shift):
            return bias
        name = f"{linear.weight.constant.name}_bias" if linear.bias is None else linear.bias.constant.name
        key = (_key(parts), "b", np.asarray(shift).tobytes(), str(dtype))
        return self._make(
            key, name, dtype, lambda: np.sum([part.matrix_and_bias()[1] * by for part, by in parts], axis=0) + shift
        )

    def _slope(self, branch: Branch, site: Site) -> gs.Tensor:
        slope = branch.activation.slope
        assert slope is not None
        shape = (branch.first.channels_out, *[1] * (len(site.x.shape) - 2))
        constant = slope.constant
        if not slope.steps and constant.dtype == site.x.dtype and tuple(constant.shape) == shape:
            return constant
        key = (slope.key, "slope", shape, str(site.x.dtype))
        return self._make(
            key, slope.constant.name, site.x.dtype, lambda: np.broadcast_to(slope.values().reshape(-1), shape[0]).reshape(shape)
        )

    def _make(self, key: tuple[object, ...], name: str, dtype: np.dtype[Any], values: Callable[[], Array]) -> gs.Constant:
        if key not in self.made:
            self.made[key] = gs.Constant(fresh_name(name, self.taken), np.ascontiguousarray(values().astype(dtype)))
        return self.made[key]


def _key(parts: _Parts) -> tuple[object, ...]:
    return tuple((linear.key, np.asarray(factor, dtype=np.float64).tobytes()) for linear, factor in parts)
