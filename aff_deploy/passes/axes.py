"""Which axis is which, followed through reshapes, transposes and reductions.

A branch written with Linear layers, with views and permutes, is a branch still if every value ends
up where a 1x1 convolution would have put it. To know that, each axis of a tensor carries the
*atoms* it consists of: ``N``, ``C``, the spatial axes ``0``, ``1``, …; several where a reshape
merged them, none where its size is 1. An operator that cannot be followed exactly gives None.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from aff_deploy.passes.graph import is_absent, is_op, producer, small_value

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

    def _without_ones(self, axes: Iterable[Atoms]) -> tuple[Atoms, ...]:
        """Axes without the atoms of size 1, which may stand anywhere."""
        return tuple(tuple(atom for atom in axis if atom == C or self.sizes.get(atom) != 1) for axis in axes)

    @property
    def channel_axis(self) -> int | None:
        """The axis that is the channels and nothing else."""
        axes = self._without_ones(self.axes)
        return axes.index((C,)) if (C,) in axes else None

    @property
    def is_local(self) -> bool:
        """Whether this is N x C x spatial, nothing averaged."""
        whole = ((N,), (C,), *((str(i),) for i in range(self.spatial)))
        return not self.averaged and self._without_ones(self.axes) == self._without_ones(whole)

    @property
    def is_global(self) -> bool:
        """Whether this is N x C x 1..., all spatial axes averaged."""
        kept = {str(i) for i in range(self.spatial)} - self.averaged
        pooled = ((N,), (C,), *[()] * self.spatial)
        return not self._without_ones([tuple(kept)])[0] and self._without_ones(self.axes) == self._without_ones(pooled)

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


def follow(layout: Layout, node: gs.Node) -> Layout | None:
    """The layout behind a node that moves or averages values; None if it does something else."""
    if is_op(node, "Identity"):
        return layout
    if is_op(node, "Transpose"):
        order = node.attrs.get("perm") or range(len(layout.axes) - 1, -1, -1)
        return replace(layout, axes=tuple(layout.axes[i] for i in order))
    if is_op(node, "Flatten"):
        cut = node.attrs.get("axis", 1) % (len(layout.axes) + 1)
        return replace(layout, axes=(_merge(layout.axes[:cut]), _merge(layout.axes[cut:])))
    if is_op(node, "Squeeze"):
        return _squeeze(layout, _axes(node, len(layout.axes)))
    if is_op(node, "Unsqueeze"):
        return _unsqueeze(layout, node)
    if is_op(node, "Reshape"):
        return _reshape(layout, node)
    if is_op(node, "ReduceMean"):
        return _average(layout, _axes(node, len(layout.axes)), keep=bool(node.attrs.get("keepdims", 1)))
    if is_op(node, "GlobalAveragePool"):
        return _average(layout, range(2, len(layout.axes)), keep=True) if layout.axes[:2] == ((N,), (C,)) else None
    if is_op(node, "AveragePool"):
        return _average_pool(layout, node)
    if is_op(node, "Expand") and layout.is_global:
        # Broadcasting early or late is the same; that it is to the right size shows at the output.
        return layout
    return None


MOVERS = ("Identity", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Reshape", "Expand")
AVERAGES = ("ReduceMean", "GlobalAveragePool", "AveragePool")


def _merge(axes: Sequence[Atoms]) -> Atoms:
    return tuple(atom for axis in axes for atom in axis)


def _axes(node: gs.Node, rank: int) -> list[int] | None:
    """The axes a node names in an attribute or a constant input, made positive; None if it names none."""
    if "axes" in node.attrs:
        return [int(axis) % rank for axis in node.attrs["axes"]]
    value = None if is_absent(node.inputs, 1) else small_value(node.inputs[1])
    return None if value is None else [int(axis) % rank for axis in value.reshape(-1)]


def _squeeze(layout: Layout, axes: Sequence[int] | None) -> Layout | None:
    if axes is None or any(layout.axes[axis] for axis in axes):
        return None
    return replace(layout, axes=tuple(atoms for i, atoms in enumerate(layout.axes) if i not in axes))


def _unsqueeze(layout: Layout, node: gs.Node) -> Layout | None:
    named = node.attrs.get("axes")
    value = small_value(node.inputs[1]) if named is None and not is_absent(node.inputs, 1) else None
    count = len(named) if named is not None else 0 if value is None else value.size
    positions = _axes(node, len(layout.axes) + count) if count else None
    if positions is None:
        return None
    rest = iter(layout.axes)
    rank = len(layout.axes) + count
    return replace(layout, axes=tuple(() if i in positions else next(rest) for i in range(rank)))


def _average(layout: Layout, axes: Sequence[int] | None, *, keep: bool) -> Layout | None:
    if axes is None:
        return None
    atoms = {atom for axis in axes for atom in layout.axes[axis]}
    if atoms & {N, C}:
        return None
    kept = tuple(() if i in axes else axis for i, axis in enumerate(layout.axes) if keep or i not in axes)
    return replace(layout, axes=kept, averaged=layout.averaged | atoms)


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


def _take(layout: Layout, dim: int | tuple[str, int], index: int, left: list[str], *, from_end: bool) -> Atoms | None:
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


def _named(layout: Layout, dim: int | tuple[str, int]) -> Atoms | None:
    """The atoms that a dimension computed from another tensor's shape stands for."""
    if not isinstance(dim, tuple):
        return None
    atoms = {name: atom for atom, name in reversed(list(layout.names.items()))}
    names = dim[0].split(_TIMES)
    return tuple(atoms[name] for name in names) if all(name in atoms for name in names) else None


