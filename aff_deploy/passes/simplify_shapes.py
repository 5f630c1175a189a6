"""Replace computed shapes by numbers where they say no more than that.

Rules:
1. A Reshape with at most one entry that is not a known number, and no -1, takes a constant target
   with -1 there: a valid Reshape leaves no other choice.
2. A shape for Expand or ConstantOfShape whose entries are all known becomes a constant.

Exporters write ``view(n, c, 1, 1)`` as half a dozen operators on shapes; each is a launch or a
synchronisation for somebody.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from aff_deploy.passes.graph import drop_unused, fresh_name, is_absent, is_op, name_counts
from aff_deploy.passes.shapes import shape_entries


def simplify_shapes(graph: gs.Graph) -> int:
    """Apply the rules of this file; returns how many shapes became constants."""
    taken = name_counts(graph.tensors())
    count = 0
    for node in graph.nodes:
        if not is_op(node, "Reshape", "Expand", "ConstantOfShape"):
            continue
        index = 0 if is_op(node, "ConstantOfShape") else 1
        if is_absent(node.inputs, index) or isinstance(node.inputs[index], gs.Constant):
            continue
        target = _constant_target(node, node.inputs[index])
        if target is not None:
            name = fresh_name(f"{node.inputs[index].name}_constant", taken)
            constant = gs.Constant(name, np.asarray(target, dtype=np.int64))
            node.inputs = [constant if i == index else tensor for i, tensor in enumerate(node.inputs)]
            count += 1
    drop_unused(graph)
    return count


def _constant_target(node: gs.Node, shape: gs.Tensor) -> list[int] | None:
    entries = shape_entries(shape)
    if entries is None:
        return None
    unknown = [entry for entry in entries if not isinstance(entry, int)]
    if not unknown:
        return [entry for entry in entries if isinstance(entry, int)]
    if len(unknown) > 1 or not is_op(node, "Reshape") or -1 in entries or 0 in entries:
        return None
    return [entry if isinstance(entry, int) else -1 for entry in entries]
