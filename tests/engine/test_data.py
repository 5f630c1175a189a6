"""Which data a build observes, and which it compares on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from aff_deploy.engine.data import MOST_OBSERVED, OBSERVED_ROWS, OBSERVED_SAMPLES, engine_data
from aff_deploy.engine.interface import tensor_specs
from aff_deploy.errors import DataError
from aff_deploy.precision import evaluator, to_precision
from aff_deploy.recipe import find_recipe
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from aff_deploy.spec import TOLERANCES, Precision, TensorSpec
from aff_deploy.validate import validate

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
    assert data.compared == "6 samples of d.npz"


def numbered(path: Path, count: int) -> str:
    np.savez(path, x=np.arange(count, dtype=np.float32)[:, None].repeat(3, 1))
    return str(path)


def firsts(batches: object) -> list[int]:
    return [int(value) for batch in batches for value in batch["x"][:, 0]]  # type: ignore[attr-defined]


def test_every_fifth_calibration_sample_is_held_out_to_compare_on(tmp_path: Path) -> None:
    data = engine_data(Precision.INT8, INPUTS, recipe=None, calib=numbered(tmp_path / "c.npz", 70))
    assert firsts(data.compared_on) == list(range(4, 70, 5))
    assert sorted(firsts(data.observed_on) + firsts(data.compared_on)) == list(range(70))
    assert data.compared == "14 held out of 70 samples of c.npz (every fifth)"
    assert data.observed == "56 of 70 samples of c.npz (every fifth held out)"
    half = engine_data(Precision.FP16, INPUTS, recipe=None, calib=numbered(tmp_path / "c.npz", 70))
    assert firsts(half.compared_on)[:14] == list(range(4, 70, 5))
    assert half.compared == "14 held out of 70 samples of c.npz (every fifth) and seeded"


@pytest.mark.parametrize(("count", "held"), [(1, [0]), (2, [1]), (4, [3]), (5, [4]), (6, [4])])
def test_little_calibration_data_is_shared_out_too(tmp_path: Path, count: int, held: list[int]) -> None:
    data = engine_data(Precision.FP8, INPUTS, recipe=None, calib=numbered(tmp_path / "c.npz", count))
    assert firsts(data.compared_on) == held
    if count == 1:
        assert "the same that it was calibrated on" in data.compared
    else:
        assert not set(held) & set(firsts(data.observed_on))


def test_of_fixed_batches_whole_ones_are_held_out(tmp_path: Path) -> None:
    inputs = (TensorSpec("x", (4, 3)),)
    data = engine_data(Precision.INT8, inputs, recipe=None, calib=numbered(tmp_path / "c.npz", 27))
    assert firsts(data.compared_on) == [16, 17, 18, 19]
    assert rows(data.observed_on) == [4] * 5


def test_other_real_data_leaves_the_calibration_whole(tmp_path: Path) -> None:
    calib = numbered(tmp_path / "c.npz", 10)
    given = engine_data(Precision.INT8, INPUTS, recipe=None, calib=calib, data=tmp_path / "c.npz")
    assert firsts(given.observed_on) == list(range(10))
    recipe = find_recipe("aff_resnet_digits")
    assert recipe is not None
    evaluated = engine_data(Precision.INT8, recipe.inputs, recipe=recipe, calib=None)
    assert (sum(rows(evaluated.observed_on)), evaluated.compared) == (128, "evaluation data")
    seeded = engine_data(Precision.INT8, INPUTS, recipe=None, calib="seeded")
    assert seeded.compared == "seeded"


def test_a_range_that_nobody_said_is_told() -> None:
    inputs = (TensorSpec("x", ("n", 3), "int64"),)
    assert "'x' from 0 to 2 alone" in engine_data(Precision.FP32, inputs, recipe=None, calib=None).compared


def test_a_fixed_batch_stays_whole() -> None:
    data = engine_data(Precision.FP16, (TensorSpec("x", (4, 3)),), recipe=None, calib=None)
    assert set(rows(data.observed_on)) == {4}


def test_a_network_of_pixels_is_held_to_all_of_their_range() -> None:
    """The sum of four squares of 255 is no float16, of 2 it is: on 0 to 2 alone it would not be kept in fp32 and pass."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (uint8[n, 4] x) => (float[n, 2] y)
        <float[4, 2] w = {1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0}>
        { f = Cast <to = 1> (x)  s = Mul(f, f)  [sum] c = MatMul(s, w)  y = Sqrt(c) }"""
    )
    inputs = tensor_specs(model.graph.input)
    data = engine_data(Precision.FP16, inputs, recipe=None, calib=None)
    assert data.compared == "seeded"
    typed = to_precision(model, Precision.FP16, batches=data.observed_on, observed=data.observed)
    assert {kept.name for kept in typed.kept_wide} >= {"sum"}
    with OnnxRuntimeRunner(model) as reference, evaluator(typed) as candidate:
        assert validate(reference, candidate, data.compared_on, TOLERANCES[Precision.FP16]).passed
        few = to_precision(model, Precision.FP16, batches=[{"x": np.full((1, 4), 2, np.uint8)}], observed="0 to 2")
        with evaluator(few) as blind:
            assert not validate(reference, blind, data.compared_on, TOLERANCES[Precision.FP16]).passed
