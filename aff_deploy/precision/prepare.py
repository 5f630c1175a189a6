"""A model made ready for retyping: what onnxruntime's converter stumbles over is put in order first.

It finds nodes by name, tensors by their noted types, and constants among the initializers alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx.shape_inference
import onnx.version_converter
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.inliner import inline_selected_functions

from aff_deploy.errors import ModelError
from aff_deploy.onnx_data import first_line, iter_graphs
from aff_deploy.onnx_file import opset_of, overridable, skeleton
from aff_deploy.ops import DOMAIN
from aff_deploy.passes.functions import attach_functions, attributes
from aff_deploy.precision.wiring import (
    ONNX_DOMAINS,
    fresh,
    name_nodes,
    names_of,
    rename_reads,
    replace_nodes,
    require_unquantised,
    tensor_types,
    with_weights,
)

HALF_NAMES: Mapping[int, str] = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
# From which opset on a type can be used, and what is written where the model is older: CastLike is of 15,
# convolutions of bfloat16 are of 22.
_OPSETS: Mapping[int, tuple[int, int]] = {TensorProto.FLOAT16: (15, 17), TensorProto.BFLOAT16: (22, 22)}

# How onnxruntime's converter calls what its casts make.
_CONVERTERS_OWN = re.compile(r"_cast_to_fp(16|32)$|^graph_(in|out)put_cast_\d+$")


def prepared(model: ModelProto, half: int) -> tuple[ModelProto, tuple[str, ...]]:
    """An fp32 copy of `model` that can be retyped to `half`, its fusions written in the form for half precision.

    Every node has a name of its own, every tensor its type noted, constants are initializers, other
    people's functions are expanded.

    Args:
        model: of fp32, below 2 GB; left as it is.
        half: TensorProto.FLOAT16 or BFLOAT16.

    Returns:
        The copy, and what was done that a person should know.

    Raises:
        ModelError: it holds half precision or 8-bit operators already, nothing in fp32, or its opset cannot be raised.
    """
    require_unquantised(model)
    light, notes = raised(model, *_OPSETS[half], HALF_NAMES[half])
    _drop_unused_regions(light)
    renamed = _free_outputs(light, model)
    _free_converter_names(light, model, renamed)
    _constants_to_initializers(light)
    name_nodes(light.graph)
    attach_functions(light, form="convex")
    notes += _note_types(light)
    return with_weights(light, model, renamed), tuple(notes)


def raised(model: ModelProto, least: int, written: int, what: str) -> tuple[ModelProto, list[str]]:
    """A skeleton of a model in the opset that a type needs, and in words that it was brought there.

    Other people's functions are expanded in it, and those of fusions taken out.

    Args:
        model: left as it is.
        least: from which opset on it may stay as it is.
        written: the opset that it is brought to.
        what: the type.

    Raises:
        ModelError: onnx cannot bring it there.
    """
    light = skeleton(model)
    if foreign := [(f.domain, f.name) for f in light.functions if f.domain != DOMAIN]:
        light = inline_selected_functions(light, foreign)
    del light.functions[:]
    before = opset_of(light)
    if before >= least:
        return light, []
    try:
        converted = onnx.version_converter.convert_version(light, written)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"the model of opset {before} cannot be brought to {written}, as {what} needs: {first_line(error)}",
            fix="export it again with --opset 18" if before < 18 else "build in another precision",
        ) from None
    return converted, [f"the model was brought from ONNX opset {before} to {written}, which {what} needs"]


def _drop_unused_regions(light: ModelProto) -> None:
    """Take the region of interest from resizings that do not look at it: it may not be bfloat16."""
    for graph in iter_graphs(light.graph):
        for node in graph.node:
            mode = attributes(node).get("coordinate_transformation_mode") if node.op_type == "Resize" else "tf_crop_and_resize"
            if mode != "tf_crop_and_resize" and len(node.input) > 2:
                node.input[1] = ""


def _free_outputs(light: ModelProto, model: ModelProto) -> dict[str, str]:
    """Let a node make every output: an initializer that is one gets another name and an Identity.

    Returns:
        The new names of initializers, by their old ones.

    Raises:
        ModelError: an output is an input.
    """
    graph = light.graph
    defaults = overridable(model)
    constants = {tensor.name for tensor in model.graph.initializer if tensor.name not in defaults}
    inputs = {value.name for value in graph.input} - constants
    taken = names_of(graph) | names_of(model.graph)
    renamed: dict[str, str] = {}
    for value in graph.output:
        if value.name in inputs:
            raise ModelError(f"{value.name!r} is an input and an output", fix="take it out of the outputs")
        if value.name in constants:
            renamed[value.name] = fresh(f"{value.name}_value", taken)
    _rename(graph, renamed)
    for name, new in renamed.items():
        graph.node.add(op_type="Identity", input=[new], output=[name])
    return renamed


def _free_converter_names(light: ModelProto, model: ModelProto, renamed: dict[str, str]) -> None:
    """Rename what is called as onnxruntime's converter will call its casts; `renamed` is brought up to date.

    Raises:
        ModelError: an input or output is called so.
    """
    graph = light.graph
    taken = names_of(graph)
    defaults = overridable(model)
    constants = {t.name: renamed.get(t.name, t.name) for t in model.graph.initializer if t.name not in defaults}
    ends = {value.name for value in (*graph.input, *graph.output)} - set(constants.values())
    made = {*constants.values(), *(out for node in graph.node for out in node.output), *ends}
    names: dict[str, str] = {}
    for name in sorted(filter(_CONVERTERS_OWN.search, made)):
        if name not in ends:
            names[name] = fresh(f"{name}_", taken)
        elif _CONVERTERS_OWN.sub("", name) in {*made, ""}:
            raise ModelError(f"{name!r} is called as casts will be", fix="rename that input or output")
    _rename(graph, names)
    renamed |= {name: names[now] for name, now in constants.items() if now in names}


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors of the main graph that are no outputs of it other names."""
    for node in graph.node:
        rename_reads(node, names)
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.initializer, *graph.value_info):
        value.name = names.get(value.name, value.name)


