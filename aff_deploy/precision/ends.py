"""Inputs and outputs of a model in float16, whatever it computes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from aff_deploy.errors import DataError
from aff_deploy.onnx_file import infer_types
from aff_deploy.precision.exact import counting
from aff_deploy.precision.tidy import cast_target
from aff_deploy.precision.values import FP16_MAX
from aff_deploy.precision.wiring import fresh, names_of, reads, rename_reads, replace_nodes
from aff_deploy.runtimes import Array
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner


def exact_inputs(model: ModelProto) -> frozenset[str]:
    """fp32 inputs that integers are computed from, element by element: float16 would make other integers of them."""
    _, tensors = counting(model.graph, {name: kind.elem_type for name, kind in infer_types(model).items()})
    return frozenset(value.name for value in model.graph.input if value.name in tensors)


def half_ends(model: ModelProto, exact: AbstractSet[str] = frozenset()) -> None:
    """Make fp32 inputs and outputs of `model` float16, in place; casts lie between them and what is not.

    Args:
        model: of any precision.
        exact: names of inputs that stay fp32, as `exact_inputs` finds them.
    """
    graph = model.graph
    taken = names_of(graph) | {value.name for value in graph.value_info}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input}
    for value in graph.output:
        if value.name in stored and value.name not in inputs:
            stored[value.name].name = fresh(f"{value.name}_value", taken)
            for node in graph.node:
                rename_reads(node, {value.name: stored[value.name].name})
            graph.node.add(op_type="Identity", input=[stored[value.name].name], output=[value.name])
    for value in graph.input:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name not in exact:
            _half_input(graph, value, taken)
            if value.name in stored:
                default = numpy_helper.to_array(stored[value.name]).astype(np.float16)
                stored[value.name].CopyFrom(numpy_helper.from_array(default, value.name))
    for value in graph.output:
        if value.name in inputs:
            value.type.tensor_type.elem_type = inputs[value.name].type.tensor_type.elem_type
        elif value.type.tensor_type.elem_type == TensorProto.FLOAT:
            _half_output(graph, value, taken)
    replace_nodes(graph, list(graph.node))


def _half_input(graph: GraphProto, value: ValueInfoProto, taken: set[str]) -> None:
    value.type.tensor_type.elem_type = TensorProto.FLOAT16
    outputs = {output.name for output in graph.output}
    casts = [node for node in graph.node if cast_target(node) and node.input[0] == value.name]
    idle = [node for node in casts if cast_target(node) == TensorProto.FLOAT16 and node.output[0] not in outputs]
    readers = [node for node in graph.node if value.name in reads(node) and node not in casts]
    for node in graph.node:
        rename_reads(node, {cast.output[0]: value.name for cast in idle})
    for node in idle:
        graph.node.remove(node)
    if readers:
        wide = fresh(f"{value.name}_fp32", taken)
        for node in readers:
            rename_reads(node, {value.name: wide})
        graph.node.append(_cast(value.name, wide, TensorProto.FLOAT))
        _note(graph, value, wide)


def _half_output(graph: GraphProto, value: ValueInfoProto, taken: set[str]) -> None:
    elements = {known.name: known.type.tensor_type.elem_type for known in graph.value_info}
    maker = next(node for node in graph.node if value.name in node.output)
    read = any(value.name in reads(node) for node in graph.node)
    value.type.tensor_type.elem_type = TensorProto.FLOAT16
    source = maker.input[0] if cast_target(maker) == TensorProto.FLOAT and not read else ""
    if elements.get(source) == TensorProto.FLOAT16:
        # What was widened for the output alone is the output.
        graph.node.remove(maker)
        for node in graph.node:
            rename_reads(node, {source: value.name})
            node.output[:] = [value.name if name == source else name for name in node.output]
        return
    wide = fresh(f"{value.name}_fp32", taken)
    for node in graph.node:
        rename_reads(node, {value.name: wide})
        node.output[:] = [wide if name == value.name else name for name in node.output]
    graph.node.append(_cast(wide, value.name, TensorProto.FLOAT16))
    _note(graph, value, wide)


def _cast(source: str, result: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{result}_cast", to=to)


def _note(graph: GraphProto, like: ValueInfoProto, name: str) -> None:
    """Note an fp32 tensor of the shape of another."""
    noted = graph.value_info.add()
    noted.CopyFrom(like)
    noted.name = name
    noted.type.tensor_type.elem_type = TensorProto.FLOAT


def require_half_ends(model: ModelProto, batches: Sequence[Mapping[str, Array]], exact: AbstractSet[str] = frozenset()) -> None:
    """Refuse inputs or outputs that float16 does not reach, but for inputs that stay fp32 (`exact`).

    Raises:
        DataError: naming the one that does not fit.
    """
    reach: dict[str, float] = {}
    with OnnxRuntimeRunner(model) as runner:
        for batch in batches:
            for name, array in (*batch.items(), *runner.infer(batch).items()):
                if array.dtype.kind == "f" and name not in exact:
                    reach[name] = max(reach.get(name, 0.0), float(np.max(np.abs(array), initial=0.0)))
    for name, value in reach.items():
        if not value <= FP16_MAX:
            raise DataError(f"{name!r} reaches {value:.3g}, which float16 cannot hold", fix="leave inputs and outputs in fp32")
