"""A model in a lower opset than its exporter can write.

Between opset 13 and 18 an operator that kept its name and its signature kept its meaning, so what
changes is notation: axes of reductions move from an input to an attribute, a partial Shape becomes a
Slice, attributes that did not exist yet go where they hold their default. Anything else is refused. (onnx's own converter lacks
adapters for operators as plain as Identity, and leaves invalid attributes on ReduceMean.)
"""

from __future__ import annotations

import onnx
from onnx import ModelProto, NodeProto, defs, helper, numpy_helper

from aff_deploy.errors import ModelError, UsageError
from aff_deploy.onnx_data import iter_graphs
from aff_deploy.onnx_file import check_onnx, opset_of

AXES_WERE_ATTRIBUTE = frozenset(
    f"Reduce{kind}" for kind in ("Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
)
"""Until opset 17; ReduceSum has taken them as an input since 13."""


class _Cannot(Exception):
    """Why a node has no form in the lower opset."""


def lower_opset(model: ModelProto, opset: int) -> None:
    """Rewrite `model` in place to a lower opset, 13 or more.

    Raises:
        UsageError: a node cannot be expressed there; the message names it, and the exporter that can.
    """
    current = opset_of(model)
    try:
        if model.functions:
            raise _Cannot("it holds local functions")
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        if opset < 15:
            _slice_shapes(model)
        for graph in iter_graphs(model.graph):
            for node in graph.node:
                if node.domain in ("", "ai.onnx"):
                    _lower_node(node, current, opset, constants)
        _drop_unread(model)
        for item in model.opset_import:
            if item.domain in ("", "ai.onnx"):
                item.version = opset
        check_onnx(model, "the converted model")
    except (_Cannot, ModelError) as reason:
        raise UsageError(
            f"the dynamo exporter's model cannot be converted from opset {current} to {opset}: {reason}",
            fix=f"use the torchscript exporter (--exporter torchscript), which writes opset {opset} itself",
        ) from None


def _lower_node(node: NodeProto, current: int, opset: int, constants: dict[str, onnx.TensorProto]) -> None:
    name = f"{node.op_type} {node.name!r}"
    try:
        schema = defs.get_schema(node.op_type, opset)
    except defs.SchemaError:
        raise _Cannot(f"there is no {node.op_type} in opset {opset}") from None
    if opset < 18 and node.op_type in AXES_WERE_ATTRIBUTE and len(node.input) == 2:
        axes = node.input.pop()
        if axes:
            if axes not in constants:
                raise _Cannot(f"the axes of {name} are computed")
            node.attribute.append(helper.make_attribute("axes", numpy_helper.to_array(constants[axes]).reshape(-1).tolist()))
    while node.input and not node.input[-1]:
        node.input.pop()
    if len(node.input) > schema.max_input or len(node.output) > schema.max_output:
        raise _Cannot(f"{name} has more inputs or outputs than in opset {opset}")
    defaults = defs.get_schema(node.op_type, current).attributes
    for attribute in [a for a in node.attribute if a.name not in schema.attributes]:
        if attribute.name == "allowzero":
            # It decides what a 0 in the shape means, and a 0 that is meant needs an empty tensor: no feed has one.
            node.attribute.remove(attribute)
            continue
        default = defaults[attribute.name].default_value if attribute.name in defaults else onnx.AttributeProto()
        if default.type != attribute.type or helper.get_attribute_value(default) != helper.get_attribute_value(attribute):
            raise _Cannot(f"{name} has the attribute {attribute.name}, unknown to opset {opset}")
        node.attribute.remove(attribute)


def _slice_shapes(model: ModelProto) -> None:
    """``Shape<start, end>`` (since opset 15) as ``Slice(Shape)``."""
    for graph in iter_graphs(model.graph):
        nodes = []
        for node in graph.node:
            nodes.append(node)
            if node.op_type != "Shape" or not node.attribute:
                continue
            bounds = {attribute.name: attribute.i for attribute in node.attribute}
            whole, part = f"{node.output[0]}_whole", node.output[0]
            names = []
            for name, number in (("start", bounds.get("start", 0)), ("end", bounds.get("end", 2**63 - 1)), ("axis", 0)):
                names.append(f"{part}_{name}")
                graph.initializer.append(helper.make_tensor(names[-1], onnx.TensorProto.INT64, [1], [number]))
            nodes.append(helper.make_node("Slice", [whole, *names], [part], name=f"{node.name}_part"))
            del node.attribute[:]
            node.output[0] = whole
        del graph.node[:]
        graph.node.extend(nodes)


def _drop_unread(model: ModelProto) -> None:
    read = {name for graph in iter_graphs(model.graph) for node in graph.node for name in node.input}
    read |= {value.name for value in model.graph.output}
    unread = [i for i, tensor in enumerate(model.graph.initializer) if tensor.name not in read]
    for index in reversed(unread):
        del model.graph.initializer[index]
