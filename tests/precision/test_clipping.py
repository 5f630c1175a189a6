"""Magnitudes: the histogram holds what was counted, whatever the order and the range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aff_deploy.errors import DataError
from aff_deploy.precision.clipping import BINS, Magnitudes, observe_magnitudes
from tests.passes.graphs import model_of


def test_a_percentile_is_that_of_the_values_within_a_bin() -> None:
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    found = Magnitudes()
    for part in np.split(values, 10):
        found.add(part)
    assert found.largest == np.abs(values).max()
    for share in (0.5, 0.99, 0.9999):
        exact = float(np.quantile(np.abs(values), share))
        assert exact <= found.percentile(share) <= exact + 2 * found.largest / BINS * 2
    assert found.percentile(1.0) == found.largest


def test_one_outlier_in_a_million_is_left_out() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 1_000_000).astype(np.float32)
    values[7] = -50
    found = Magnitudes()
    found.add(values)
    assert found.largest == 50
    assert 0.9 < found.percentile(0.99999) < 1.1


def test_zeros_count() -> None:
    found = Magnitudes()
    found.add(np.zeros(99, np.float32))
    assert (found.largest, found.percentile(0.5)) == (0.0, 0.0)
    found.add(np.ones(1, np.float32))
    assert found.percentile(0.5) <= 1 / BINS
    assert found.percentile(0.999) == 1.0


@given(st.lists(st.floats(2**-120, 2**120, width=32), min_size=2, max_size=6))
def test_any_order_of_any_sizes_ends_at_the_largest(sizes: list[float]) -> None:
    found = Magnitudes()
    for size in sizes:
        found.add(np.array([size, -size / 2], np.float32))
    assert found.largest == np.float32(max(sizes))
    assert found.percentile(1.0) == found.largest
    assert found.percentile(0.0) <= found.largest


def test_inputs_and_inner_tensors_and_outputs_are_observed() -> None:
    model = model_of("g (float[N, 2] x) => (float[N, 2] y) { a = Neg(x)\nb = Mul(a, a)\ny = Relu(b) }")
    batches = [{"x": np.array([[1, -2]], np.float32)}, {"x": np.array([[3, 0], [0, 0]], np.float32)}]
    found = observe_magnitudes(model, ["x", "a", "b", "y"], batches)
    assert {name: one.largest for name, one in found.items()} == {"x": 3.0, "a": 3.0, "b": 9.0, "y": 9.0}
    assert [value.name for value in model.graph.output] == ["y"]


def test_data_that_says_nothing_is_refused() -> None:
    model = model_of("g (float[N, 2] x) => (float[N, 2] y) { a = Exp(x)\ny = Relu(a) }")
    with pytest.raises(DataError, match="no data to calibrate on"):
        observe_magnitudes(model, ["x"], [])
    with pytest.raises(DataError, match="'a' is not finite on the calibration data"):
        observe_magnitudes(model, ["a"], [{"x": np.full((1, 2), 1000, np.float32)}])
