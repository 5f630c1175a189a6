"""A few words on top of onnx-graphsurgeon that every pass shares."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

Array = NDArray[Any]

LARGEST_UNIFORM = 2**22
"""Elements of a constant that are looked through for whether they are all the same."""
STANDARD_DOMAINS = (None, "", "ai.onnx")


class Node(gs.Node):  # type: ignore[misc]
    """A node that equals itself alone: graphsurgeon's compare all that they hold, wherever one is looked up in a list."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


def is_op(node: gs.Node | None, *ops: str) -> bool:
    """Whether `node` is one of the standard ONNX operators `ops`."""
    return node is not None and node.op in ops and node.domain in STANDARD_DOMAINS


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that makes `tensor`; None for inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def described(node: gs.Node) -> str:
    """A node as its owner may find it: by its name or, where it has none, by what it makes."""
    return (
        f"{node.op} {node.name!r}" if node.name else f"{node.op} of {node.outputs[0].name!r}" if node.outputs else str(node.op)
    )


def is_absent(tensors: Sequence[gs.Tensor], index: int) -> bool:
    """Whether an optional input or output is not given."""
    return index >= len(tensors) or tensors[index].is_empty()


def output_names(graph: gs.Graph) -> frozenset[str]:
    """Names that must stay: those of the graph's outputs, and of what nested graphs read."""
    return frozenset(tensor.name for tensor in graph.outputs) | getattr(graph, "captured", frozenset())


def consumers(tensor: gs.Tensor) -> Iterator[gs.Node]:
    """The nodes that read `tensor`, those in nested graphs among them, once for each time they do."""
    yield from tensor.outputs


def only_read_by(tensor: gs.Tensor, node: gs.Node, outputs: frozenset[str]) -> bool:
    """Whether `node` alone reads `tensor`, once, and it is no graph output."""
    return len(tensor.outputs) == 1 and tensor.outputs[0] is node and tensor.name not in outputs


def small_value(tensor: gs.Tensor, limit: int = 4096) -> Array | None:
    """The value of a constant of at most `limit` elements; None for anything else."""
    if not isinstance(tensor, gs.Constant) or tensor.shape is None or math.prod(tensor.shape) > limit:
        return None
    return np.asarray(tensor.values)


def named_axes(node: gs.Node) -> list[int] | None:
    """The axes a node names in an attribute or a constant input; None if it names none."""
    if "axes" in node.attrs:
        return [int(axis) for axis in node.attrs["axes"]]
    value = None if is_absent(node.inputs, 1) else small_value(node.inputs[1])
    return None if value is None else [int(axis) for axis in value.reshape(-1)]


def uniform_value(tensor: gs.Tensor) -> float | None:
    """The value that all elements of a floating or integer constant share; None where they differ."""
    value = small_value(tensor, LARGEST_UNIFORM)
    if value is None or value.size == 0 or value.dtype.kind not in "fiuV":
        return None
    if value.flat[0] != value.flat[-1]:
        return None  # as of nearly every weight, which need not be looked through
    wide = value.astype(np.float64)
    first = float(wide.flat[0])
    return first if bool(np.all(wide == first)) else None


def rank(tensor: gs.Tensor) -> int | None:
    return None if tensor.shape is None else len(tensor.shape)


def same_shape(one: gs.Tensor, other: gs.Tensor) -> bool:
    """Whether two tensors are known to have the same shape, dynamic dimensions by name."""
    return one.shape is not None and other.shape is not None and None not in one.shape and list(one.shape) == list(other.shape)


def replace_uses(old: gs.Tensor, new: gs.Tensor, outputs: frozenset[str]) -> bool:
    """Make everyone who reads `old` read `new`; False, and nothing done, where that cannot be.

    A name in `outputs` (see `output_names`) stays: then `new` takes over `old`'s place as the output of its
    producer, which is impossible when `new` is itself an input, a constant or another output.
    """
    if old.name not in outputs:
        _move_readers(old, new)
        return True
    maker = producer(new)
    if maker is None or new.name in outputs or isinstance(new, gs.Constant) or (old.dtype, old.shape) == (None, None):
        return False
    old.inputs.clear()
    _move_readers(new, old)
    maker.outputs = [old if tensor is new else tensor for tensor in maker.outputs]
    return True


def _move_readers(old: gs.Tensor, new: gs.Tensor) -> None:
    """At once: graphsurgeon's lists, changed one by one, search the readers of both tensors each time."""
    for node in old.outputs:
        for i, tensor in enumerate(node.inputs):
            if tensor is old:
                list.__setitem__(node.inputs, i, new)
    list.extend(new.outputs, old.outputs)
    list.clear(old.outputs)


def sort_nodes(graph: gs.Graph) -> None:
    """Put each node behind those whose outputs it, or a graph nested in it, reads; what is in order stays."""
    makers = {tensor.name: i for i, node in enumerate(graph.nodes) for tensor in node.outputs}
    needs = [{makers[name] for name in _names_read(node) if name in makers} for node in graph.nodes]
    if all(max(needed, default=-1) < i for i, needed in enumerate(needs)):
        return
    users: dict[int, list[int]] = {}
    for i, needed in enumerate(needs):
        for j in needed:
            users.setdefault(j, []).append(i)
    missing = [len(needed) for needed in needs]
    ready = [i for i, count in enumerate(missing) if not count]
    order: list[gs.Node] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(graph.nodes[i])
        for user in users.get(i, ()):
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, user)
    graph.nodes = order


def _names_read(node: gs.Node) -> Iterator[str]:
    yield from (tensor.name for tensor in node.inputs if not tensor.is_empty())
    yield from getattr(node, "captured", ())


def drop_unused(graph: gs.Graph) -> None:
    """Take out every node that no output, and no nested graph, needs."""
    makers = {tensor.name: node for node in graph.nodes for tensor in node.outputs}
    used: set[int] = set()
    frontier = [makers[name] for name in output_names(graph) if name in makers]
    while frontier:
        node = frontier.pop()
        if id(node) not in used:
            used.add(id(node))
            frontier.extend(maker for tensor in node.inputs for maker in tensor.inputs)
    unused = [node for node in graph.nodes if id(node) not in used]
    gone = {id(node) for node in unused}
    for tensor in {id(tensor): tensor for node in unused for tensor in node.inputs}.values():
        list.__setitem__(tensor.outputs, slice(None), [node for node in tensor.outputs if id(node) not in gone])
    for node in unused:
        list.clear(node.inputs)
        node.outputs.clear()
    graph.nodes = [node for node in graph.nodes if id(node) in used]


def name_counts(names: Iterable[str]) -> dict[str, int]:
    """What `fresh_name` keeps of the names in use: how many were made of each."""
    return dict.fromkeys(names, 0)


def fresh_name(wanted: str, taken: dict[str, int]) -> str:
    """`wanted`, or `wanted_1`, …: the first name not in `taken`, which then holds it."""
    name, count = wanted, taken.get(wanted, 0)
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    if name != wanted:
        taken[wanted] = count
    taken[name] = 0
    return name
