"""The GPU kernels, run by Triton's interpreter, against the numpy definition; and the sums that grids are made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from aff_deploy.ops import Variant
from aff_deploy.ops.launch import (
    ALIGNED,
    MAX_SPLITS,
    WANTED_PROGRAMS,
    Call,
    choose_blocks,
    constants,
    geometry,
    largest_divisor,
    unsupported,
)
from tests.ops.kernel_cases import CASES, TOLERANCES

pytest.importorskip("triton", reason="the kernels need triton: Linux, Python 3.11 or later")


def errors_of(dtype: str, *slow: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.ops.interpreted", dtype, *slow]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_kernels_compute_the_definition(dtype: str) -> None:
    errors = errors_of(dtype)
    assert len(errors) == len(CASES)
    # Not `error > tolerance`, which lets NaN pass.
    assert {case: error for case, error in errors.items() if not error <= TOLERANCES[dtype]} == {}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_kernels_compute_the_definition_at_full_size(dtype: str) -> None:
    errors = errors_of(dtype, "slow")
    assert {case: error for case, error in errors.items() if not error <= TOLERANCES[dtype]} == {}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("channels", [1, 16, 35, 256, 512, 513, 4096])
@pytest.mark.parametrize("inter", [1, 7, 64, 1024])
def test_every_channel_is_in_one_split_and_the_workspace_holds_it(dtype: str, channels: int, inter: int) -> None:
    call = Call(channels, inter, channels, dtype)  # type: ignore[arg-type]
    blocks = choose_blocks(call)
    for images, positions in product((1, 3, 32, 1000), (1, 49, 3136, 2**20)):
        plan = geometry(call, blocks, images, positions)
        assert 1 <= plan.splits <= MAX_SPLITS
        assert (plan.splits - 1) * plan.chunk < channels <= plan.splits * plan.chunk
        assert plan.chunk % blocks.context_k == 0
        assert plan.tiles * blocks.context_p >= positions > (plan.tiles - 1) * blocks.context_p
        assert plan.fuse_tiles * blocks.fuse_p >= positions
        values = images * inter * positions
        assert (plan.splits * values if plan.splits > 1 else 0) <= plan.inner
        assert plan.inner + -(-values * (4 if dtype == "float32" else 2) // 4) <= plan.partial
        assert plan.partial + images * plan.rows * inter <= plan.logits
        assert plan.logits + images * channels <= plan.workspace
        assert all(section % ALIGNED == 0 for section in (plan.inner, plan.partial, plan.logits, plan.workspace))
        # The bound that a launcher reserves for a whole profile (docs/kernels.md).
        parts = WANTED_PROGRAMS // -(-inter // blocks.context_i)
        rows = max(images * plan.tiles, parts)
        bound = parts * inter * blocks.context_p + values + rows * inter + images * channels
        assert plan.workspace <= bound + 4 * ALIGNED


def test_blocks_are_what_a_product_needs() -> None:
    for dtype, channels, inter in product(TOLERANCES, (1, 17, 300, 4096), (1, 17, 300, 4096)):
        call = Call(channels, inter, 2 * channels, dtype)  # type: ignore[arg-type]
        blocks = choose_blocks(call)
        sizes = (blocks.context_i, blocks.context_p, blocks.context_k, blocks.fuse_c, blocks.fuse_p, blocks.fuse_i)
        assert all(size >= 16 and size & (size - 1) == 0 for size in sizes)
        assert blocks.fuse_span % blocks.fuse_c == 0
        # A span without a single channel would compute nothing.
        assert blocks.fuse_span <= max(16, 2 * channels)


def test_a_promise_about_positions_is_for_linear_alone() -> None:
    for layout, expected in (("linear", 16), ("channels_last", 1)):
        call = Call(64, 16, 64, "float16", layout, multiple=16)  # type: ignore[arg-type]
        assert constants(call, choose_blocks(call))["aff_fuse"]["MULTIPLE"] == expected
    assert [largest_divisor(positions) for positions in (1, 49, 196, 3136, 64)] == [1, 1, 4, 16, 16]


def test_what_kernels_cannot_do_is_said() -> None:
    assert unsupported(Variant(activation="Silu"), 4096, 8192) == ""
    assert "Gelu" in unsupported(Variant(activation="Gelu"), 64, 64)
    assert "separate outputs" in unsupported(Variant(split=True), 64, 64)
    assert "4097 channels" in unsupported(Variant(), 4097, 4097)
