"""Which nodes stay in fp32 when a model is retyped to half precision, each with its reason in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, defs

from aff_deploy.onnx_data import nested_graphs
from aff_deploy.onnx_file import opset_of
from aff_deploy.ops import is_fusion
from aff_deploy.precision.exact import counted, counting
from aff_deploy.precision.prepare import HALF_NAMES, Source
from aff_deploy.precision.ranges import Range
from aff_deploy.precision.values import FP16_MAX, FP16_TINY
from aff_deploy.precision.weights import misfits
from aff_deploy.precision.wiring import ONNX_DOMAINS, reads, require_names

NEAR = FP16_MAX / 4
"""From here on a tensor is near fp16's limit: other data than the observed may well reach four times as far."""

SUMS = frozenset(
    (
        *("CumSum", "GlobalAveragePool", "GlobalLpPool", "ReduceMean", "ReduceSum", "ReduceSumSquare"),
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd"),
    )
)
"""Operators that add up as many numbers as a tensor has. Their input's range says nothing of the sum's."""

# Inputs that are fp32 whatever the others are: their type is one of its own.
_ALWAYS_WIDE = {"Resize": (1, 2)}


@dataclass(frozen=True)
class KeptWide:
    """A node or fusion call that stays in fp32, and why."""

    name: str
    reason: str


def reads_wide(node: NodeProto, position: int) -> bool:
    """Whether a node of half precision reads this input in fp32."""
    return node.domain in ONNX_DOMAINS and position in _ALWAYS_WIDE.get(node.op_type, ())


def kept_wide(
    source: Source, half: int, *, ranges: Mapping[str, Range] | None, observed: str, asked: Sequence[str] = ()
) -> tuple[KeptWide, ...]:
    """The nodes of a model that stay in fp32, in the order of the graph.

    Args:
        source: as `prepare` makes it.
        half: TensorProto.FLOAT16 or BFLOAT16.
        ranges: of its tensors; None where they do not matter (bfloat16 reaches as far as fp32).
        observed: on what data, in words.
        asked: names of nodes that a person wants wide.

    Raises:
        UsageError: no node has an asked name.
    """
    graph = source.light.graph
    require_names(graph, asked)
    elements = source.elements
    whole = counted(graph, elements, source.weights)
    indices, _ = counting(graph, elements)
    sparse = {tensor.values.name for tensor in graph.sparse_initializer}
    strained = _strained(source, ranges, observed) if ranges is not None else {}
    found = []
    for node in graph.node:
        if not any(map(source.is_float, (*reads(node), *node.output))):
            continue
        reasons = (
            "asked for" if node.name in asked else "",
            strained.get(node.name, ""),
            _untakeable(node, half, opset_of(source.light), elements, sparse),
            f"{node.op_type} adds up many numbers" if node.op_type in SUMS and node.domain in ONNX_DOMAINS else "",
            "computes sizes or positions, of which half precision holds few exactly" if node.name in whole else "",
            "integers are computed from it, which half precision would change" if node.name in indices else "",
        )
        if reason := next(filter(None, reasons), ""):
            found.append(KeptWide(node.name, reason))
    return tuple(found)


def _untakeable(node: NodeProto, half: int, opset: int, elements: Mapping[str, int], sparse: Set[str]) -> str:
    """Why a node cannot be of half precision by the ONNX standard, or nothing."""
    if is_fusion(node.domain, node.op_type):
        return ""
    if any(True for _ in nested_graphs(node)):
        return f"{node.op_type} holds a graph of its own, which is left as it is"
    if sparse & set(node.input):
        return "reads a sparse weight"
    if node.op_type == "Constant":
        return "holds a sparse weight"
    try:
        schema = defs.get_schema(node.op_type, opset, "") if node.domain in ONNX_DOMAINS else None
    except defs.SchemaError:
        schema = None
    if schema is None:
        return f"{node.op_type} is an operator of domain {node.domain!r}, of which ONNX does not say what types it takes"
    allowed = {constraint.type_param_str: set(constraint.allowed_type_strs) for constraint in schema.type_constraints}
    for formal, names in ((schema.inputs, node.input), (schema.outputs, node.output)):
        for position, name in enumerate(names):
            if elements.get(name) != TensorProto.FLOAT or not formal:
                continue
            if names is node.input and reads_wide(node, position):
                continue
            kind = formal[min(position, len(formal) - 1)].type_str
            if f"tensor({HALF_NAMES[half]})" not in allowed.get(kind, {kind}):
                return f"{node.op_type} takes no {HALF_NAMES[half]}"
    return ""


def _strained(source: Source, ranges: Mapping[str, Range], observed: str) -> dict[str, str]:
    """Nodes that make or read a tensor at fp16's limit, or read a weight that fp16 does not hold; why, by name."""
    words = {name: _in_words(name, seen, observed) for name, seen in ranges.items() if seen.reach > NEAR}
    inside: dict[str, str] = {}
    for name, text in words.items():
        if ranges[name].owner:
            inside.setdefault(ranges[name].owner, text)
    found: dict[str, str] = {}
    for node in source.light.graph.node:
        for name in (*node.output, *reads(node)):
            if name in words:
                found.setdefault(node.name, words[name])
        if node.name in inside:
            found.setdefault(node.name, inside[node.name])
    for node, text in misfits(source.light.graph, source.weights):
        found.setdefault(node.name, text)
    return found


def _in_words(name: str, seen: Range, observed: str) -> str:
    reach = "infinity in fp32 already" if np.isinf(seen.reach) else f"{seen.reach:.3g}"
    how = "overflows" if seen.reach > FP16_MAX else "near the limit"
    return f"{how}: {name!r} reaches {reach} on {observed}, fp16 ends at 65504"


def faint(ranges: Mapping[str, Range], observed: str) -> tuple[str, ...]:
    """Notes on tensors that are not zero, and vanish whole in fp16."""
    return tuple(
        f"{name!r} vanishes in fp16: it reaches only {seen.reach:.3g} on {observed}"
        for name, seen in ranges.items()
        if 0.0 < seen.reach < FP16_TINY
    )
