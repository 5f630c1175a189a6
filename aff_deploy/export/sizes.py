"""What an exported model is compared on: data of other sizes than the one that was traced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from aff_deploy.runtimes import Array, Feeds
from aff_deploy.runtimes.feeds import seeded_feeds
from aff_deploy.spec import TensorSpec

Sizes = dict[str, int]
"""Of each dynamic dimension, by its name."""


def sizes_in(inputs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> Sizes:
    """The size that each dynamic dimension has in `feeds`."""
    return {d: s for spec in inputs for d, s in zip(spec.shape, feeds[spec.name].shape, strict=True) if isinstance(d, str)}


def first_dims(inputs: Sequence[TensorSpec]) -> frozenset[str]:
    """The dynamic dimensions that are an input's first: usually the batch."""
    return frozenset(str(spec.shape[0]) for spec in inputs if spec.shape and isinstance(spec.shape[0], str))


def usual_sizes(inputs: Sequence[TensorSpec], traced: Sizes, lowest: Mapping[str, int]) -> list[Sizes]:
    """The sizes that are always tried.

    A batch of 1 and one of 3, because a loop over the traced 2 rows gives the right answer for 1 of
    them. Every second one of the other dimensions doubled, which keeps whatever they must be divisible
    by, and not their ratio: a network may do something else where height and width are equal. And once
    odd and all different, because padding to a multiple is nothing at an even size.

    Args:
        inputs: of the network.
        traced: what was traced.
        lowest: dimensions for which the exporter assumed a least size: one less is where another branch
            of the network's code may begin.
    """
    first = first_dims(inputs)
    others = [dim for dim in traced if dim not in first]
    stretched = {dim: 2 * traced[dim] for dim in others[::2]}
    wanted = []
    if first:
        wanted.append({d: 1 if d in first else s for d, s in traced.items()})
        wanted.append({**{d: 3 if d in first else s for d, s in traced.items()}, **stretched})
    elif others:
        wanted.append({**traced, **stretched})
    if others:
        wanted.append({d: s + 1 + 2 * others.index(d) if d in others else s for d, s in traced.items()})
    return wanted + [{**traced, dim: size - 1} for dim, size in lowest.items()]


def further_sizes(inputs: Sequence[TensorSpec], traced: Sizes, dim: str) -> Iterator[Sizes]:
    """Sizes to try for a dimension that none of the usual ones could be compared at: it alone, then with its like."""
    size = traced[dim]
    first = first_dims(inputs)
    others = [d for d in traced if d not in first]
    batches = (3, 4, 6, 8, 16, 1)
    sides = (2 * size, 3 * size, size + 1, 4 * size, size + 8, size // 2, size - 1)
    for other in batches if dim in first else sides:
        if other > 0 and other != size:
            yield {**traced, dim: other}
    if dim not in first and len(others) > 1:
        yield {**traced, **{d: 2 * traced[d] for d in others}}
        yield {**traced, **{d: max(1, traced[d] // 2) for d in others}}


def feeds_of(inputs: Sequence[TensorSpec], sizes: Sizes, real: Feeds | None, *, seed: int = 1) -> dict[str, Array]:
    """One batch of the given sizes: seeded, or where there is `real` data, its values repeated and cut.

    Args:
        inputs: of the network.
        sizes: of the dynamic dimensions.
        real: a batch of real data; values are taken from it alone, because others may not occur.
        seed: of seeded data; of real data, how many rows are passed over.
    """
    if real is None:
        return seeded_feeds(inputs, seed=seed, samples=1, sizes=sizes)[0]
    return {spec.name: _repeated(real[spec.name], spec.concrete(**sizes), spec, seed) for spec in inputs}


def _repeated(array: Array, shape: tuple[int, ...], spec: TensorSpec, skipped: int) -> Array:
    if spec.shape and isinstance(spec.shape[0], str):
        array = np.roll(array, -(skipped % len(array)), axis=0)
    times = [-(-wanted // size) for wanted, size in zip(shape, array.shape, strict=True)]
    return np.ascontiguousarray(np.tile(array, times)[tuple(slice(size) for size in shape)])