_TIMES = "\0"
"""Between the names of dimensions that are multiplied; a name that a file gives cannot hold it by chance."""


def shape_entries(shape: gs.Tensor) -> list[int | tuple[str, int]] | None:
    """The entries of a computed shape: numbers, and (name, 0) where a dynamic dimension of that name was read.

    None where the shape comes from anything but shapes and numbers.
    """
    value = small_value(shape)
    if value is not None:
        return [int(dim) for dim in value.reshape(-1)]
    node = producer(shape)
    if is_op(node, "Concat") and node is not None:
        parts = [shape_entries(tensor) for tensor in node.inputs]
        known = [part for part in parts if part is not None]
        return [dim for part in known for dim in part] if len(known) == len(parts) else None
    if is_op(node, "Unsqueeze", "Squeeze", "Reshape", "Cast", "Identity") and node is not None:
        return shape_entries(node.inputs[0])
    if is_op(node, "Gather", "Slice") and node is not None:
        return _picked(node)
    if is_op(node, "Mul") and node is not None:
        return _multiplied(*(shape_entries(tensor) for tensor in node.inputs))
    if not is_op(node, "Shape") or node is None or node.inputs[0].shape is None:
        return None
    return list(_shape_dims(node))


def _multiplied(
    ones: list[int | tuple[str, int]] | None, others: list[int | tuple[str, int]] | None
) -> list[int | tuple[str, int]] | None:
    """Entry by entry, as in ``view(n, c, h * w)``; a number times a name is a dimension of no name."""
    if ones is None or others is None or len(ones) != len(others):
        return None
    products: list[int | tuple[str, int]] = []
    for one, other in zip(ones, others, strict=True):
        if isinstance(one, int) and isinstance(other, int):
            products.append(one * other)
        elif isinstance(one, tuple) and isinstance(other, tuple):
            products.append((f"{one[0]}{_TIMES}{other[0]}", 0))
        else:
            products.append(("?", 0))
    return products


def _picked(node: gs.Node) -> list[int | tuple[str, int]] | None:
    """Entries that Gather or Slice picks from a shape."""
    dims = shape_entries(node.inputs[0])
    picks = [small_value(tensor) for tensor in node.inputs[1:]]
    if dims is None or any(pick is None for pick in picks):
        return None
    numbers = [[int(i) for i in pick.reshape(-1)] for pick in picks if pick is not None]
    if is_op(node, "Gather"):
        return [dims[i] for i in numbers[0]] if all(-len(dims) <= i < len(dims) for i in numbers[0]) else None
    begin, end = numbers[0][0], numbers[1][0]
    step = numbers[3][0] if len(numbers) > 3 else 1
    return dims[begin:end:step]


def _shape_dims(node: gs.Node) -> Iterator[int | tuple[str, int]]:
    shape = node.inputs[0].shape or ()
    for dim in shape[node.attrs.get("start", 0) : node.attrs.get("end")]:
        # A dimension of unknown size and name fits no atom.
        yield dim if isinstance(dim, int) else (dim or "?", 0)
