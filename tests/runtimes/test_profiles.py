"""The tightest profile that holds a request serves it."""

from __future__ import annotations

import pytest

from aff_deploy.errors import DataError
from aff_deploy.runtimes.profiles import choose_profile
from aff_deploy.spec import ShapeProfile


def profile(low: int, high: int, size: int = 3) -> ShapeProfile:
    return ShapeProfile({"x": (low, size)}, {"x": (low, size)}, {"x": (high, size)})


@pytest.mark.parametrize(
    ("profiles", "rows", "chosen"),
    [
        ([profile(1, 32)], 7, 0),
        ([profile(1, 32), profile(1, 1), profile(2, 8)], 1, 1),
        ([profile(1, 32), profile(1, 1), profile(2, 8)], 8, 2),
        ([profile(1, 32), profile(1, 1), profile(2, 8)], 9, 0),
        ([profile(1, 8), profile(4, 8)], 5, 1),
        ([profile(4, 8), profile(4, 8)], 5, 0),
    ],
)
def test_choice(profiles: list[ShapeProfile], rows: int, chosen: int) -> None:
    assert choose_profile(profiles, {"x": (rows, 3)}) == chosen


def test_all_inputs_count() -> None:
    one = ShapeProfile({"a": (1,), "b": (1,)}, {"a": (1,), "b": (1,)}, {"a": (4,), "b": (2,)})
    assert choose_profile([one], {"a": (4,), "b": (2,)}) == 0
    with pytest.raises(DataError, match="a 2, b 3; it was built for a 1 to 4, b 1 to 2"):
        choose_profile([one], {"a": (2,), "b": (3,)})


@pytest.mark.parametrize("shape", [(0, 3), (33, 3), (1, 4), (1,), (1, 3, 1)])
def test_outside(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="it was built for x 1x3 to 32x3; or x 40x3"):
        choose_profile([profile(1, 32), profile(40, 40)], {"x": shape})
