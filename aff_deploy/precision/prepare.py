"""A model made ready for retyping: named, typed and looked into, once for all that ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx.shape_inference
import onnx.version_converter
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.inliner import inline_selected_functions

from aff_deploy.errors import ModelError
from aff_deploy.onnx_data import first_line
from aff_deploy.onnx_file import opset_of, overridable, skeleton
from aff_deploy.ops import DOMAIN
from aff_deploy.passes.functions import attach_functions
from aff_deploy.precision.wiring import ONNX_DOMAINS, Expanded, expand, name_nodes, require_unquantised

HALF_NAMES: Mapping[int, str] = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
# From which opset on a type can be used, and what is written where the model is older: CastLike is of 15,
# convolutions of bfloat16 are of 22.
_OPSETS: Mapping[int, tuple[int, int]] = {TensorProto.FLOAT16: (15, 17), TensorProto.BFLOAT16: (22, 22)}


@dataclass(frozen=True)
class Source:
    """An fp32 model as retyping wants it. Its weights stay where they are: nothing here copies them.

    Attributes:
        light: its skeleton, every node with a name of its own, functions of others expanded, Constants among the
            initializers.
        expanded: the skeleton with fusions expanded too, and the types of all tensors.
        weights: its initializers by name, those of Constants among them.
        defaults: names of those that a caller may override.
    """

    light: ModelProto
    expanded: Expanded
    weights: Mapping[str, TensorProto]
    defaults: frozenset[str]

    @cached_property
    def inputs(self) -> frozenset[str]:
        """Names of what a caller gives, or may give."""
        return frozenset(value.name for value in self.light.graph.input) - (self.weights.keys() - self.defaults)

    @cached_property
    def outputs(self) -> frozenset[str]:
        """Names of the outputs."""
        return frozenset(value.name for value in self.light.graph.output)

    @cached_property
    def elements(self) -> Mapping[str, int]:
        """The element type of every tensor, by name."""
        return {name: kind.elem_type for name, kind in self.expanded.types.items()}

    def is_float(self, name: str) -> bool:
        """Whether a tensor is of fp32."""
        return self.elements.get(name) == TensorProto.FLOAT


def source_of(model: ModelProto, light: ModelProto | None = None) -> Source:
    """Look into a model whose nodes have names.

    Args:
        model: left as it is.
        light: its skeleton, where there is one with more in it.

    Raises:
        ModelError: the type of a tensor cannot be told.
    """
    light = skeleton(model) if light is None else light
    weights = {tensor.name: tensor for tensor in (*model.graph.initializer, *light.graph.initializer)}
    return Source(light, expand(light), weights, overridable(model))


def prepare(model: ModelProto, half: int) -> tuple[Source, tuple[str, ...]]:
    """Make a model ready for retyping to `half`, its fusions written in the form for half precision.

    Args:
        model: of fp32, below 2 GB; left as it is.
        half: TensorProto.FLOAT16 or BFLOAT16.

    Returns:
        What retyping wants, and what was done that a person should know.

    Raises:
        ModelError: it holds half precision or 8-bit operators already, nothing in fp32, or its opset cannot be raised.
    """
    require_unquantised(model)
    light, notes = raise_opset(model, *_OPSETS[half], HALF_NAMES[half])
    _move_constants(light)
    name_nodes(light.graph)
    attach_functions(light, form="convex")
    source = source_of(model, light)
    elements = source.elements
    if already := [name for name, kind in elements.items() if kind in HALF_NAMES]:
        raise ModelError(
            f"the model computes in {HALF_NAMES[elements[already[0]]]} already (tensor {already[0]!r})",
            fix="start from the fp32 model",
        )
    if TensorProto.FLOAT not in elements.values():
        raise ModelError("the model computes nothing in float32", fix="export the network in float32")
    if double := sum(kind == TensorProto.DOUBLE for kind in elements.values()):
        notes.append(f"{double} tensors are float64 and stay so")
    return source, tuple(notes)


def raise_opset(model: ModelProto, least: int, written: int, what: str) -> tuple[ModelProto, list[str]]:
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


def _move_constants(light: ModelProto) -> None:
    """Make initializers of Constants."""
    graph = light.graph
    for position in reversed(range(len(graph.node))):
        node = graph.node[position]
        stored = _stored(node) if node.op_type == "Constant" and node.domain in ONNX_DOMAINS else None
        if stored is not None:
            stored.name = node.output[0]
            graph.initializer.append(stored)
            del graph.node[position]


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
