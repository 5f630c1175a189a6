"""Blends that stay between x and y, where what is small beside the other must not be lost.

``y + w (x - y)`` rounds relative to the larger of x and y, also where the gate has closed on the
smaller: of x = 1 beside y = 1e7 nothing is left. ``x w + y (1 - w)`` rounds relative to the result,
and costs more (docs/exactness.md has both figures).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from onnx import ModelProto, NodeProto, helper

from aff_deploy.ops import is_fusion
from aff_deploy.passes.functions import BLEND, CONVEX, attach_functions, attributes
from aff_deploy.passes.graph import Array


def make_convex(model: ModelProto, data: Iterable[Mapping[str, Array]] | None = None) -> tuple[int, ModelProto]:
    """A copy of a fused model whose calls blend convexly, and how many of them did not before.

    The calls say so in an attribute, which every later step obeys.

    Args:
        model: as `aff_deploy.passes.functions.attach_functions` left it.
        data: what it is fed, by input name: only calls that lose x on it are changed. None: all.

    Raises:
        ModelError: ONNX Runtime cannot run the model on `data`.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    sites: Container[str] | None = None
    if data is not None:
        from aff_deploy.verify import observe_sites

        sites = {site.name for site in observe_sites(copy, data) if site.loses_x}
    before = len(convex_calls(copy))
    for node in copy.graph.node:
        if _blends(node) and (sites is None or node.name in sites) and attributes(node).get(BLEND) != CONVEX:
            node.attribute.append(helper.make_attribute(BLEND, CONVEX))
    count = len(convex_calls(copy)) - before
    if count:
        attach_functions(copy)
    return count, copy


def convex_calls(model: ModelProto) -> tuple[str, ...]:
    """Names of the calls of the main graph that ask for the convex form."""
    return tuple(node.name for node in model.graph.node if _blends(node) and attributes(node).get(BLEND) == CONVEX)


def _blends(node: NodeProto) -> bool:
    return is_fusion(node.domain, node.op_type) and node.op_type.startswith("AttentionalFusion")
