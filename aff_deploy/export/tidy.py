"""What the exporters leave behind in a file, put right: names, dimensions, traces of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, TensorProto

from aff_deploy.errors import NetworkError
from aff_deploy.onnx_data import iter_graphs, tensor_bytes
from aff_deploy.onnx_file import MAX_MODEL_BYTES, skeleton
from aff_deploy.spec import TensorSpec

_WRAPPER = re.compile(r"^(/?)module[./]")
_SYMBOL = re.compile(r"[A-Za-z_]\w*")


def is_large(model: ModelProto) -> bool:
    """Whether the weights are too much for one protobuf."""
    return sum(tensor_bytes(tensor) for tensor in model.graph.initializer) > MAX_MODEL_BYTES


def write_external(model: ModelProto, path: Path) -> None:
    """Write a large model with its weights in ``<name>.data`` beside it.

    Unlike `onnx.save_model`, which takes the weights out of the model that it is given, this leaves
    `model` as it is, and copies no weight.
    """
    light = skeleton(model)
    kept = {tensor.name for tensor in light.graph.initializer}
    moved = [tensor for tensor in model.graph.initializer if tensor.name not in kept]
    names = {tensor.name for tensor in moved}
    inputs = [value for value in light.graph.input if value.name not in names]
    del light.graph.input[:]
    light.graph.input.extend(inputs)
    data = path.with_name(path.name + ".data")
    with open(data, "wb") as file:
        for tensor in moved:
            raw = tensor.raw_data if tensor.HasField("raw_data") else onnx.numpy_helper.to_array(tensor).tobytes()
            reference = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            reference.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", file.tell()), ("length", len(raw))):
                reference.external_data.add(key=key, value=str(value))
            light.graph.initializer.append(reference)
            file.write(raw)
    path.write_bytes(light.SerializeToString())


def rename_dims(model: ModelProto, names: Mapping[str, str]) -> None:
    """Replace symbols within dynamic dimensions, ``(s25 - 1)//2`` becoming ``(h - 1)//2``."""
    for graph in iter_graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.HasField("dim_param"):
                    whole = names.get(dim.dim_param)
                    dim.dim_param = whole or _SYMBOL.sub(lambda match: names.get(match[0], match[0]), dim.dim_param)


def tidy(model: ModelProto, outputs: Sequence[str], inputs: Sequence[TensorSpec]) -> None:
    """Put an exported model right, in place.

    Removes doc strings and metadata (stack traces with this machine's paths), removes the
    wrapper's ``module.`` from names, and gives inputs and outputs their dynamic dimensions.

    Raises:
        NetworkError: the model's inputs or outputs are not those that were asked for.
    """
    _strip_traces(model)
    _unwrap_names(model, {*outputs, *(spec.name for spec in inputs)})
    _restore_inputs(model, inputs)
    for what, wanted, values in (
        ("inputs", [s.name for s in inputs], model.graph.input),
        ("outputs", outputs, model.graph.output),
    ):
        found = [value.name for value in values]
        if found != list(wanted):
            raise NetworkError(
                f"the exported model has the {what} {', '.join(found)} instead of {', '.join(wanted)}",
                fix="try the other exporter",
            )
    for spec, value in zip(inputs, model.graph.input, strict=True):
        for wanted_dim, dim in zip(spec.shape, value.type.tensor_type.shape.dim, strict=True):
            if isinstance(wanted_dim, str):
                dim.dim_param = wanted_dim
            else:
                dim.dim_value = wanted_dim


def _restore_inputs(model: ModelProto, inputs: Sequence[TensorSpec]) -> None:
    """Declare the inputs that the network does not use, which the torchscript exporter drops."""
    held = {value.name: value for value in model.graph.input}
    if set(held) < {spec.name for spec in inputs}:
        types = {"float32": "FLOAT", "float64": "DOUBLE"}
        values = [
            held.get(spec.name)
            or onnx.helper.make_tensor_value_info(
                spec.name, getattr(TensorProto, types.get(spec.dtype, spec.dtype.upper())), list(spec.shape)
            )
            for spec in inputs
        ]
        del model.graph.input[:]
        model.graph.input.extend(values)


def _strip_traces(model: ModelProto) -> None:
    model.doc_string = model.graph.doc_string = ""
    del model.metadata_props[:]
    holders: list[Iterable[object]] = [model.functions]
    for graph in iter_graphs(model.graph):
        holders += [[graph], graph.node, graph.input, graph.output, graph.value_info, graph.initializer]
    holders += [function.node for function in model.functions]
    for holder in holders:
        for item in holder:
            item.ClearField("doc_string")  # type: ignore[attr-defined]
            item.ClearField("metadata_props")  # type: ignore[attr-defined]


def _values(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        yield from node.output
    yield from (tensor.name for tensor in graph.initializer)
    yield from (value.name for value in (*graph.input, *graph.output))


def _unwrap_names(model: ModelProto, fixed: set[str]) -> None:
    graphs = list(iter_graphs(model.graph))
    present = {name for graph in graphs for name in _values(graph)}
    renamed: dict[str, str] = {}
    for name in sorted(present - fixed):
        short = _WRAPPER.sub(r"\1", name)
        if short != name and short not in present and short not in renamed.values():
            renamed[name] = short
    for graph in graphs:
        for node in graph.node:
            node.name = _WRAPPER.sub(r"\1", node.name)
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
        for item in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
            item.name = renamed.get(item.name, item.name)


def name_output_dims(model: ModelProto, follows: Mapping[str, Mapping[int, str]]) -> None:
    """Rename outputs' dynamic dimensions, in place: `follows` gives the input's dimension by output and axis.

    For the torchscript exporter, whose own names are wrong: it calls dimensions of different sizes
    the same (the levels of a feature pyramid). What follows no input gets a name that no other has,
    and the claims about inner tensors, which are made of those names, go.
    """
    del model.graph.value_info[:]
    for value in model.graph.output:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                dim.dim_param = follows[value.name].get(axis, f"{value.name}_dim{axis}")
