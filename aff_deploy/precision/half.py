"""Half precision written into the graph: float16, or bfloat16, with what cannot bear it kept in fp32.

The retyping itself is onnxruntime's converter's. It knows float16 alone, so bfloat16 is its result typed anew;
it casts between two wide nodes to float16 and back, so such round trips are taken out; and it cuts weights off
at the ends of float16, so weights are rounded here, from the fp32 originals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from aff_deploy.onnx_data import nested_graphs
from aff_deploy.onnx_file import check_onnx
from aff_deploy.passes.functions import attach_functions
from aff_deploy.precision.bias import correct_biases
from aff_deploy.precision.prepare import prepared
from aff_deploy.precision.ranges import observe_ranges, require_finite
from aff_deploy.precision.tidy import without_round_trips
from aff_deploy.precision.values import rounded
from aff_deploy.precision.weights import require_finite_weights
from aff_deploy.precision.wide import KeptWide, faint, kept_wide
from aff_deploy.precision.wiring import fresh, names_of, reads, rename_reads, replace_nodes, require_size
from aff_deploy.runtimes import Array
from aff_deploy.runtimes.onnxruntime import import_onnxruntime

HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def to_half(
    model: ModelProto,
    half: int,
    *,
    batches: Sequence[Mapping[str, Array]],
    observed: str,
    keep_fp32: Sequence[str] = (),
) -> tuple[ModelProto, tuple[KeptWide, ...], tuple[str, ...]]:
    """`model` in half precision, inputs and outputs in fp32.

    Args:
        model: of fp32, below 2 GB; left as it is.
        half: TensorProto.FLOAT16 or BFLOAT16.
        batches: inputs by name, on which the ranges of tensors are observed for float16.
        observed: what they are, in words.
        keep_fp32: names of nodes to keep in fp32.

    Returns:
        The typed model, the nodes kept in fp32, and notes.

    Raises:
        ModelError: the model cannot be retyped.
        DataError: there are no batches, or NaN or infinities come of them.
        UsageError: `keep_fp32` names no node.
    """
    require_size(model)
    require_finite_weights(model)
    require_finite(batches)
    typed, notes = prepared(model, half)
    ranges = observe_ranges(typed, batches) if half == TensorProto.FLOAT16 else None
    kept = kept_wide(typed, half, ranges=ranges, observed=observed, asked=keep_fp32)
    wide = frozenset(node.name for node in kept)
    corrected = correct_biases(typed, half, batches, wide=wide) if batches else 0
    typed = _retyped(typed, half, wide)
    attach_functions(typed, target="gpu")
    check_onnx(typed, "the typed model")
    if corrected:
        notes += (f"{corrected} biases make up for the mean error of rounded weights, as seen on {observed}",)
    return typed, kept, notes + (faint(ranges, observed) if ranges is not None else ())


def _retyped(model: ModelProto, half: int, wide: AbstractSet[str]) -> ModelProto:
    convert = import_onnxruntime("onnxruntime.transformers.float16").convert_float_to_float16
    graph = model.graph
    del model.functions[:]
    _separate_weights(graph, wide)
    weights = list(graph.initializer)
    inline = {(node.name, a.name): numpy_helper.to_array(a.t) for node in graph.node for a in node.attribute if _is_float(a.t)}
    # Without their data: it would be cut off at float16's ends, and copied several times.
    del graph.initializer[:]
    graph.initializer.extend(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0]) for tensor in weights)
    convert(model, keep_io_types=True, disable_shape_infer=True, op_block_list=[], node_block_list=sorted(wide))
    types = [tensor.data_type for tensor in model.graph.initializer]
    del model.graph.initializer[:]
    light = ModelProto()
    light.CopyFrom(model)
    _feed_nested(light.graph, {tensor.name: kind for tensor, kind in zip(weights, types, strict=True)})
    without_round_trips(light.graph)
    _type_anew(light.graph, half, inline)
    for tensor, kind in zip(weights, types, strict=True):
        if tensor.data_type == TensorProto.FLOAT and kind == TensorProto.FLOAT16:
            light.graph.initializer.append(rounded(tensor, half))
        else:
            light.graph.initializer.append(tensor)
    return light


def _is_float(tensor: TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT


def _separate_weights(graph: GraphProto, wide: AbstractSet[str]) -> None:
    """Give wide nodes copies of the weights that narrow ones read too."""
    weights = {tensor.name: tensor for tensor in graph.initializer if _is_float(tensor)}
    narrow_reads: set[str] = set()
    wide_reads: list[tuple[NodeProto, str]] = []
    for node in graph.node:
        if node.name in wide:
            wide_reads += [(node, name) for name in dict.fromkeys(reads(node)) if name in weights]
            continue
        scales = node.input[2] if node.op_type == "Resize" and len(node.input) > 2 else ""
        wide_reads += [(node, scales)] if scales in weights else []
        narrow_reads.update(name for name in node.input if name in weights and name != scales)
    taken = names_of(graph)
    copies: dict[str, str] = {}
    for node, name in wide_reads:
        if name not in narrow_reads:
            continue
        if name not in copies:
            copies[name] = fresh(f"{name}_fp32", taken)
            graph.initializer.append(weights[name])
            graph.initializer[-1].name = copies[name]
        rename_reads(node, {name: copies[name]})


def _feed_nested(graph: GraphProto, weights: Mapping[str, int]) -> None:
    """Cast what nested graphs, which stay in fp32, read from outside."""
    elements = {value.name: value.type.tensor_type.elem_type for value in graph.value_info} | dict(weights)
    taken = {*elements, *names_of(graph)}
    cast: dict[str, str] = {}
    for node in list(graph.node):
        if not any(True for _ in nested_graphs(node)):
            continue
        for name in dict.fromkeys(reads(node)):
            if elements.get(name) == TensorProto.FLOAT16 and name not in cast:
                cast[name] = fresh(f"{name}_outer", taken)
                graph.node.add(op_type="Cast", name=cast[name], input=[name], output=[cast[name]]).attribute.append(
                    helper.make_attribute("to", TensorProto.FLOAT)
                )
                graph.value_info.append(helper.make_tensor_value_info(cast[name], TensorProto.FLOAT, None))
        rename_reads(node, cast)
    if cast:
        replace_nodes(graph, list(graph.node))


def _type_anew(graph: GraphProto, half: int, inline: Mapping[tuple[str, str], Array]) -> None:
    """Write `half` where the converter wrote float16; `inline` are the fp32 values of tensors in attributes."""
    for value in graph.value_info:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = half
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                attribute.i = half
            if attribute.t.data_type == TensorProto.FLOAT16:
                values = inline.get((node.name, attribute.name), np.zeros(1, np.float32))
                attribute.t.CopyFrom(rounded(numpy_helper.from_array(values, attribute.t.name), half))
