"""ONNX to onnx-graphsurgeon's graph, and back with nothing lost.

graphsurgeon alone drops what it does not model (attributes of rare types, empty lists, overloads of
functions, documentation of inputs) and takes an initializer that a caller may override for a
constant. Hence:

* What no pass has touched goes back as the very message that it came from.
* An initializer that is also a graph input (IR 4 and later: a default) is a variable, and so is a
  sparse one. Before IR 4 every initializer had to be listed; there they are constants.
* Tensors that nested graphs read keep their names, and nested graphs go back untouched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from aff_deploy.errors import ModelError
from aff_deploy.onnx_data import nested_graphs
from aff_deploy.onnx_file import (
    FIRST_IR_WITH_DEFAULTS,
    SKELETON_KEEPS_BYTES,
    infer_types,
    overridable,
    skeleton,
    sorted_nodes,
    static_shape,
)
from aff_deploy.ops import DOMAIN, DOMAIN_VERSION
from aff_deploy.passes.graph import Node

FIRST_OPSET_INFERRING_RESHAPE = 14

# graphsurgeon prints its warnings to stdout, where a JSON document may be on its way.
G_LOGGER.severity = G_LOGGER.ERROR


def import_graph(model: ModelProto) -> gs.Graph:
    """The main graph of `model`, with inferred types and shapes on its tensors.

    Weights stay in `model`, unread, until a pass changes them. Local functions are left out: they
    are carried over untouched.

    Raises:
        ModelError: a name, type or string in the model cannot be read.
    """
    source = _sorted(model)
    try:
        graph = OnnxImporter.import_graph(
            source.graph, opset=OnnxImporter.get_opset(source), import_domains=source.opset_import
        )
    except (OnnxGraphSurgeonException, UnicodeDecodeError, KeyError, ValueError) as error:
        raise ModelError(f"the model cannot be read: {error}", fix="export the model again") from None
    for node, proto in zip(graph.nodes, source.graph.node, strict=True):
        node.source = (proto, dict(node.attrs))
        node.captured = tuple(_captured(proto))
    _tell_apart(graph)
    tensors = graph.tensors()
    _release(graph, source, tensors)
    _note_types(source, tensors)
    graph.captured = frozenset(name for node in graph.nodes for name in node.captured)
    return graph


def _tell_apart(graph: gs.Graph) -> None:
    """Make each node of a graph, and of those nested in it, equal to itself alone."""
    for node in graph.nodes:
        node.__class__ = Node
    for nested in graph.subgraphs(recursive=True):
        for node in nested.nodes:
            node.__class__ = Node


def _sorted(model: ModelProto) -> ModelProto:
    """`model`, or a copy with its nodes in order: graphsurgeon links a nested graph only with what came before."""
    # A sorted graph, the usual case, is not copied: that would double the memory.
    nodes = sorted_nodes(model.graph)
    if all(mine is other for mine, other in zip(nodes, model.graph.node, strict=True)):
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _release(graph: gs.Graph, model: ModelProto, tensors: Mapping[str, gs.Tensor]) -> None:
    """Make variables of the constants that are none: overridable and sparse initializers."""
    defaults = overridable(model)
    for name in (*defaults, *(sparse.values.name for sparse in model.graph.sparse_initializer)):
        if isinstance(tensors.get(name), gs.Constant):
            tensors[name].to_variable(tensors[name].dtype, tuple(tensors[name].shape))
            tensors[name].type = "tensor_type"
    listed = {tensor.name: tensor for tensor in graph.inputs}
    listed |= {name: tensors.get(name) or gs.Variable(name) for name in defaults}
    graph.inputs = [listed[value.name] for value in model.graph.input if value.name in listed]


def note_types(graph: gs.Graph, original: ModelProto) -> None:
    """Note on the tensors of a graph that has been rewritten what shape inference can tell of them now.

    Args:
        graph: the graph; its weights are not read.
        original: the model that it was imported from.
    """
    light = ModelProto(ir_version=max(original.ir_version, FIRST_IR_WITH_DEFAULTS))
    for field in ("opset_import", "functions"):
        getattr(light, field).extend(getattr(original, field))
    # Of the fused operator only its outputs' types count, and they are noted.
    if all(entry.domain != DOMAIN for entry in light.opset_import):
        light.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    light.graph.name = original.graph.name
    light.graph.node.extend(export_node(node) for node in graph.nodes)
    light.graph.output.extend(original.graph.output)
    tensors = graph.tensors()
    light.graph.input.extend(value for value in original.graph.input if isinstance(tensors.get(value.name), gs.Variable))
    for tensor in tensors.values():
        if isinstance(tensor, gs.Constant):
            _add_light(light.graph, tensor)
    _add_value_info(light.graph, original.graph, tensors)
    _note_types(light, tensors)


def _add_light(graph: GraphProto, tensor: gs.Constant) -> None:
    """A constant that shapes may be computed from as it is, a larger one as an input of its type and shape."""
    if math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize <= SKELETON_KEEPS_BYTES:
        graph.initializer.append(numpy_helper.from_array(np.asarray(tensor.values), tensor.name))
    else:
        elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        graph.input.append(helper.make_tensor_value_info(tensor.name, elem_type, tensor.shape))


def _note_types(model: ModelProto, tensors: Mapping[str, gs.Tensor]) -> None:
    types = infer_types(_upgraded(model))
    for name, tensor in tensors.items():
        if isinstance(tensor, gs.Constant):
            if isinstance(tensor.dtype, int):
                tensor._values.dtype = helper.tensor_dtype_to_np_dtype(tensor.dtype)
            continue
        inferred = types.get(name)
        if inferred is not None and inferred.elem_type in _KNOWN_TYPES:
            tensor.dtype = helper.tensor_dtype_to_np_dtype(inferred.elem_type)
        elif isinstance(tensor.dtype, int):
            tensor.dtype = None
        shape = static_shape(inferred)
        if shape is not None:
            tensor.shape = _better_known(tensor.shape, shape)


def is_settled(graph: gs.Graph) -> bool:
    """Whether shape inference could tell nothing new: every dimension is a number, or one of an input of the graph."""
    named = {dim for tensor in graph.inputs for dim in tensor.shape or () if isinstance(dim, str)}
    shapes = (tensor.shape for tensor in graph.tensors().values())
    return all(shape is not None and all(isinstance(dim, int) or dim in named for dim in shape) for shape in shapes)


def _better_known(
    noted: Sequence[int | str | None] | None, inferred: tuple[int | str | None, ...]
) -> Sequence[int | str | None]:
    """The shape of which more is known: numbers before names before nothing."""
    if noted is None or len(noted) != len(inferred):
        return inferred if noted is None else noted
    pairs = zip(noted, inferred, strict=True)
    return tuple(new if old is None or (isinstance(new, int) and not isinstance(old, int)) else old for old, new in pairs)


def _upgraded(model: ModelProto) -> ModelProto:
    """A skeleton of `model` for shape inference, which sees through a computed Reshape from opset 14 on."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if versions and versions[0] >= FIRST_OPSET_INFERRING_RESHAPE:
        return model
    try:
        return onnx.version_converter.convert_version(skeleton(model), FIRST_OPSET_INFERRING_RESHAPE)
    except (RuntimeError, ValueError):  # an operator that the converter does not know
        return model


