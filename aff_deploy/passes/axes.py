"""Which axis is which, followed through reshapes, transposes and reductions.

A branch written with Linear layers, with views and permutes, is a branch still if every value ends
up where a 1x1 convolution would have put it. To know that, each axis of a tensor carries the
*atoms* it consists of: ``N``, ``C``, the spatial axes ``0``, ``1``, …; several where a reshape
merged them, none where its size is 1. An operator that cannot be followed exactly gives None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isclose, prod

import numpy as np
import onnx_graphsurgeon as gs

from aff_deploy.ops.operator import Branch
from aff_deploy.passes.algebra import precision, scalar
from aff_deploy.passes.graph import is_op, named_axes, producer
from aff_deploy.passes.shapes import TIMES, Entry, shape_entries

Atoms = tuple[str, ...]
N, C = "N", "C"


@dataclass(frozen=True)
class Layout:
    """The atoms of each axis of a tensor, and the sizes of the atoms as far as they are known.

    Attributes:
        axes: atoms by axis.
        sizes: size by atom; absent where dynamic.
        names: name by atom of a dynamic dimension.
        spatial: how many spatial axes the source had.
        averaged: the spatial atoms that have been averaged away.
    """

    axes: tuple[Atoms, ...]
    sizes: Mapping[str, int]
    names: Mapping[str, str]
    spatial: int
    averaged: frozenset[str] = frozenset()

    def without_ones(self, axes: Iterable[Atoms]) -> tuple[Atoms, ...]:
        """Axes without the atoms of size 1, which may stand anywhere."""
        return tuple(tuple(atom for atom in axis if atom == C or self.sizes.get(atom) != 1) for axis in axes)

    @property
    def channel_axis(self) -> int | None:
        """The axis that is the channels and nothing else."""
        axes = self.without_ones(self.axes)
        return axes.index((C,)) if (C,) in axes else None

    def holds(self, shape: Sequence[int | str | None] | None) -> bool:
        """Whether broadcasting something of `shape` with a tensor laid out so makes nothing larger."""
        if shape is None or len(shape) > len(self.axes):
            return False
        for dim, atoms in zip(reversed(shape), reversed(self.axes), strict=False):
            known = all(atom in self.sizes for atom in atoms)
            if dim != 1 and not (known and dim == prod(self.sizes[atom] for atom in atoms)):
                return False
        return True

    @property
    def is_local(self) -> bool:
        """Whether this is N x C x spatial, nothing averaged."""
        whole = ((N,), (C,), *((str(i),) for i in range(self.spatial)))
        return not self.averaged and self.without_ones(self.axes) == self.without_ones(whole)

    @property
    def is_global(self) -> bool:
        """Whether this is N x C x 1..., all spatial axes averaged."""
        pooled = ((N,), (C,), *[()] * self.spatial)
        return self.kind == "global" and self.without_ones(self.axes) == self.without_ones(pooled)

    @property
    def kind(self) -> Branch | None:
        """Local if nothing is averaged, global if all is, None if some of it is."""
        kept = {str(i) for i in range(self.spatial)} - self.averaged
        return "local" if not self.averaged else None if self.without_ones([tuple(kept)])[0] else "global"

    def with_channels(self, count: int) -> Layout:
        """The same layout with another number of channels."""
        return replace(self, sizes={**self.sizes, C: count})


def layout_of(source: gs.Tensor) -> Layout | None:
    """The layout of a tensor N x C x spatial; None without known rank and channels."""
    shape = source.shape
    if shape is None or len(shape) < 3 or not isinstance(shape[1], int):
        return None
    atoms = (N, C, *(str(i) for i in range(len(shape) - 2)))
    sizes = {atom: dim for atom, dim in zip(atoms, shape, strict=True) if isinstance(dim, int)}
    names = {atom: dim for atom, dim in zip(atoms, shape, strict=True) if isinstance(dim, str)}
    return Layout(tuple((atom,) for atom in atoms), sizes, names, len(shape) - 2)


def broadcast(one: Layout, other: Layout) -> Layout | None:
    """The layout of the sum of two tensors of one source; None if different values would meet."""
    rank = max(len(one.axes), len(other.axes))
    axes: list[Atoms] = []
    for mine, its in zip(*(((),) * (rank - len(layout.axes)) + layout.axes for layout in (one, other)), strict=True):
        # What is averaged, and what has size one, is spread over whatever the other has there.
        kept, met = one.without_ones([mine])[0], other.without_ones([its])[0]
        if kept and met and kept != met:
            return None
        axes.append(mine if kept else its)
    return replace(one, axes=tuple(axes), averaged=one.averaged & other.averaged)


def follow(layout: Layout, node: gs.Node) -> Layout | None:
    """The layout behind a node that moves or averages values; None if it does something else."""
    if is_op(node, "Identity"):
        return layout
    if is_op(node, "Transpose"):
        order = node.attrs.get("perm") or range(len(layout.axes) - 1, -1, -1)
        if sorted(order) != list(range(len(layout.axes))):
            return None
        return replace(layout, axes=tuple(layout.axes[i] for i in order))
    if is_op(node, "Flatten"):
        axis = node.attrs.get("axis", 1)
        cut = axis + len(layout.axes) if axis < 0 else axis
        return replace(layout, axes=(_merge(layout.axes[:cut]), _merge(layout.axes[cut:])))
    if is_op(node, "Squeeze"):
        return _squeeze(layout, _axes(node, len(layout.axes)))
    if is_op(node, "Unsqueeze"):
        return _unsqueeze(layout, node)
    if is_op(node, "Reshape"):
        return _reshape(layout, node)
    if is_op(node, "ReduceMean"):
        return _reduce_mean(layout, node)
    if is_op(node, "GlobalAveragePool"):
        return _average(layout, range(2, len(layout.axes)), keep=True) if layout.axes[:2] == ((N,), (C,)) else None
    if is_op(node, "AveragePool"):
        return _average_pool(layout, node)
    if is_op(node, "Div", "Mul"):
        return _average_of_sum(layout, node)
    if is_op(node, "Expand") and layout.is_global:
        # Broadcasting early or late is the same, if it is to the source's own size.
        return layout if _is_own_size(layout, shape_entries(node.inputs[1])) else None
    return None


MOVERS = ("Identity", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Reshape", "Expand")
AVERAGES = ("ReduceMean", "GlobalAveragePool", "AveragePool")


def _merge(axes: Sequence[Atoms]) -> Atoms:
    return tuple(atom for axis in axes for atom in axis)


def _axes(node: gs.Node, rank: int) -> list[int] | None:
    """The axes a node names in an attribute or a constant input, made positive; None if it names none that there are."""
    axes = named_axes(node)
    if axes is None or not all(-rank <= axis < rank for axis in axes):
        return None
    positive = [axis % rank for axis in axes]
    return positive if len(set(positive)) == len(positive) else None


def _squeeze(layout: Layout, axes: Sequence[int] | None) -> Layout | None:
    # Naming no axis squeezes every axis of size one, whichever they turn out to be.
    if not axes or any(layout.axes[axis] for axis in axes):
        return None
    return replace(layout, axes=tuple(atoms for i, atoms in enumerate(layout.axes) if i not in axes))


def _unsqueeze(layout: Layout, node: gs.Node) -> Layout | None:
    rank = len(layout.axes) + len(named_axes(node) or ())
    positions = _axes(node, rank)
    if not positions:
        return None
    rest = iter(layout.axes)
    return replace(layout, axes=tuple(() if i in positions else next(rest) for i in range(rank)))


def _reduce_mean(layout: Layout, node: gs.Node) -> Layout | None:
    axes = _axes(node, len(layout.axes))
    if axes == []:
        # Naming no axis means all of them, unless it is said to mean none.
        return layout if node.attrs.get("noop_with_empty_axes", 0) else None
    return _average(layout, axes, keep=bool(node.attrs.get("keepdims", 1)))


def _is_own_size(layout: Layout, target: Sequence[Entry] | None) -> bool:
    """Whether expanding to `target` makes nothing larger than N x C x spatial of the source."""
    atoms = (N, C, *(str(i) for i in range(layout.spatial)))
    if target is None or len(target) != len(atoms) or len(layout.axes) != len(atoms):
        return False
    own = [layout.sizes.get(atom, (layout.names[atom], 0) if atom in layout.names else None) for atom in atoms]
    return all(entry in (1, size) for entry, size in zip(target, own, strict=True))


def _average(layout: Layout, axes: Sequence[int] | None, *, keep: bool) -> Layout | None:
    if axes is None:
        return None
    atoms = {atom for axis in axes for atom in layout.axes[axis]}
    if atoms & {N, C}:
        return None
    kept = tuple(() if i in axes else axis for i, axis in enumerate(layout.axes) if keep or i not in axes)
    return replace(layout, axes=kept, averaged=layout.averaged | atoms)


def sum_behind(node: gs.Node) -> gs.Node | None:
    """The ReduceSum that a Div or Mul makes an average of, or None."""
    makers = [producer(tensor) for tensor in (node.inputs[:1] if is_op(node, "Div") else node.inputs)]
    return next((maker for maker in makers if is_op(maker, "ReduceSum")), None) if is_op(node, "Div", "Mul") else None


def _average_of_sum(layout: Layout, node: gs.Node) -> Layout | None:
    """A sum divided by how many numbers it is of, or multiplied by one over that."""
    total = sum_behind(node)
    axes = None if total is None else _axes(total, len(layout.axes))
    if total is None or not axes:
        return None
    averaged = _average(layout, axes, keep=bool(total.attrs.get("keepdims", 1)))
    count = next((tensor for tensor in node.inputs if producer(tensor) is not total), None)
    if averaged is None or count is None or not averaged.holds(count.shape):
        return None
    (atoms,) = layout.without_ones([_merge([layout.axes[axis] for axis in axes])])
    size = prod(layout.sizes[atom] for atom in atoms) if all(atom in layout.sizes for atom in atoms) else None
    number = scalar(count)
    if number is not None:
        wanted = None if size is None else float(size) if is_op(node, "Div") else 1.0 / size
        fits = wanted is not None and isclose(number, wanted, rel_tol=precision(node.outputs[0]))
        return averaged if fits else None
    return averaged if is_op(node, "Div") and _counts(count, size, [layout.names.get(atom, "") for atom in atoms]) else None


def _counts(count: gs.Tensor, size: int | None, names: Sequence[str]) -> bool:
    """Whether a tensor is the product of dimensions of this size, or of these names, made a float."""
    cast = producer(count)
    # In half precision the product would be rounded coarsely, or be infinite.
    if cast is None or not is_op(cast, "Cast") or count.dtype not in (np.float32, np.float64):
        return False
    entries = shape_entries(cast.inputs[0])
    if entries is None or len(entries) != 1:
        return False
    (entry,) = entries
    return entry == size if isinstance(entry, int) else bool(names) and sorted(entry[0].split(TIMES)) == sorted(names)


def _average_pool(layout: Layout, node: gs.Node) -> Layout | None:
    """A window over the whole of each axis, the size being static, or of one over an axis that stays; without padding."""
    spatial, kernel = layout.axes[2:], list(node.attrs["kernel_shape"])
    strides = node.attrs.get("strides") or [1] * len(kernel)
    sizes = [1 if not axis else layout.sizes.get(axis[0]) if len(axis) == 1 else None for axis in spatial]
    padded = any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    stays = [window == 1 and (size == 1 or stride == 1) for window, size, stride in zip(kernel, sizes, strides, strict=True)]
    if layout.axes[:2] != ((N,), (C,)) or padded:
        return None
    if not all(kept or window == size for kept, window, size in zip(stays, kernel, sizes, strict=True)):
        return None
    return _average(layout, [i for i, kept in enumerate(stays, 2) if not kept], keep=True)


def _reshape(layout: Layout, node: gs.Node) -> Layout | None:
    """Share the atoms, which keep their order, out among the new axes: from both ends towards a -1."""
    target = shape_entries(node.inputs[1])
    if target is None or (0 in target and node.attrs.get("allowzero", 0)):
        return None
    left = list(_merge(layout.axes))
    open_at = target.index(-1) if -1 in target else len(target)
    head = [_take(layout, dim, i, left, from_end=False) for i, dim in enumerate(target[:open_at])]
    tail = [
        _take(layout, dim, i, left, from_end=True) for i, dim in reversed(list(enumerate(target[open_at + 1 :], open_at + 1)))
    ]
    axes = [*head, *([tuple(left)] if -1 in target else []), *reversed(tail)]
    if any(axis is None for axis in axes) or (-1 not in target and left):
        return None
    return replace(layout, axes=tuple(axis for axis in axes if axis is not None))


def _take(layout: Layout, dim: Entry, index: int, left: list[str], *, from_end: bool) -> Atoms | None:
    """Take from one end of `left` the atoms that make up one new axis of the given size."""
    if isinstance(dim, tuple) or dim == 0:
        wanted = layout.axes[index] if dim == 0 and index < len(layout.axes) else _named(layout, dim)
        if wanted is None or (tuple(left[-len(wanted) :] if from_end else left[: len(wanted)]) != wanted and wanted):
            return None
        del left[len(left) - len(wanted) if from_end else 0 : len(left) if from_end else len(wanted)]
        return wanted
    taken: list[str] = []
    size = 1
    while size < dim and left:
        atom = left.pop(-1 if from_end else 0)
        if atom not in layout.sizes:
            return None
        size *= layout.sizes[atom]
        taken.append(atom)
    return tuple(reversed(taken) if from_end else taken) if size == dim else None


def _named(layout: Layout, dim: Entry) -> Atoms | None:
    """The atoms that a dimension computed from another tensor's shape stands for."""
    if not isinstance(dim, tuple):
        return None
    atoms = {name: atom for atom, name in reversed(list(layout.names.items()))}
    names = dim[0].split(TIMES)
    return tuple(atoms[name] for name in names) if all(name in atoms for name in names) else None
