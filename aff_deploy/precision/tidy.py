"""Casts in their place: none that undoes another, none unread, and half precision at the model's ends where asked."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import GraphProto, NodeProto, TensorProto

from aff_deploy.precision.wiring import reads, rename_reads, replace_nodes

_NARROWED = "_cast_to_fp16"
"""What the converter appends to the name of an fp32 tensor; the plain name goes to its float16 copy."""


def cast_target(node: NodeProto) -> int:
    """The element type that a Cast casts to; 0 of any other node."""
    return next((a.i for a in node.attribute if a.name == "to"), 0) if node.op_type == "Cast" and not node.domain else 0


def without_round_trips(graph: GraphProto) -> None:
    """Let what is cast from fp32 to float16 and back be read where it comes from; drop casts that nobody reads.

    Between two nodes kept in fp32 the way through float16 would overflow.
    """
    elements = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    outputs = {value.name for value in graph.output}
    nodes = list(graph.node)
    makers = {out: node for node in nodes for out in node.output}
    sources: dict[str, str] = {}
    for node in nodes:
        narrowing = makers.get(node.input[0]) if cast_target(node) == TensorProto.FLOAT else None
        if narrowing is None or cast_target(narrowing) != TensorProto.FLOAT16:
            continue
        source = narrowing.input[0]
        if elements.get(source) != TensorProto.FLOAT:
            continue
        if node.output[0] in outputs:
            del node.attribute[:]
            node.op_type, node.input[0] = "Identity", source
        else:
            sources[node.output[0]] = source
    for node in nodes:
        rename_reads(node, sources)
    nodes = _read(nodes, outputs)
    renamed = _merged_identities(nodes, outputs) | _plain_names(nodes, outputs)
    for node in nodes:
        for i, name in enumerate(node.output):
            node.output[i] = renamed.get(name, name)
        rename_reads(node, renamed)
    _note(graph, nodes, renamed)
    replace_nodes(graph, (node for node in nodes if node.op_type != "Identity" or node.input[0] != node.output[0]))


def _read(nodes: Iterable[NodeProto], outputs: set[str]) -> list[NodeProto]:
    """All but the casts that nobody reads."""
    kept = list(nodes)
    while True:
        wanted = outputs | {name for node in kept for name in reads(node)}
        left = [node for node in kept if not cast_target(node) or node.output[0] in wanted]
        if len(left) == len(kept):
            return left
        kept = left


def _merged_identities(nodes: Iterable[NodeProto], outputs: set[str]) -> dict[str, str]:
    """Tensors that are better called by the name of the output that an Identity makes of them."""
    made = {out for node in nodes for out in node.output}
    renamed: dict[str, str] = {}
    for node in nodes:
        if node.op_type == "Identity" and node.output[0] in outputs and node.input[0].endswith(_NARROWED):
            source = node.input[0]
            if source in made and source not in renamed:
                renamed[source] = node.output[0]
    return renamed


def _plain_names(nodes: Iterable[NodeProto], outputs: set[str]) -> dict[str, str]:
    """fp32 tensors that get their own names back, no float16 copy being left."""
    made = {out for node in nodes for out in node.output}
    plain = {name: name.removesuffix(_NARROWED) for name in made if name.endswith(_NARROWED) and name not in outputs}
    return {name: base for name, base in plain.items() if base not in made and not base.startswith("graph_output_cast_")}


def _note(graph: GraphProto, nodes: Iterable[NodeProto], renamed: dict[str, str]) -> None:
    made = {out for node in nodes for out in node.output} - {value.name for value in graph.output}
    back = {new: old for old, new in renamed.items()}
    said = {value.name: value for value in graph.value_info}
    noted = []
    for name in made:
        value = said.get(back.get(name, name))
        if value is not None:
            value.name = name
            noted.append(type(value).FromString(value.SerializeToString()))
    del graph.value_info[:]
    graph.value_info.extend(sorted(noted, key=lambda value: value.name))