_KNOWN_TYPES = frozenset(helper.get_all_tensor_dtypes()) - {onnx.TensorProto.UNDEFINED}


def _captured(node: NodeProto) -> Iterator[str]:
    """Names that the nested graphs of a node read; their own tensors among them, which does no harm."""
    for graph in nested_graphs(node):
        yield from (value.name for value in graph.output)
        for inner in graph.node:
            yield from inner.input
            yield from _captured(inner)


def export_model(graph: gs.Graph, original: ModelProto) -> ModelProto:
    """The graph as a model that keeps all of `original` that is not its main graph."""
    model = ModelProto()
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(model, field, getattr(original, field))
    model.ir_version = max(original.ir_version, FIRST_IR_WITH_DEFAULTS)
    for field in ("opset_import", "metadata_props", "functions"):
        getattr(model, field).extend(getattr(original, field))
    for field in ("name", "doc_string"):
        setattr(model.graph, field, getattr(original.graph, field))
    for field in ("output", "metadata_props", "quantization_annotation"):
        getattr(model.graph, field).extend(getattr(original.graph, field))
    model.graph.node.extend(export_node(node) for node in graph.nodes)
    inputs = {tensor.name for tensor in graph.inputs}
    model.graph.input.extend(value for value in original.graph.input if value.name in inputs)
    tensors = graph.tensors()
    _add_initializers(model.graph, original, tensors)
    _add_value_info(model.graph, original.graph, tensors)
    return model


def export_node(node: gs.Node) -> NodeProto:
    """A node as a message: attributes that nobody replaced are those of the node that it was imported from."""
    proto = NodeProto(op_type=node.op, name=node.name, domain=node.domain or "")
    proto.input.extend(tensor.name for tensor in node.inputs)
    proto.output.extend(tensor.name for tensor in node.outputs)
    source, imported = getattr(node, "source", (NodeProto(), {}))
    for field in ("doc_string", "overload"):
        if getattr(source, field, ""):
            setattr(proto, field, getattr(source, field))
    proto.metadata_props.extend(source.metadata_props)
    kept = {name for name, value in imported.items() if name in node.attrs and node.attrs[name] is value}
    proto.attribute.extend(a for a in source.attribute if a.name in kept or a.name not in imported)
    proto.attribute.extend(OnnxExporter.export_attributes({k: v for k, v in node.attrs.items() if k not in kept}))
    return proto


def _add_initializers(graph: GraphProto, original: ModelProto, tensors: Mapping[str, gs.Tensor]) -> None:
    for tensor in tensors.values():
        if not isinstance(tensor, gs.Constant):
            continue
        if isinstance(tensor._values, LazyValues):
            graph.initializer.add().CopyFrom(tensor._values.tensor)
            graph.initializer[-1].name = tensor.name
        else:
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(tensor.values), tensor.name))
            graph.initializer[-1].dims[:] = tensor.shape
    there = {tensor.name for tensor in graph.initializer}
    # What is no constant to graphsurgeon: defaults of inputs, sparse values, and what only nested graphs read.
    wanted = tensors.keys() | {value.name for value in graph.input}
    wanted |= {name for node in graph.node for name in _captured(node)}
    graph.initializer.extend(t for t in original.graph.initializer if t.name in wanted and t.name not in there)
    graph.sparse_initializer.extend(s for s in original.graph.sparse_initializer if s.values.name in wanted)


def _add_value_info(graph: GraphProto, original: GraphProto, tensors: Mapping[str, gs.Tensor]) -> None:
    said: dict[str, Any] = {value.name: value for value in original.value_info}
    ends = {value.name for value in (*graph.input, *graph.output)}
    for name, tensor in tensors.items():
        if name in ends or not tensor.inputs:
            continue
        if tensor.type == "tensor_type" and tensor.dtype is not None:
            elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
            graph.value_info.append(helper.make_tensor_value_info(name, elem_type, tensor.shape))
        elif name in said:
            graph.value_info.append(said[name])
