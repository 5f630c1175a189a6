"""onnx's data propagation, held to what it gets right.

Shape inference follows the values of small integer tensors, so that a Reshape to a computed shape has a known
one. Three of its rules take for granted what need not be (onnx 1.23, ``PartialDataPropagationFunction``):

* Slice reads a start, end, axis or step that is not constant as 0.
* Cast passes values on whatever the type: through bool, or through one too narrow.
* Unsqueeze passes on the values of a vector as if it were one still; the Gather or Slice of the matrix that it
  has become then picks elements for rows.

And it keeps the values of nested graphs by name alone, though the branches of an If may use a name twice: there
nothing is passed on at all.

Of a Reshape it passes nothing on, though exporters write one where they make a number a vector, or a vector
itself: a Concat says the same of a vector, an Unsqueeze of a number.

And it writes out every element of a vector, known or not: one of 2^30 fills any memory. Where a tensor is so long,
nothing is propagated.

An Identity behind such a node keeps its type and shape and passes on no value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from onnx import (
    AttributeProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
    shape_inference,
)

from aff_deploy.onnx_data import nested_graphs

FIRST_OPSET_OF_AXES_AS_INPUT = 13
LONGEST_VECTOR = 2**16
"""Elements of a vector that onnx may write out; those that hold a shape have a few."""
_WHOLE = (TensorProto.INT64, TensorProto.INT32)
_ELEMENTWISE = ("Add", "Sub", "Mul", "Cast", "Identity")
_PROPAGATING = ("Add", "Cast", "Concat", "Gather", "Mul", "Shape", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze")


@dataclass
class _Known:
    """What is known of tensors by name: which are constant, and which have no axis or one."""

    opset: int
    constants: set[str] = field(default_factory=set)
    ranks: dict[str, int] = field(default_factory=dict)
    lines: set[str] = field(default_factory=set)
    """Names of shapes that are [-1]."""

    def add_tensors(self, tensors: Iterable[TensorProto]) -> None:
        for tensor in tensors:
            self.constants.add(tensor.name)
            self.ranks[tensor.name] = len(tensor.dims)
            if _is_line(tensor):
                self.lines.add(tensor.name)

    def add_inputs(self, values: Iterable[ValueInfoProto]) -> None:
        for value in values:
            if value.type.tensor_type.HasField("shape"):
                self.ranks[value.name] = len(value.type.tensor_type.shape.dim)

    def add_outputs(self, node: NodeProto) -> None:
        if node.op_type == "Constant":
            self.constants.update(node.output)
            if any(list(a.ints) == [-1] or (a.HasField("t") and _is_line(a.t)) for a in node.attribute):
                self.lines.update(node.output)
        rank = _rank(node, self.ranks, self.lines)
        if rank is not None:
            self.ranks.update(dict.fromkeys(node.output, rank))


def hold_propagation(model: ModelProto) -> bool:
    """Put an Identity behind every node whose values onnx may pass on wrongly, in nested graphs and functions too.

    Args:
        model: changed in place; it computes what it did. Its nodes are in order.

    Returns:
        Whether values may be passed on at all.
    """
    numbers = count()
    known = _Known(_opset(model.opset_import))
    known.add_tensors(model.graph.initializer)
    known.add_inputs(model.graph.input)
    _hold(model.graph.node, known, numbers)
    for function in model.functions:
        _hold(function.node, _Known(_opset(function.opset_import)), numbers)
    return not _has_long_vector(model)


def _has_long_vector(model: ModelProto) -> bool:
    try:
        graph = shape_inference.infer_shapes(model, data_prop=False).graph
    except shape_inference.InferenceError:  # which whoever asks for more meets again
        return False
    shapes = (value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.input, *graph.output))
    return any(len(dims) == 1 and dims[0].dim_value > LONGEST_VECTOR for dims in shapes)


def _opset(imports: Iterable[OperatorSetIdProto]) -> int:
    return next((entry.version for entry in imports if entry.domain in ("", "ai.onnx")), 1)


def _hold(nodes: Any, known: _Known | None, numbers: Iterator[int]) -> None:
    """`nodes` is the field of a graph or function; `known` is None in a nested graph."""
    held: list[NodeProto] = []
    for node in nodes:
        for nested in nested_graphs(node):
            _hold(nested.node, None, numbers)
        held.append(node)
        if node.domain not in ("", "ai.onnx"):
            continue
        if known is not None:
            known.add_outputs(node)
            held[-1:] = _plainer(node, known, numbers)
        wrong = node.op_type in _PROPAGATING if known is None else _may_be_wrong(node, known)
        if wrong and len(node.output) == 1:
            inner = NodeProto()
            inner.CopyFrom(node)
            # A name that no file gives by chance.
            inner.output[0] = f"{node.output[0]}\0{next(numbers)}"
            held[-1:] = [inner, helper.make_node("Identity", inner.output, node.output)]
    if len(held) > len(nodes):
        del nodes[:]
        nodes.extend(held)


def _plainer(node: NodeProto, known: _Known, numbers: Iterator[int]) -> list[NodeProto]:
    """The node, or, for a Reshape to a vector, what says the same and passes values on."""
    if node.op_type != "Reshape" or len(node.input) < 2 or node.input[1] not in known.lines:
        return [node]
    rank = known.ranks.get(node.input[0])
    if rank == 1:
        return [helper.make_node("Concat", node.input[:1], node.output, axis=0)]
    if rank == 0 and known.opset >= FIRST_OPSET_OF_AXES_AS_INPUT:
        axes = f"\0{next(numbers)}"
        zero = helper.make_node("Constant", [], [axes], value_ints=[0])
        return [zero, helper.make_node("Unsqueeze", [node.input[0], axes], node.output)]
    return [node]


def _is_line(tensor: TensorProto) -> bool:
    return tensor.data_type == TensorProto.INT64 and list(tensor.dims) == [1] and int(numpy_helper.to_array(tensor)[0]) == -1


def _may_be_wrong(node: NodeProto, known: _Known) -> bool:
    if node.op_type == "Slice":
        return not all(name in known.constants for name in node.input[1:] if name)
    if node.op_type == "Cast":
        return all(attribute.name != "to" or attribute.i not in _WHOLE for attribute in node.attribute)
    return node.op_type == "Unsqueeze" and all(known.ranks.get(name) != 0 for name in node.input[:1])


def _rank(node: NodeProto, ranks: Mapping[str, int], lines: AbstractSet[str]) -> int | None:
    """How many axes a node's output has, where that is none or one and plain to see."""
    given = [ranks.get(name) for name in node.input]
    data = given[0] if given else None
    if node.op_type == "Constant":
        return next((_literal_rank(attribute) for attribute in node.attribute), None)
    if node.op_type in ("Shape", "Size"):
        return 1 if node.op_type == "Shape" else 0
    if node.op_type == "Gather":
        return given[1] if data == 1 and len(given) > 1 else None
    if node.op_type == "Slice":
        return data
    if node.op_type == "Reshape" and len(node.input) > 1 and node.input[1] in lines:
        return 1
    if node.op_type in ("Squeeze", "Unsqueeze"):
        return {("Squeeze", 1): 0, ("Unsqueeze", 0): 1}.get((node.op_type, -1 if data is None else data))
    known = [rank for rank in given if rank is not None]
    if node.op_type not in (*_ELEMENTWISE, "Concat") or len(known) < len(given):
        return None
    return max(known, default=None)


def _literal_rank(attribute: AttributeProto) -> int | None:
    if attribute.HasField("t"):
        return len(attribute.t.dims)
    return {"value_int": 0, "value_float": 0, "value_ints": 1, "value_floats": 1}.get(attribute.name)
