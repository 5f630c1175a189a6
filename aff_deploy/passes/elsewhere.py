"""Attention that ONNX Runtime has already rewritten: its fused operators hide what the recogniser needs to see.

Only said, never touched, so that likeness is enough: a gate whose logits come from ONNX Runtime's own
operators, and which is mixed with its complement or made of two branches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_graphsurgeon as gs

from aff_deploy.passes.algebra import MAX_NODES
from aff_deploy.passes.graph import is_op, producer, uniform_value

REASON = "ONNX Runtime has fused parts of it ({}); optimise the original instead, and save no optimised file of its session"

_GATES = ("Sigmoid", "Tanh", "HardSigmoid")


def find_rewritten(graph: gs.Graph) -> Iterator[tuple[gs.Node, str]]:
    """Every such gate, with the reason."""
    if not any(_is_runtimes(node) for node in graph.nodes):
        return
    for node in graph.nodes:
        own = _is_runtimes(node) and node.attrs.get("activation") in _GATES
        if not own and not is_op(node, *_GATES):
            continue
        logits = [node] if own else list(_walk(node, _makers, "Add", "Sum", "Mul", "Conv", "Gemm", "MatMul"))
        makers = [found for found in logits if _is_runtimes(found) and found.op != "ReorderOutput"]
        behind = list(_walk(node, _readers, "Add", "Sub", "Neg"))
        complement = any(found.op in ("Add", "Sub", "Neg") and _has_number(found) for found in behind)
        two_branches = any(is_op(found, "Add", "Sum") for found in logits)
        if makers and any(found.op == "Mul" for found in behind) and (complement or two_branches):
            yield node, REASON.format(makers[0].op)


def _is_runtimes(node: gs.Node) -> bool:
    return str(node.domain or "").startswith("com.microsoft")


def _has_number(node: gs.Node) -> bool:
    return is_op(node, "Neg") or any(isinstance(t, gs.Constant) and uniform_value(t) is not None for t in node.inputs)


def _makers(node: gs.Node) -> Iterator[gs.Node]:
    for tensor in node.inputs:
        node_before = producer(tensor)
        if node_before is not None:
            yield node_before


def _readers(node: gs.Node) -> Iterator[gs.Node]:
    for tensor in node.outputs:
        yield from tensor.outputs


def _walk(start: gs.Node, step: Callable[[gs.Node], Iterator[gs.Node]], *through: str) -> Iterator[gs.Node]:
    """The nodes around `start`, as far as `through` and changes of layout reach, the first others included."""
    seen = {id(start)}
    frontier = list(step(start))
    while frontier and len(seen) < MAX_NODES:
        node = frontier.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if is_op(node, *through, "Reshape") or node.op in ("ReorderInput", "ReorderOutput"):
            frontier.extend(step(node))
