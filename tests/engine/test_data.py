"""Which data a build observes, and which it compares on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aff_deploy.engine.data import MOST_OBSERVED, OBSERVED_ROWS, OBSERVED_SAMPLES, engine_data
from aff_deploy.errors import DataError
from aff_deploy.recipe import find_recipe
from aff_deploy.spec import Precision, TensorSpec

INPUTS = (TensorSpec("x", ("n", 3)),)


def rows(batches: object) -> list[int]:
    return [len(batch["x" if "x" in batch else "input"]) for batch in batches]  # type: ignore[attr-defined]


def test_half_precision_observes_a_little_seeded_data_in_small_batches() -> None:
    data = engine_data(Precision.FP16, INPUTS, recipe=None, calib=None)
    assert sum(rows(data.observed_on)) == OBSERVED_SAMPLES
    assert max(rows(data.observed_on)) <= OBSERVED_ROWS
    assert "seeded" in data.observed
    assert data.compared == "seeded"
    seen = np.concatenate([batch["x"] for batch in data.observed_on])
    compared = np.concatenate([batch["x"] for batch in data.compared_on])
    assert not np.isin(seen[:, 0], compared[:, 0]).any()


def test_real_data_goes_before_and_fp32_needs_none() -> None:
    recipe = find_recipe("aff_resnet_digits")
    assert recipe is not None
    half = engine_data(Precision.BF16, recipe.inputs, recipe=recipe, calib=None)
    assert sum(rows(half.observed_on)) == MOST_OBSERVED
    assert half.compared == "evaluation data and seeded"
    assert half.evaluation > 0
    assert engine_data(Precision.FP32, recipe.inputs, recipe=recipe, calib=None).observed_on == ()
    # Noise would lie outside the ranges that were calibrated.
    assert engine_data(Precision.INT8, recipe.inputs, recipe=recipe, calib=None).compared == "evaluation data"


def test_int8_asks_for_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--calib"):
        engine_data(Precision.INT8, INPUTS, recipe=None, calib=None)
    np.savez(tmp_path / "d.npz", x=np.ones((6, 3), np.float32))
    data = engine_data(Precision.INT8, INPUTS, recipe=None, calib=str(tmp_path / "d.npz"), data=tmp_path / "d.npz")
    assert sum(rows(data.observed_on)) == sum(rows(data.compared_on)) == 6
    assert data.compared == "d.npz"


def test_a_fixed_batch_stays_whole() -> None:
    data = engine_data(Precision.FP16, (TensorSpec("x", (4, 3)),), recipe=None, calib=None)
    assert set(rows(data.observed_on)) == {4}
