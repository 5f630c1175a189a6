"""The local functions that the call nodes of a model need, written in the form that suits them.

One function serves all calls of its type, so its form is the most general that any of them needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper

from aff_deploy.onnx_data import nested_graphs
from aff_deploy.onnx_file import static_shape
from aff_deploy.ops import DOMAIN, DOMAIN_VERSION, Form, Variant, function_body, is_fusion

OLDEST_OPSET_OF_BODIES = 12
BLOCK = 16
"""Channels in a block of the blocked layout (8 on narrower machines, a divisor of it)."""

_FORMS: tuple[Form, ...] = ("convex", "plain", "blocked", "blocked_static")


def attach_functions(model: ModelProto) -> None:
    """Give `model` a local function for every fused operator it calls, and its domain's import.

    Args:
        model: a model whose tensors have their types noted; changed in place: functions of our domain
            are written anew, call nodes get the attribute ``upsample`` where their function reads it.
    """
    graph = model.graph
    types = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input, *graph.output)}
    others = [function for function in model.functions if function.domain != DOMAIN]
    del model.functions[:]
    model.functions.extend(others)
    calls: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        if is_fusion(node.domain, node.op_type):
            calls.setdefault(node.op_type, []).append(node)
    if calls:
        _raise_opset(model)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    summed = {tuple(node.input[:2]) for nodes in calls.values() for node in nodes if attributes(node).get("context") == "sum"}
    for nodes in calls.values():
        model.functions.append(_function(nodes, types, opset, summed))
    imports = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    if calls:
        model.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
        model.ir_version = max(model.ir_version, 8)


def _raise_opset(model: ModelProto) -> None:
    """Opset 11 to 12, of which the functions need ``Constant<value_float>``.

    Between the two only Dropout is written differently, and its ratio means nothing at inference.
    """
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version < OLDEST_OPSET_OF_BODIES:
            entry.version = OLDEST_OPSET_OF_BODIES
            _drop_ratios(model.graph)


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
    nodes: list[NodeProto], types: Mapping[str, TypeProto.Tensor], opset: int, summed: AbstractSet[tuple[str, ...]]
) -> onnx.FunctionProto:
    form = min((_best_form(node, types) for node in nodes), key=_FORMS.index)
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
    elem_type = types[nodes[0].input[0]].elem_type if nodes[0].input[0] in types else TensorProto.FLOAT
    shared = float(scale) if scale in (1.0, 2.0) and isinstance(scale, float) else None
    return function_body(
        variant_of(nodes[0]),
        form=form,
        scale=shared,
        opset=opset,
        elem_type=elem_type,
        total_at_hand=all(tuple(node.input[:2]) in summed for node in nodes),
    )


def _best_form(node: NodeProto, types: Mapping[str, TypeProto.Tensor]) -> Form:
    """The fastest form that a call allows: the blocked layout is for 4-D float32, whole blocks of channels.

    ONNX Runtime keeps to it only where it can prove that two shapes are equal: of a dynamic height or
    width it cannot, and of a dynamic batch it cannot behind an upsampling.
    """
    kind = types.get(node.input[0])
    shape = static_shape(kind)
    channels = attributes(node).get("channels")
    if kind is not None and kind.elem_type == TensorProto.FLOAT16:
        return "convex"
    if kind is None or shape is None or kind.elem_type != TensorProto.FLOAT or len(shape) != 4:
        return "plain"
    if not isinstance(channels, int) or channels % BLOCK:
        return "plain"
    if not all(isinstance(dim, int) for dim in shape[2:]):
        return "plain"
    return "blocked_static" if isinstance(shape[0], int) else "blocked"
