"""The tensors of an ONNX model: found wherever they hide, and measured before they are believed."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, checker, helper

from aff_deploy.artifact import check_input
from aff_deploy.errors import ModelError

MAX_TENSOR_BYTES = 16 * 2**30
MOST_READINGS = 4
"""How often the same bytes of external data may be read, on average, for tensors that share them."""
MAX_DEPTH = 64
"""Of local functions and graphs in each other."""
MAX_EXPANDED_NODES = 100_000
"""Most nodes of a model once its local functions are expanded, as runtimes do."""
EXPORT_AGAIN = "export the model again"
INCOMPLETE = "give a whole .onnx file: export the model again, or check that the download is complete"
"""For what a file that ends too early would look like, and for nothing else."""


def nested_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def iter_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` and every graph nested in its nodes' attributes."""
    yield graph
    for node in graph.node:
        for nested in nested_graphs(node):
            yield from iter_graphs(nested)


def iter_tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _attribute_tensors(function.attribute_proto)
        yield from _node_tensors(function.node)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        yield from _attribute_tensors(node.attribute)
        for graph in nested_graphs(node):
            yield from _graph_tensors(graph)


def _attribute_tensors(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    # By what is there, not by the type that the attribute claims: onnx loads external data likewise.
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors) if attribute.HasField("sparse_tensor") else ():
            yield from (sparse.values, sparse.indices)


def tensor_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor's elements by its dims and type, whatever the message itself holds."""
    elements = int(math.prod(tensor.dims))
    if tensor.data_type in _PER_BYTE:
        return -(-elements // _PER_BYTE[tensor.data_type])
    try:
        return elements * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, TypeError, ValueError):
        return elements


# Types with several elements in a byte.
_PER_BYTE = {
    getattr(TensorProto, name): count
    for name, count in (("INT4", 2), ("UINT4", 2), ("FLOAT4E2M1", 2), ("INT2", 4), ("UINT2", 4))
    if hasattr(TensorProto, name)
}


def check_functions(model: ModelProto, name: str) -> None:
    """Bound what local functions become: each may call others twice, and libraries expand them all.

    Raises:
        ModelError: functions that call themselves, lie too deep in each other, or become too many nodes.
    """
    functions = {(function.domain, function.name, function.overload): function for function in model.functions}
    known: dict[tuple[str, str, str], tuple[int, int]] = {}
    open_: list[tuple[str, str, str]] = []

    def measure(nodes: Iterable[NodeProto]) -> tuple[int, int]:
        """How many nodes they become, and how deep functions and graphs lie in each other there."""
        count = depth = 0
        for node in nodes:
            parts = [measure(graph.node) for graph in nested_graphs(node)]
            called = (node.domain, node.op_type, node.overload)
            parts += [function_size(called)] if called in functions else []
            count = min(count + 1 + sum(size for size, _ in parts), MAX_EXPANDED_NODES + 1)
            depth = max([depth, *(inner + 1 for _, inner in parts)])
        return count, depth

    def function_size(called: tuple[str, str, str]) -> tuple[int, int]:
        if called in open_:
            raise ModelError(f"{name}: the local function {called[1]!r} calls itself", fix=EXPORT_AGAIN)
        if called not in known:
            open_.append(called)
            too_deep = len(open_) > MAX_DEPTH
            known[called] = (1, MAX_DEPTH + 1) if too_deep else measure(functions[called].node)
            open_.pop()
        return known[called]

    count, depth = measure(model.graph.node) if functions else (0, 0)
    if depth > MAX_DEPTH:
        raise ModelError(f"{name}: its local functions lie over {MAX_DEPTH} deep in each other", fix=EXPORT_AGAIN)
    if count > MAX_EXPANDED_NODES:
        raise ModelError(f"{name}: its local functions become more than {MAX_EXPANDED_NODES} nodes", fix=EXPORT_AGAIN)


