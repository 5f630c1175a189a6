"""Write the plain body of the fused operator in place of its calls: not every runtime reads local functions.

A body's nodes and tensors are named after the site, as ``layer3.0.attention/w``, so that whoever looks
for a site finds it. What a body computes of constants alone is folded at once: a second run of the
passes finds nothing left to do, and where it fuses the site again, writing it in place gives the same
file.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

from aff_deploy.onnx_data import iter_graphs, nested_graphs
from aff_deploy.onnx_file import opset_of
from aff_deploy.ops import DOMAIN, function_body, is_fusion
from aff_deploy.passes.cleanup import cleanup
from aff_deploy.passes.convert import export_model, import_graph
from aff_deploy.passes.fold_constants import fold_constants
from aff_deploy.passes.functions import attributes, best_form, noted_types, variant_of
from aff_deploy.passes.graph import fresh_name


def inline_calls(model: ModelProto) -> tuple[int, ModelProto]:
    """A copy of `model` without calls of the fused operator, and how many there were.

    The body is the plain one, or the convex where a call asks for it or is of half precision.

    Args:
        model: as `aff_deploy.passes.functions.attach_functions` left it.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    inlining = _Inlining(copy)
    count = inlining.write_in_place(copy.graph, noted_types(copy))
    for function in copy.functions:
        if function.domain != DOMAIN:
            count += inlining.write_in_place(function, {})
            _drop_domain(function)
    others = [function for function in copy.functions if function.domain != DOMAIN]
    del copy.functions[:]
    copy.functions.extend(others)
    _drop_domain(copy)
    graph = import_graph(copy)
    fold_constants(graph)
    cleanup(graph)
    return count, export_model(graph, copy)


def _drop_domain(where: ModelProto | FunctionProto) -> None:
    imports = [entry for entry in where.opset_import if entry.domain != DOMAIN]
    del where.opset_import[:]
    where.opset_import.extend(imports)


class _Inlining:
    """Writes bodies into graphs of one model, under names that nothing else has."""

    def __init__(self, model: ModelProto) -> None:
        self._opset = opset_of(model)
        graphs = list(iter_graphs(model.graph))
        nodes = [node for part in (*graphs, *model.functions) for node in part.node]
        taken = {value.name for graph in graphs for value in (*graph.input, *graph.initializer)}
        taken.update(name for node in nodes for name in (node.name, *node.output))
        self._taken = dict.fromkeys(taken, 0)

    def write_in_place(self, where: GraphProto | FunctionProto, types: Mapping[str, TypeProto.Tensor]) -> int:
        """Replace the calls of a graph, and of those in its nodes; returns how many."""
        count = 0
        written: list[NodeProto] = []
        for node in where.node:
            for nested in nested_graphs(node):
                count += self.write_in_place(nested, {})
            if is_fusion(node.domain, node.op_type):
                written += self._body_of(node, types)
                count += 1
            else:
                written.append(node)
        # Copies, because the messages are still those of the list that is emptied.
        nodes = [_copy(node) for node in written]
        del where.node[:]
        where.node.extend(nodes)
        return count

    def _body_of(self, call: NodeProto, types: Mapping[str, TypeProto.Tensor]) -> list[NodeProto]:
        said = attributes(call)
        kind = types.get(call.input[0])
        body = function_body(
            variant_of(call),
            form=best_form(call, types, "gpu"),
            # A scale of 2 would be written as a tanh, with halved weights, which nobody takes for this site again.
            scale=1.0 if said.get("scale", 1.0) == 1.0 else None,
            opset=self._opset,
            elem_type=TensorProto.UNDEFINED if kind is None else kind.elem_type,
            in_place=True,
        )
        site = call.name or call.output[0]
        names = dict(zip(body.input, call.input, strict=True)) | dict(zip(body.output, call.output, strict=True)) | {"": ""}
        given = {attribute.name: attribute for attribute in call.attribute}
        nodes = []
        for node in body.node:
            for output in node.output:
                if output not in names:
                    names[output] = fresh_name(f"{site}/{output}", self._taken)
            made = _copy(node)
            is_last = made.output[0] in body.output
            made.name = fresh_name(f"{site}/{node.output[0]}", self._taken) if is_last else names[made.output[0]]
            made.input[:] = [names[name] for name in node.input]
            made.output[:] = [names[name] for name in node.output]
            for attribute in made.attribute:
                _resolve(attribute, given)
            nodes.append(made)
        return nodes


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _resolve(attribute: AttributeProto, given: Mapping[str, AttributeProto]) -> None:
    """Give an attribute that refers to one of the call's that one's value."""
    if attribute.ref_attr_name:
        name = attribute.name
        attribute.CopyFrom(given[attribute.ref_attr_name])
        attribute.name = name
