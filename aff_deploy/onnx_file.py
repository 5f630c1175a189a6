"""ONNX files in and out: read without trusting them, written whole or not at all.

Checks and shape inference run on a *skeleton* of the model, in which every large initializer has
become a graph input of the same type and shape: onnx's C++ checker copies what it is given, twice,
and a ResNet's weights take no part in what it checks.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TypeProto, checker, helper, shape_inference

from aff_deploy.artifact import Artifact, read_input, staged_file, write_manifest
from aff_deploy.errors import ModelError
from aff_deploy.onnx_data import (
    EXPORT_AGAIN,
    INCOMPLETE,
    check_functions,
    first_line,
    is_text,
    iter_tensors,
    nested_graphs,
    read_tensors,
    tensor_bytes,
)
from aff_deploy.onnx_propagation import hold_propagation

MAX_MODEL_BYTES = 1_900_000_000
"""Above this the weights go to a file of their own: protobuf ends at 2 GiB."""
MAX_PROTOBUF_BYTES = 2**31 - 1
FIRST_IR_WITH_DEFAULTS = 4
SKELETON_KEEPS_BYTES = 1024
"""Initializers up to this size stay values in a skeleton: shapes are computed from them."""


def load_onnx(path: Path) -> ModelProto:
    """Read an ONNX model that nobody vouches for.

    External data is loaded only from files inside the model's own folder, and only as many bytes
    as the file really has.

    Args:
        path: the ``.onnx`` file.

    Returns:
        The model with all its weights, checked by `check_onnx` short of full shape inference.

    Raises:
        ModelError: the file is missing, truncated, not ONNX, cyclic, incomplete or hostile.
    """
    content = read_input(path, error=ModelError, most=MAX_PROTOBUF_BYTES, fix="give the path of an .onnx file")
    try:
        model: ModelProto = ModelProto.FromString(content)
    except (DecodeError, ValueError):
        raise ModelError(f"cannot read {path}: truncated, or not an ONNX model", fix=INCOMPLETE) from None
    del content
    if not model.graph.node or not model.opset_import or not model.ir_version:
        raise ModelError(f"{path} holds no ONNX graph", fix=INCOMPLETE)
    if not is_text(model):
        raise ModelError(f"cannot read {path}: a name in it is not UTF-8 text", fix=EXPORT_AGAIN)
    check_functions(model, str(path))
    read_tensors(model, path)
    check_onnx(model, str(path), full=False)
    return model


def overridable(model: ModelProto) -> frozenset[str]:
    """Initializers that are only defaults, because they are graph inputs too.

    Before IR version 4 every initializer had to be listed as an input and none could be overridden.
    """
    if model.ir_version < FIRST_IR_WITH_DEFAULTS:
        return frozenset()
    made = {tensor.name for tensor in model.graph.initializer}
    return frozenset(value.name for value in model.graph.input if value.name in made)


def skeleton(model: ModelProto) -> ModelProto:
    """A sorted copy of `model` in which each initializer over `SKELETON_KEEPS_BYTES`, or overridable, is a graph input."""
    light = ModelProto(
        ir_version=max(model.ir_version, FIRST_IR_WITH_DEFAULTS), opset_import=model.opset_import, functions=model.functions
    )
    graph = light.graph
    graph.name = model.graph.name or "graph"
    graph.node.extend(sorted_nodes(model.graph))
    for field in ("output", "value_info", "sparse_initializer"):
        getattr(graph, field).extend(getattr(model.graph, field))
    defaults = overridable(model)
    constants = [tensor for tensor in model.graph.initializer if tensor.name not in defaults]
    names = {tensor.name for tensor in constants}
    graph.input.extend(value for value in model.graph.input if value.name not in names)
    for tensor in constants:
        if tensor_bytes(tensor) <= SKELETON_KEEPS_BYTES:
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def infer_types(model: ModelProto, *, strict: bool = False, is_light: bool = False) -> dict[str, TypeProto.Tensor]:
    """Element type and shape of every tensor of the main graph that inference can tell; a skeleton (`is_light`) it changes.

    Raises:
        ModelError: with `strict`, where inference finds a contradiction.
    """
    light = model if is_light else skeleton(model)
    propagates = hold_propagation(light)
    try:
        inferred = shape_inference.infer_shapes(light, check_type=strict, strict_mode=strict, data_prop=propagates)
    except shape_inference.InferenceError as error:
        if not strict:
            return {}
        raise ModelError(f"shape inference fails: {first_line(error)}", fix=EXPORT_AGAIN) from None
    graph = inferred.graph
    types = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input, *graph.output)}
    for tensor in graph.initializer:
        types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims)).tensor_type
    return types


def opset_of(model: ModelProto) -> int:
    """The version of the default ONNX domain; 1 where the model does not say."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def static_shape(tensor_type: TypeProto.Tensor | None) -> tuple[int | str | None, ...] | None:
    """A tensor type's shape: ints, names of dynamic dimensions, None for unknown ones; None without rank."""
    if tensor_type is None or not tensor_type.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor_type.shape.dim)


def check_onnx(model: ModelProto, name: str = "the model", *, full: bool = True) -> None:
    """Check that a model is complete, acyclic and valid by onnx's checker.

    Args:
        model: the model, its weights loaded.
        name: what to call it in the message.
        full: also require strict shape inference to pass.

    Raises:
        ModelError: naming the node or tensor.
    """
    _check_wiring(model.graph, name, outer=())
    try:
        checker.check_model(_with_shapes(skeleton(model)))
    except (checker.ValidationError, ValueError, RuntimeError) as error:  # ValueError: of its own message, if not UTF-8
        raise ModelError(f"{name} is not valid ONNX: {first_line(error)}", fix=EXPORT_AGAIN) from None
    if full:
        infer_types(model, strict=True)