def _constants_to_initializers(light: ModelProto) -> None:
    graph = light.graph
    outputs = {value.name for value in graph.output}
    taken = names_of(graph)
    kept: list[NodeProto] = []
    renamed: dict[str, str] = {}
    for node in graph.node:
        stored = _stored(node) if node.op_type == "Constant" and node.domain in ONNX_DOMAINS else None
        if stored is None:
            kept.append(node)
            continue
        stored.name = node.output[0]
        if node.output[0] in outputs:
            stored.name = renamed[node.output[0]] = fresh(f"{node.output[0]}_value", taken)
            kept.append(helper.make_node("Identity", [stored.name], [node.output[0]]))
        graph.initializer.append(stored)
    if len(kept) != len(graph.node) or renamed:
        replace_nodes(graph, kept)


def _stored(constant: NodeProto) -> TensorProto | None:
    """What a Constant holds, as a tensor; None of strings and sparse ones."""
    (attribute,) = constant.attribute
    if attribute.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(attribute.t)
        return tensor
    value = helper.get_attribute_value(attribute)
    dtypes = {"value_float": "float32", "value_floats": "float32", "value_int": "int64", "value_ints": "int64"}
    if attribute.name not in dtypes:
        return None
    return numpy_helper.from_array(np.asarray(value, dtypes[attribute.name]))


def _note_types(light: ModelProto) -> list[str]:
    """Note the type of every tensor that a node makes; what is strange about them, in words."""
    graph = light.graph
    types = tensor_types(light)
    elements = {name: kind.elem_type for name, kind in types.items()}
    if already := [name for name, kind in elements.items() if kind in HALF_NAMES]:
        raise ModelError(
            f"the model computes in {HALF_NAMES[elements[already[0]]]} already (tensor {already[0]!r})",
            fix="start from the fp32 model",
        )
    if TensorProto.FLOAT not in elements.values():
        raise ModelError("the model computes nothing in float32", fix="export the network in float32")
    said = {value.name: value for value in graph.value_info}
    outputs = {value.name for value in graph.output}
    noted = []
    for name in (out for node in graph.node for out in node.output if out and out not in outputs):
        known = types[name].HasField("shape") or name not in said
        value = ValueInfoProto(name=name)
        value.type.tensor_type.CopyFrom(types[name] if known else said[name].type.tensor_type)
        noted.append(value)
    del graph.value_info[:]
    graph.value_info.extend(noted)
    double = sum(kind == TensorProto.DOUBLE for kind in elements.values())
    return [f"{double} tensors are float64 and stay so"] if double else []
