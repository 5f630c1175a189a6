"""Which of an engine's shape profiles serves a request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from aff_deploy.errors import DataError
from aff_deploy.runtimes import shape_text
from aff_deploy.spec import ShapeProfile


def fits(profile: ShapeProfile, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether every input's shape lies between the profile's ``min`` and ``max``."""
    return all(
        len(shape) == len(profile.min[name])
        and all(low <= size <= high for low, size, high in zip(profile.min[name], shape, profile.max[name], strict=True))
        for name, shape in shapes.items()
    )


def choose_profile(profiles: Sequence[ShapeProfile], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of the tightest profile that holds `shapes`: kernels are tuned within a profile's range.

    Tightest is the one whose largest shapes have the fewest elements; among equals the one whose smallest
    shapes have the most, then the first.

    Raises:
        DataError: none holds them; the message names the ranges.
    """
    usable = [index for index, profile in enumerate(profiles) if fits(profile, shapes)]
    if not usable:
        given = ", ".join(f"{name} {shape_text(shape)}" for name, shape in shapes.items())
        ranges = "; or ".join(_ranges(profile) for profile in profiles)
        raise DataError(f"the engine has no profile for {given}", fix=f"it was built for {ranges}")

    def looseness(index: int) -> tuple[int, int, int]:
        largest, smallest = profiles[index].max.values(), profiles[index].min.values()
        return sum(map(math.prod, largest)), -sum(map(math.prod, smallest)), index

    return min(usable, key=looseness)


def _ranges(profile: ShapeProfile) -> str:
    return ", ".join(
        f"{name} {shape_text(low)}" + (f" to {shape_text(profile.max[name])}" if low != profile.max[name] else "")
        for name, low in profile.min.items()
    )