def is_text(message: Message) -> bool:
    """Whether every string of a message and of those in it is UTF-8; protobuf itself hands out bytes where one is not."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING:
            if not isinstance(value, str) and (isinstance(value, bytes) or any(isinstance(text, bytes) for text in value)):
                return False
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            inner = [value] if isinstance(value, Message) else value
            if not all(is_text(each) for each in inner):
                return False
    return True


def read_tensors(model: ModelProto, path: Path) -> None:
    """Hold every tensor of the model read from `path` against what it claims, and load external data.

    Raises:
        ModelError: naming the tensor.
    """
    _check_types(model, path)
    files: dict[Path, int] = {}
    total = 0
    for tensor in iter_tensors(model):
        if (found := _check_tensor(tensor, path)) is not None:
            files[found[0]] = found[1]
            total += tensor_bytes(tensor)
    # Tensors may share their bytes, but each is loaded by itself.
    if total > MOST_READINGS * sum(files.values()):
        raise ModelError(f"{path}: its tensors claim {total} bytes of smaller data files", fix=EXPORT_AGAIN)
    for file in files:
        check_input(file, what="external data", error=ModelError)
    _load_external_data(model, path)


def _load_external_data(model: ModelProto, path: Path) -> None:
    if all(tensor.data_location != TensorProto.EXTERNAL for tensor in iter_tensors(model)):
        return
    try:
        with warnings.catch_warnings():
            # It warns of keys that it does not know and ignores.
            warnings.simplefilter("ignore")
            onnx.load_external_data_for_model(model, str(path.parent))
    except (checker.ValidationError, ValueError, OSError) as error:
        raise ModelError(f"{path}: external data cannot be read: {first_line(error)}", fix=INCOMPLETE) from None


def _check_types(model: ModelProto, path: Path) -> None:
    """Refuse values of an element type that ONNX does not have, which its checker lets pass."""
    known = {*helper.get_all_tensor_dtypes(), TensorProto.UNDEFINED}
    for graph in iter_graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if (kind := value.type.tensor_type.elem_type) not in known:
                raise ModelError(f"{path}: {value.name!r} is of the unknown element type {kind}", fix=EXPORT_AGAIN)


def _check_tensor(tensor: TensorProto, path: Path) -> tuple[Path, int] | None:
    """Hold a tensor against its message; for external data, the file that it lies in and that file's size."""
    if any(dim < 0 for dim in tensor.dims) or tensor_bytes(tensor) > MAX_TENSOR_BYTES:
        raise ModelError(f"{path}: tensor {tensor.name!r} claims the shape {list(tensor.dims)}", fix=EXPORT_AGAIN)
    if tensor.data_location == TensorProto.EXTERNAL:
        return _check_external(tensor, path)
    if (held := _held(tensor)) is not None and held[0] != held[1]:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} of shape {list(tensor.dims)} holds {held[0]} {held[2]}, not {held[1]}",
            fix=EXPORT_AGAIN,
        )
    return None


def _held(tensor: TensorProto) -> tuple[int, int, str] | None:
    """How much data a tensor's message holds, how much its shape and type want, and of what."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data), tensor_bytes(tensor), "bytes"
    try:
        values = getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type))
    except (KeyError, AttributeError):
        return None  # a type unknown here: the checker's business
    if tensor.data_type in _PER_BYTE:
        return len(values), tensor_bytes(tensor), "packed values"
    parts = 2 if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1
    return len(values), parts * int(math.prod(tensor.dims)), "values"


def _check_external(tensor: TensorProto, path: Path) -> tuple[Path, int]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = path.parent.resolve()
    try:
        target = (folder / location).resolve()
        size = target.stat().st_size if target.is_file() else None
    except (OSError, ValueError, RuntimeError):  # a name no file can have, or links in a circle
        target, size = folder / "unreadable", None
    if not location or os.path.isabs(location) or not target.is_relative_to(folder):
        raise ModelError(
            f"{path}: tensor {tensor.name!r} keeps its data outside the model's folder, at {location!r}",
            fix="move the data file beside the model and export again; paths out of the folder are refused",
        )
    if size is None:
        raise ModelError(f"{path}: the external data file {location!r} is missing", fix="put it beside the model")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", tensor_bytes(tensor)))
    except ValueError:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} has a malformed external offset or length", fix=EXPORT_AGAIN
        ) from None
    if offset < 0 or length != tensor_bytes(tensor) or offset + length > size:
        raise ModelError(f"{path}: tensor {tensor.name!r} reaches beyond its data file {location!r}", fix=INCOMPLETE)
    if "length" not in entries:
        # Or everything to the end of the file would be read.
        tensor.external_data.add(key="length", value=str(length))
    return target, size


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
