"""The entries of a computed shape, where they follow from shapes and whole numbers alone.

Exporters compute ``view(n, c, h * w)`` with half a dozen operators on shapes. Only exact arithmetic is
followed: a shape that went through a floating type, or a type too narrow for it, is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from aff_deploy.passes.graph import is_absent, is_op, producer, small_value

Entry: TypeAlias = "int | tuple[str, int]"
"""A number, or (name, 0) where a dynamic dimension of that name was read."""

TIMES = "\0"
"""Between the names of dimensions that are multiplied; a name that a file gives cannot hold it by chance."""
MAX_ENTRIES = 64
MAX_DEPTH = 64
LARGEST = 2**31 - 1
"""What int32 holds, in which some exporters compute shapes."""

_WHOLE = (TensorProto.INT64, TensorProto.INT32)
_UNKNOWN = (TIMES, 0)
"""A dimension of no name, which fits nothing."""


@dataclass(frozen=True)
class _Value:
    """A whole number (`is_scalar`) or a vector of them."""

    entries: tuple[Entry, ...]
    is_scalar: bool = False


def shape_entries(shape: gs.Tensor) -> list[Entry] | None:
    """The entries of a shape, a vector or a number; None where it comes from anything but shapes and whole numbers."""
    value = _read(shape, {}, 0)
    return None if value is None else list(value.entries)


def _read(tensor: gs.Tensor, known: dict[str, _Value | None], depth: int) -> _Value | None:
    """What `tensor` is; `known` keeps what has been read, so that a tensor used often is read once."""
    if isinstance(tensor, gs.Constant):
        return _constant(tensor)
    if tensor.name not in known:
        known[tensor.name] = None
        node = producer(tensor)
        value = None if node is None or depth >= MAX_DEPTH else _computed(node, known, depth + 1)
        within = value is not None and len(value.entries) <= MAX_ENTRIES
        known[tensor.name] = value if within else None
    return known[tensor.name]


def _constant(tensor: gs.Constant) -> _Value | None:
    value = small_value(tensor, MAX_ENTRIES)
    if value is None or value.ndim > 1 or value.dtype not in (np.int64, np.int32):
        return None
    return _Value(tuple(int(entry) for entry in value.reshape(-1)), value.ndim == 0)


def _computed(node: gs.Node, known: dict[str, _Value | None], depth: int) -> _Value | None:
    if is_op(node, "Shape"):
        return None if node.inputs[0].shape is None else _Value(tuple(_dims(node)))
    if not is_op(node, "Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Gather", "Slice", "Concat", "Mul"):
        return None
    if is_op(node, "Cast") and node.attrs["to"] not in _WHOLE:
        return None
    if is_op(node, "Concat"):
        parts = [_read(tensor, known, depth) for tensor in node.inputs]
        vectors = [part for part in parts if part is not None and not part.is_scalar]
        return _Value(tuple(e for v in vectors for e in v.entries)) if len(vectors) == len(parts) else None
    value = _read(node.inputs[0], known, depth)
    if value is None or is_op(node, "Identity", "Cast"):
        return value
    if is_op(node, "Mul"):
        other = _read(node.inputs[1], known, depth)
        return None if other is None else _product(value, other)
    if is_op(node, "Gather", "Slice"):
        return None if value.is_scalar else _picked(node, value.entries)
    return _reshaped(node, value)


def _dims(node: gs.Node) -> Iterator[Entry]:
    for dim in node.inputs[0].shape[node.attrs.get("start", 0) : node.attrs.get("end")]:
        yield dim if isinstance(dim, int) else (dim, 0) if dim and TIMES not in dim else _UNKNOWN


def _product(one: _Value, other: _Value) -> _Value | None:
    """Entry by entry, as in ``view(n, c, h * w)``; a number times a name is a dimension of no name."""
    count = max(len(one.entries), len(other.entries))
    if {len(one.entries), len(other.entries)} - {1, count}:
        return None
    pairs = zip(*(v.entries * count if len(v.entries) == 1 else v.entries for v in (one, other)), strict=True)
    products = tuple(_times(a, b) for a, b in pairs)
    # Beyond that, int32 would have wrapped around.
    if any(isinstance(entry, int) and abs(entry) > LARGEST for entry in products):
        return None
    return _Value(products, one.is_scalar and other.is_scalar)


def _times(a: Entry, b: Entry) -> Entry:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if isinstance(a, int) or isinstance(b, int):
        factor, name = (a, b) if isinstance(a, int) else (b, a)
        return name if factor == 1 else _UNKNOWN
    return (f"{a[0]}{TIMES}{b[0]}", 0)


def _picked(node: gs.Node, dims: tuple[Entry, ...]) -> _Value | None:
    """Entries that Gather or Slice picks from a vector."""
    picks = [_constant(tensor) if isinstance(tensor, gs.Constant) else None for tensor in node.inputs[1:]]
    known = [[int(i) for i in pick.entries if isinstance(i, int)] for pick in picks if pick is not None]
    if len(known) != len(picks):
        return None
    if is_op(node, "Gather"):
        inside = all(-len(dims) <= i < len(dims) for i in known[0])
        return _Value(tuple(dims[i] for i in known[0]), bool(picks[0] and picks[0].is_scalar)) if inside else None
    if any(len(numbers) != 1 for numbers in known):
        return None
    step = known[3][0] if len(known) > 3 else 1
    return _Value(dims[known[0][0] : known[1][0] : step]) if step else None


def _reshaped(node: gs.Node, value: _Value) -> _Value | None:
    """Between a number and a vector of one; of higher ranks nothing is known."""
    if is_op(node, "Reshape"):
        target = small_value(node.inputs[1], 1)
        return None if target is None or len(value.entries) != 1 else _Value(value.entries, is_scalar=target.size == 0)
    axes = node.attrs.get("axes")
    if axes is None and is_op(node, "Squeeze") and is_absent(node.inputs, 1):
        return _Value(value.entries, is_scalar=len(value.entries) == 1)
    if axes is None and not is_absent(node.inputs, 1):
        named = small_value(node.inputs[1], 1)
        axes = None if named is None else named.reshape(-1)
    if axes is None or len(axes) != 1 or len(value.entries) != 1 or value.is_scalar != is_op(node, "Unsqueeze"):
        return None
    return _Value(value.entries, is_scalar=not value.is_scalar)