def _with_shapes(light: ModelProto) -> ModelProto:
    """A skeleton in which every input and output of unknown rank has some: ONNX lets them be unknown, its checker does not."""
    for value in (*light.graph.input, *light.graph.output):
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    return light


def _check_wiring(graph: GraphProto, name: str, outer: tuple[frozenset[str], ...]) -> None:
    made = [value.name for value in graph.input] + [out for node in graph.node for out in node.output if out]
    constants = [*(t.name for t in graph.initializer), *(t.values.name for t in graph.sparse_initializer)]
    # One set for each graph around, none of them copied: a graph may hold thousands of others.
    known = (frozenset([*made, *constants]), *outer)
    if twice := next((tensor for tensor, count in Counter(made).items() if count > 1), ""):
        raise ModelError(f"{name}: tensor {twice!r} is produced twice", fix=EXPORT_AGAIN)
    for node in graph.node:
        for tensor in node.input:
            if tensor and not any(tensor in names for names in known):
                lost = f"{tensor!r}, which nothing makes (a lost initializer?)"
                raise ModelError(f"{name}: node {node.name or node.op_type!r} reads {lost}", fix=EXPORT_AGAIN)
        for nested in nested_graphs(node):
            _check_wiring(nested, name, known)
    for value in graph.output:
        if not any(value.name in names for names in known):
            raise ModelError(f"{name}: output {value.name!r} is produced by nothing", fix=EXPORT_AGAIN)
    if len(sorted_nodes(graph)) != len(graph.node):
        stuck = set(range(len(graph.node))) - {id_ for id_, _ in _topological(graph)}
        names = ", ".join(graph.node[i].name or graph.node[i].op_type for i in sorted(stuck)[:3])
        raise ModelError(f"{name}: the graph has a cycle (through {names})", fix=EXPORT_AGAIN)


def captured_names(node: NodeProto) -> Iterator[str]:
    """Names that a node reads: its inputs, and whatever its nested graphs read."""
    yield from node.input
    for nested in nested_graphs(node):
        for inner in nested.node:
            yield from captured_names(inner)
        yield from (value.name for value in nested.output)


def _topological(graph: GraphProto) -> list[tuple[int, NodeProto]]:
    """Positions and nodes in the first topological order by position: a sorted graph's own."""
    producer = {out: i for i, node in enumerate(graph.node) for out in node.output if out}
    waits = [{producer[t] for t in captured_names(node) if t in producer} for node in graph.node]
    users: dict[int, list[int]] = {}
    for i, needed in enumerate(waits):
        for j in needed:
            users.setdefault(j, []).append(i)
    missing = [len(needed) for needed in waits]
    ready = [i for i, count in enumerate(missing) if not count]
    order: list[tuple[int, NodeProto]] = []
    while ready:
        i = heapq.heappop(ready)
        order.append((i, graph.node[i]))
        for user in users.get(i, ()):
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, user)
    return order


def sorted_nodes(graph: GraphProto) -> Sequence[NodeProto]:
    """The nodes in an order in which each comes after what it reads; those on a cycle are left out."""
    return [node for _, node in _topological(graph)]


def save_onnx(model: ModelProto, path: Path, facts: Mapping[str, Any]) -> Artifact:
    """Write a model and its manifest, or nothing.

    Weights over 2 GB go to ``<name>.data`` beside the file (`model` then refers to it too).

    Args:
        model: what to write.
        path: the ``.onnx`` file.
        facts: what the manifest says beyond hash and versions.

    Raises:
        OutputError: the place cannot be written.
    """
    with staged_file(path) as staged:
        if sum(tensor_bytes(tensor) for tensor in iter_tensors(model)) > MAX_MODEL_BYTES:
            onnx.save_model(model, staged, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
        else:
            with open(staged, "wb") as file:
                file.writelines(_serialised(model))
        manifest = write_manifest(staged, facts, companions=[p for p in staged.parent.iterdir() if p != staged])
    return Artifact(path, manifest)


def model_sha256(model: ModelProto) -> str:
    """The SHA-256, in hexadecimal, of the bytes that `save_onnx` writes for a model below 2 GB."""
    digest = hashlib.sha256()
    for part in _serialised(model):
        digest.update(part)
    return digest.hexdigest()


def _serialised(model: ModelProto) -> Iterator[bytes]:
    """The bytes of a model, a tensor at a time: serialised whole, it would need three times its size.

    A message is its fields one after the other, in any order; a nested one has its length in front.
    """
    outer, graph = copy_without(model, "graph"), copy_without(model.graph, "initializer").SerializeToString()
    tensors = model.graph.initializer
    length = len(graph) + sum(len(_header(GraphProto, "initializer", t.ByteSize())) + t.ByteSize() for t in tensors)
    yield outer.SerializeToString()
    yield _header(ModelProto, "graph", length) + graph
    for tensor in tensors:
        yield _header(GraphProto, "initializer", tensor.ByteSize())
        yield tensor.SerializeToString()


_Message = TypeVar("_Message", ModelProto, GraphProto)


def copy_without(message: _Message, left_out: str) -> _Message:
    """A copy of a message but for one field."""
    copy = type(message)()
    for field, value in message.ListFields():
        if field.name == left_out:
            continue
        if isinstance(value, (str, bytes, int, float)):
            setattr(copy, field.name, value)
        else:
            getattr(copy, field.name).MergeFrom(value)
    return copy


def _header(message: type[ModelProto | GraphProto], field: str, length: int) -> bytes:
    """Tag and length of a nested message: two base-128 numbers, least significant group first."""
    number = message.DESCRIPTOR.fields_by_name[field].number
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
