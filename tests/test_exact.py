"""The definition of exact: what is allowed, what is not, and figures against hand-made numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from aff_deploy.errors import DataError
from aff_deploy.validate.exact import Answers, Exactness, describe_conditioning, measure_exactness

EPS = 2.0**-23


def measured(truth: Any, original: Any, candidate: Any, *, eps: float = EPS, magnitude: float = 0.0) -> Exactness:
    wide = np.asarray(truth, np.float64) if np.asarray(truth).dtype.kind == "f" else np.asarray(truth)
    narrow = [np.asarray(a, np.float32) if np.asarray(a).dtype.kind == "f" else np.asarray(a) for a in (original, candidate)]
    answers = Answers({"y": wide}, {"y": narrow[0]}, {"y": narrow[1]})
    (found,) = measure_exactness([answers], eps, magnitude)
    return found


def test_eight_times_the_originals_error_and_the_rounding_of_the_largest() -> None:
    found = measured([1.0, 4.0], [1.0, 4.0 + 2**-10], [1.0 + 2**-12, 4.0], magnitude=16.0)
    assert (found.error, found.original_error, found.magnitude) == (2**-12, 2**-10, 16.0)
    assert found.allowed == 8 * (2**-10 + EPS * 16)
    assert found.holds


@pytest.mark.parametrize(("factor", "holds"), [(0.99, True), (1.01, False)])
def test_the_bound_is_where_it_is_said_to_be(factor: float, holds: bool) -> None:
    """Each term alone: the original's own error, the output's magnitude, the sites'."""
    for original, magnitude, bound in ((2**-6, 0.0, 2**-3 + 8 * EPS), (0.0, 0.0, 8 * EPS), (0.0, 1024.0, 8192 * EPS)):
        truth = np.array([1.0, 0.0])
        answers = Answers({"y": truth}, {"y": np.array([1.0, original])}, {"y": np.array([1.0, factor * bound])})
        (found,) = measure_exactness([answers], EPS, magnitude)
        assert found.holds is holds
        assert found.holds or "from a float64 evaluation, where the original is" in found.detail


def test_maxima_are_over_all_batches() -> None:
    one, two = np.array([1.0]), np.array([2.0])
    batches = [Answers({"y": one}, {"y": one + 2**-8}, {"y": one}), Answers({"y": two}, {"y": two}, {"y": two + 2**-6})]
    (found,) = measure_exactness(batches, EPS)
    assert (found.error, found.original_error, found.magnitude) == (2**-6, 2**-8, 2.0)
    assert found.holds


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_infinity_where_the_original_has_none(bad: float) -> None:
    found = measured([1.0, 2.0], [1.0, 2.0], [1.0, bad])
    assert not found.holds
    assert "output 'y' is not finite at [1]" in found.detail
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["holds"] is False


def test_where_the_original_overflows_the_candidate_may_be_right() -> None:
    assert measured([1.0, 1e39], [1.0, np.inf], [1.0, np.inf]).holds
    truth = np.array([1.0, 7e4])
    half = Answers({"y": truth}, {"y": np.array([1.0, np.inf])}, {"y": truth})
    assert all(found.holds for found in measure_exactness([half], EPS))
    wrong = Answers({"y": truth}, {"y": np.array([1.0, np.inf])}, {"y": np.array([1.0, 5.0])})
    assert not any(found.holds for found in measure_exactness([wrong], EPS))


def test_where_the_truth_is_infinite_the_original_decides() -> None:
    assert measured([np.inf, np.nan, 1.0], [np.inf, np.nan, 1.0], [np.inf, np.nan, 1.0]).holds
    assert measured([np.inf, 1.0], [3.0, 1.0], [3.0, 1.0]).holds
    for candidate in ([-np.inf, np.nan, 1.0], [np.inf, 7.0, 1.0]):
        found = measured([np.inf, np.nan, 1.0], [np.inf, np.nan, 1.0], candidate)
        assert "is another infinity" in found.detail


def test_integers_are_the_originals_or_the_truths() -> None:
    assert measured([1, 2, 3], [1, 2, 4], [1, 2, 4]).holds
    assert measured([1, 2, 3], [1, 2, 4], [1, 2, 3]).holds
    assert "differs at [2]: got 5, expected 4; 1 of 3" in measured([1, 2, 3], [1, 2, 4], [1, 2, 5]).detail
    assert not measured([True], [True], [False]).holds


def test_shapes_must_be_the_same() -> None:
    assert "has shape 1x2, expected 2" in measured([1.0, 2.0], [1.0, 2.0], [[1.0, 2.0]]).detail
    assert not measured([[1.0, 2.0]], [1.0, 2.0], [1.0, 2.0]).holds


def test_an_empty_output_is_exact() -> None:
    assert measured(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3))).holds


def test_outputs_are_paired_as_everywhere_else() -> None:
    a = np.array([1.0])
    found = measure_exactness([Answers({"q": 2 * a, "p": a}, {"p": a, "q": 2 * a}, {"r": a, "s": 2 * a})], EPS)
    assert [(output.name, output.error) for output in found] == [("r", 0.0), ("s", 0.0)]
    with pytest.raises(DataError, match="no data"):
        measure_exactness([], EPS)


def test_a_reference_further_off_than_half_of_what_is_allowed_is_told() -> None:
    found = [Exactness("y", error=0.8, original_error=0.6, magnitude=1.0, eps=EPS)]
    text = describe_conditioning(found, {"y": 1.0}, "PyTorch in float32")
    assert "PyTorch in float32 is itself 0.6 from its float64 evaluation, the file 0.8, where 1 is allowed" in text
    assert describe_conditioning(found, {"y": 1.3}, "PyTorch") == ""
    assert describe_conditioning(found, {"another": 0.1}, "PyTorch") == ""
