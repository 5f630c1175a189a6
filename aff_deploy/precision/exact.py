"""Floats that hold whole numbers: positions and sizes, and what integers are computed from.

Half precision holds whole numbers up to 2048 (float16) or 256 (bfloat16), and rounds those beyond.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from onnx import GraphProto, NodeProto, TensorProto

from aff_deploy.precision.wiring import ONNX_DOMAINS, cast_target

# Operators whose result is known from whole numbers where that of all their inputs is.
_ARITHMETIC = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Neg", "Abs", "Floor", "Ceil", "Round", "Sqrt", "Min"),
        *("Max", "Clip", "Reciprocal", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Slice"),
        *("Gather", "Expand", "Tile", "Identity", "Where", "Range", "Cast", "Log", "Exp", "Sin", "Cos"),
    )
)
# Followed back from an integer besides.
_ELEMENTWISE = _ARITHMETIC | {"Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Sign", "Flatten", "Split"}
_INTEGERS = frozenset(
    getattr(TensorProto, name) for name in ("INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8")
)


def counted(graph: GraphProto, elements: Mapping[str, int], constants: Collection[str]) -> set[str]:
    """Names of the nodes that compute with numbers cast from integers and with `constants` alone."""
    exact: set[str] = set()
    nodes: set[str] = set()
    for node in graph.node:
        if node.op_type not in _ARITHMETIC or node.domain not in ONNX_DOMAINS:
            continue
        floats = [name for name in node.input if elements.get(name) == TensorProto.FLOAT and name not in constants]
        from_integers = node.op_type == "Cast" and elements.get(node.input[0]) in _INTEGERS
        if from_integers or (floats and exact.issuperset(floats)):
            exact.update(node.output)
            nodes.add(node.name)
    return nodes


def counting(graph: GraphProto, elements: Mapping[str, int]) -> tuple[set[str], set[str]]:
    """What integers are computed from: by a Cast to an integer type, Equal or NonZero.

    Followed back from there are operators that work element by element, up to and with the one that makes their tensor.

    Args:
        graph: its nodes in order.
        elements: the element types of its tensors.

    Returns:
        Names of nodes (of those that have one), and of fp32 tensors.
    """
    nodes: set[str] = set()
    tensors: set[str] = set()
    for node in reversed(graph.node):
        ends = _is_end(node)
        if not ends and tensors.isdisjoint(node.output):
            continue
        floats = {name for name in node.input if elements.get(name) == TensorProto.FLOAT}
        if ends and not floats:
            continue
        nodes.add(node.name)
        if ends or (node.op_type in _ELEMENTWISE and node.domain in ONNX_DOMAINS):
            tensors |= floats
    return nodes - {""}, tensors


def _is_end(node: NodeProto) -> bool:
    return node.domain in ONNX_DOMAINS and (node.op_type in ("Equal", "NonZero") or cast_target(node) in _INTEGERS)
