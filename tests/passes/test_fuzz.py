"""Random ONNX graphs of any kind: what comes out computes what went in, and a second time nothing changes."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.passes.fuzz.graphs import random_case
from tests.passes.fuzz.judge import judge

SEEDS = range(100)


@pytest.fixture(autouse=True, scope="module")
def nothing_to_collect() -> Iterator[None]:
    """Every optimisation collects garbage: what was there before need not be looked through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("first", SEEDS[::20])
def test_random_onnx(first: int) -> None:
    verdicts = {}
    for seed in range(first, first + 20):
        case = random_case(seed)
        verdicts[seed] = judge(case.model, case.feeds, case.values)
    faults = {seed: f"{v.kind}: {v.detail}" for seed, v in verdicts.items() if v.is_fault}
    assert not faults
    # Graphs that are not valid, or in which nothing fuses, prove little.
    assert sum(v.kind == "ok" for v in verdicts.values()) > len(verdicts) / 2
    assert any(v.fused for v in verdicts.values())
