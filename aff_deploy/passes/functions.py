"""The local functions that the call nodes of a model need, written in the form that suits them.

One function serves all calls of its type, so its form is the most general that any of them needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Literal

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper

from aff_deploy.errors import ModelError
from aff_deploy.onnx_data import nested_graphs
from aff_deploy.onnx_file import opset_of, static_shape
from aff_deploy.ops import DOMAIN, DOMAIN_VERSION, Form, Variant, function_body, is_fusion
from aff_deploy.ops.body import FIRST_CASTLIKE_OPSET
from aff_deploy.ops.operator import WEIGHTS
from aff_deploy.ops.parts import HALF_TYPES

OLDEST_OPSET_OF_BODIES = 12
BLEND, CONVEX = "blend", "convex"
"""The call's attribute, and its value, that ask for the form which does not lose x."""
BLOCK = 16
"""Channels in a block of the blocked layout (8 on narrower machines, a divisor of it)."""

_FORMS: tuple[Form, ...] = ("convex", "plain", "blocked", "blocked_static")


Target = Literal["cpu", "gpu"]


def attach_functions(model: ModelProto, *, target: Target = "cpu", form: Form | None = None) -> None:
    """Give `model` a local function for every fused operator it calls, and its domain's import.

    Args:
        model: a model whose tensors have their types noted; changed in place: functions of our domain
            are written anew, call nodes get the attribute ``upsample`` where their function reads it.
        target: what the functions are written for. The blocked forms are ONNX Runtime's CPU provider's alone;
            on a GPU a half-precision function is ``convex``, any other ``plain``.
        form: this form for all of them, whatever the target.
    """
    types = noted_types(model)
    others = [function for function in model.functions if function.domain != DOMAIN]
    _require_ours(model)
    del model.functions[:]
    model.functions.extend(others)
    calls: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        if is_fusion(node.domain, node.op_type):
            _require_inputs(node)
            calls.setdefault(node.op_type, []).append(node)
    nested = _nested_calls(model)
    if calls or nested:
        _raise_opset(model, mixed=any(len(_elem_types(nodes, types)) > 1 for nodes in calls.values()))
    opset = opset_of(model)
    summed = {tuple(node.input[:2]) for nodes in calls.values() for node in nodes if attributes(node).get("context") == "sum"}
    for op_type in dict.fromkeys((*calls, *nested)):
        nodes = [*calls.get(op_type, ()), *nested.get(op_type, ())]
        # Of a call inside another graph the types are not known here; the plain form does not ask for them.
        least: list[Form] = ["plain"] if op_type in nested else []
        forms = least + [form or best_form(node, types, target) for node in nodes]
        model.functions.append(_function(nodes, types, opset, summed, min(forms, key=_FORMS.index)))
    imports = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    if calls or nested:
        model.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
        model.ir_version = max(model.ir_version, 8)


def noted_types(model: ModelProto) -> dict[str, TypeProto.Tensor]:
    """Type and shape of every tensor of the main graph for which the model itself says them."""
    graph = model.graph
    types = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input, *graph.output)}
    return types | {tensor.name: _kind(tensor) for tensor in graph.initializer if tensor.name not in types}


def _require_ours(model: ModelProto) -> None:
    """Refuse a model in which somebody else's functions stand in our domain: writing ours would replace them."""
    parts = {"x", "y", "a", *(f"{branch}_{part}" for branch in ("local", "global") for part in WEIGHTS)}
    for function in model.functions:
        if function.domain == DOMAIN and not (is_fusion(DOMAIN, function.name) and parts.issuperset(function.input)):
            raise ModelError(
                f"the function {function.name!r} in domain {DOMAIN!r} is not one that aff-deploy wrote",
                fix="give it another domain: this one is the fused operator's",
            )


def _require_inputs(call: NodeProto) -> None:
    wanted = len(variant_of(call).inputs)
    if len(call.input) != wanted:
        raise ModelError(
            f"the fused call {call.name or call.op_type!r} has {len(call.input)} inputs, and takes {wanted}",
            fix="write the file again: aff-deploy optimize",
        )


def _nested_calls(model: ModelProto) -> dict[str, list[NodeProto]]:
    """Calls of the fused operator inside nested graphs and other functions, by operator type."""
    found: dict[str, list[NodeProto]] = {}

    def look(nodes: Iterable[NodeProto], *, inside: bool) -> None:
        for node in nodes:
            if inside and is_fusion(node.domain, node.op_type):
                found.setdefault(node.op_type, []).append(node)
            for graph in nested_graphs(node):
                look(graph.node, inside=True)

    look(model.graph.node, inside=False)
    for function in model.functions:
        look(function.node, inside=True)
        if any(is_fusion(node.domain, node.op_type) for node in function.node):
            _import_domain(function)
    return found


def _import_domain(function: onnx.FunctionProto) -> None:
    if all(entry.domain != DOMAIN for entry in function.opset_import):
        function.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))


def _kind(tensor: TensorProto) -> TypeProto.Tensor:
    return helper.make_tensor_type_proto(tensor.data_type, tuple(tensor.dims)).tensor_type


