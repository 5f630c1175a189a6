"""Remove what computes nothing: no-ops, repeated nodes, dead nodes.

Rules:
1. Identity, Dropout at inference, Cast to the type its input has, Transpose that keeps the order,
   and pooling with a 1x1 window disappear.
2. Two nodes with the same standard operator, attributes and inputs become one.
3. What no output needs is dropped.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs
from onnx import helper

from aff_deploy.passes.graph import drop_unused, is_absent, is_op, output_names, rank, replace_uses, small_value, sort_nodes

# Each call of these gives something else (Dropout where it is in training mode).
NONDETERMINISTIC = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)


def cleanup(graph: gs.Graph) -> int:
    """Apply the rules of this file until none does anything; returns how many nodes went."""
    before = len(graph.nodes)
    sort_nodes(graph)
    outputs = output_names(graph)
    changed = True
    while changed:
        changed = _remove_noops(graph, outputs) + _merge_repeated(graph, outputs) > 0
        drop_unused(graph)
    return before - len(graph.nodes)


def _remove_noops(graph: gs.Graph, outputs: frozenset[str]) -> int:
    count = 0
    for node in graph.nodes:
        if node.outputs and _is_noop(node) and replace_uses(node.outputs[0], node.inputs[0], outputs):
            node.outputs = []
            count += 1
    return count


def _is_noop(node: gs.Node) -> bool:
    if is_op(node, "Identity"):
        return True
    if is_op(node, "Dropout"):
        training = False if is_absent(node.inputs, 2) else small_value(node.inputs[2])
        return is_absent(node.outputs, 1) and training is not None and not bool(training)
    if is_op(node, "Cast"):
        known = node.inputs[0].dtype
        return known is not None and helper.np_dtype_to_tensor_dtype(known) == node.attrs["to"]
    if is_op(node, "Transpose"):
        order = node.attrs.get("perm")
        return order is not None and list(order) == list(range(rank(node.inputs[0]) or len(order)))
    if is_op(node, "AveragePool", "MaxPool"):
        # With a window of one, the average is the element; padding or ceil_mode would add elements.
        ones = [*node.attrs["kernel_shape"], *node.attrs.get("strides", [1])]
        padded = any(node.attrs.get("pads", [0])) or node.attrs.get("auto_pad", "NOTSET") != "NOTSET"
        return set(ones) == {1} and not padded and is_absent(node.outputs, 1)
    return False


def _merge_repeated(graph: gs.Graph, outputs: frozenset[str]) -> int:
    first: dict[tuple[object, ...], gs.Node] = {}
    count = 0
    for node in graph.nodes:
        key = _key(node)
        if key is None:
            continue
        if key not in first:
            first[key] = node
        elif replace_uses(node.outputs[0], first[key].outputs[0], outputs):
            node.outputs = []
            count += 1
    return count


def _key(node: gs.Node) -> tuple[object, ...] | None:
    """What makes two nodes the same, or None where they may not be merged."""
    # What operators of other domains do, and local functions, is not known here.
    if len(node.outputs) != 1 or node.op in NONDETERMINISTIC or not node.inputs or not is_op(node, node.op):
        return None
    attributes = []
    for name, value in sorted(node.attrs.items()):
        if isinstance(value, (gs.Graph, gs.Tensor, gs.Node.AttributeRef)):
            return None
        attributes.append((name, repr(value)))
    inputs = tuple(None if tensor.is_empty() else id(tensor) for tensor in node.inputs)
    return (node.op, tuple(attributes), inputs)
