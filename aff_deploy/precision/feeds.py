"""Tensors under names of their own for those layers that quantisation is to touch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from onnx import ModelProto, NodeProto, helper

from aff_deploy.onnx_file import sorted_nodes
from aff_deploy.precision.wiring import names_of

FEED = "{}/quantised"
# What ONNX Runtime calls what it makes of a weight.
_DERIVED = ("_quantized", "_scale", "_zero_point", "_QuantizeLinear_Output", "_DequantizeLinear_Output")


def channel_axis(node: NodeProto) -> int:
    """The axis of a layer's weight along which its output channels lie."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Conv" or (node.op_type == "Gemm" and transposed) else 1


def separate_readers(model: ModelProto, chosen: Sequence[NodeProto]) -> dict[str, str]:
    """Let the chosen nodes read their activations, and weights that others read too, under names of their own.

    ONNX Runtime rewires every reader of a tensor that it quantises: a residual sum or a gate would get rounded values.

    Returns:
        The tensor behind each new name of an activation.
    """
    graph = model.graph
    taken = names_of(graph)
    fed: dict[str, str] = {}
    feeds: dict[str, str] = {}
    identities = []
    weights: dict[str, list[NodeProto]] = {}
    for node in chosen:
        source = node.input[0]
        if source not in feeds:
            feeds[source] = feed = _unprefixed(FEED.format(source), taken)
            fed[feed] = source
            identities.append(helper.make_node("Identity", [source], [feed], name=feed))
        node.input[0] = feeds[source]
        weights.setdefault(node.input[1], []).append(node)
    readers = Counter(name for node in graph.node for name in node.input)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    for name, nodes in weights.items():
        axes = sorted({channel_axis(node) for node in nodes})
        own = readers[name] == len(nodes) and name not in outputs
        if own and len(axes) == 1 and not any(f"{name}{suffix}" in taken for suffix in _DERIVED):
            continue
        for axis in axes:
            copy = graph.initializer.add()
            copy.CopyFrom(constants[name])
            copy.name = _unprefixed(f"{FEED.format(name)}{axis}", taken)
            for node in nodes:
                if channel_axis(node) == axis:
                    node.input[1] = copy.name
        if own:
            graph.initializer.remove(constants[name])
            # Of old IR versions every initializer is listed as an input too.
            listed = [value for value in graph.input if value.name == name]
            for value in listed:
                graph.input.remove(value)
    graph.node.extend(identities)
    ordered = [NodeProto.FromString(node.SerializeToString()) for node in sorted_nodes(graph)]
    del graph.node[:]
    graph.node.extend(ordered)
    return fed


def _unprefixed(name: str, taken: set[str]) -> str:
    """`name`, lengthened until nothing `taken` begins with it, as names derived from it will; it is added to them."""
    while any(other.startswith(name) for other in taken):
        name += "_"
    taken.add(name)
    return name


def remove_feeds(model: ModelProto, fed: Mapping[str, str]) -> None:
    """Let Q/DQ pairs read the tensors themselves again."""
    graph = model.graph
    kept = [node for node in graph.node if not (node.op_type == "Identity" and node.output[0] in fed)]
    for node in kept:
        for position, name in enumerate(node.input):
            if name in fed:
                node.input[position] = fed[name]
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)
    values = [value for value in graph.value_info if value.name not in fed]
    del graph.value_info[:]
    graph.value_info.extend(values)