def _elem_types(nodes: Iterable[NodeProto], types: Mapping[str, TypeProto.Tensor]) -> list[int]:
    """Element types of the calls' x, each once, as far as they are known."""
    return list(dict.fromkeys(types[node.input[0]].elem_type for node in nodes if node.input[0] in types))


def _raise_opset(model: ModelProto, *, mixed: bool) -> None:
    """Opset 11 to 12, of which the functions need ``Constant<value_float>``; where calls are of `mixed` types, to 15.

    Between 11 and 12 only Dropout is written differently, and its ratio means nothing at inference; between
    13 and 15, only BatchNormalization in training. The function of several types needs CastLike, of 15.
    """
    for entry in model.opset_import:
        if entry.domain not in ("", "ai.onnx"):
            continue
        if mixed and entry.version < FIRST_CASTLIKE_OPSET:
            if entry.version < 13 or _trains(model.graph):
                raise ModelError(
                    f"the model mixes float types, and opset {entry.version} has no way to write one function for both",
                    fix="export it again with --opset 18",
                )
            entry.version = FIRST_CASTLIKE_OPSET
        if entry.version < OLDEST_OPSET_OF_BODIES:
            entry.version = OLDEST_OPSET_OF_BODIES
            _drop_ratios(model.graph)


def _trains(graph: GraphProto) -> bool:
    return any(
        (node.op_type == "BatchNormalization" and len(node.output) > 1) or any(map(_trains, nested_graphs(node)))
        for node in graph.node
    )


def _drop_ratios(graph: GraphProto) -> None:
    for node in graph.node:
        if node.op_type == "Dropout" and node.domain in ("", "ai.onnx"):
            del node.attribute[:]
        for nested in nested_graphs(node):
            _drop_ratios(nested)


def attributes(node: NodeProto) -> dict[str, object]:
    """A node's attributes as Python values, byte strings decoded."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: _decoded(value) for name, value in values.items()}


def _decoded(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return value


def variant_of(node: NodeProto) -> Variant:
    """The operator variant that a call node names in its attributes."""
    said = attributes(node)
    context = said.get("context")
    branches = said.get("branches")
    return Variant(
        context="explicit" if context in ("explicit", "concat") else "self" if context == "self" else "sum",
        blend=not node.op_type.startswith("AttentionalGate"),
        split=node.op_type.startswith("AttentionalSplit"),
        branches=tuple(branches) if isinstance(branches, list) else ("local", "global"),
        activation=str(said.get("activation", "Relu")),
        gate="HardSigmoid" if said.get("gate") == "HardSigmoid" else "Sigmoid",
    )


def _function(
    nodes: list[NodeProto],
    types: Mapping[str, TypeProto.Tensor],
    opset: int,
    summed: AbstractSet[tuple[str, ...]],
    form: Form,
) -> onnx.FunctionProto:
    for node in nodes:
        kept = [attribute for attribute in node.attribute if attribute.name != "upsample"]
        del node.attribute[:]
        node.attribute.extend(kept)
        if form == "blocked_static":
            spatial = static_shape(types.get(node.input[0])) or ()
            factors = [1.0, 1.0, *(float(size) for size in spatial[2:] if isinstance(size, int))]
            node.attribute.append(helper.make_attribute("upsample", factors))
    scales = {attributes(node).get("scale", 1.0) for node in nodes}
    scale = scales.pop() if len(scales) == 1 else None
    found = _elem_types(nodes, types) or [TensorProto.FLOAT]
    # Where some calls were kept wide, the casts that half precision needs do nothing in those.
    elem_type = next((kind for kind in found if kind in HALF_TYPES), found[0])
    shared = float(scale) if scale in (1.0, 2.0) and isinstance(scale, float) else None
    return function_body(
        variant_of(nodes[0]),
        form=form,
        scale=shared,
        opset=opset,
        elem_type=elem_type,
        total_at_hand=all(tuple(node.input[:2]) in summed for node in nodes),
    )


def best_form(node: NodeProto, types: Mapping[str, TypeProto.Tensor], target: Target) -> Form:
    """The fastest form that a call allows: the blocked layout is for 4-D float32, whole blocks of channels.

    ONNX Runtime keeps to it only where it can prove that two shapes are equal: of a dynamic height or
    width it cannot, and of a dynamic batch it cannot behind an upsampling.
    """
    kind = types.get(node.input[0])
    shape = static_shape(kind)
    channels = attributes(node).get("channels")
    if attributes(node).get(BLEND) == CONVEX or (kind is not None and kind.elem_type in HALF_TYPES):
        return "convex"
    if target == "gpu" or kind is None or shape is None or kind.elem_type != TensorProto.FLOAT or len(shape) != 4:
        return "plain"
    if not isinstance(channels, int) or channels % BLOCK:
        return "plain"
    if not all(isinstance(dim, int) for dim in shape[2:]):
        return "plain"
    return "blocked_static" if isinstance(shape[0], int) else "blocked"
