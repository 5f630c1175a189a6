"""Metrics against their formulas, failures that say where, and the properties of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aff_deploy.errors import DataError
from aff_deploy.runtimes.pytorch import PyTorchRunner
from aff_deploy.spec import TOLERANCES, Precision, TensorSpec, Tolerance
from aff_deploy.validate import Truth, compare_outputs, explain_difference, seeded_feeds, truth_of, validate
from aff_deploy.validate.metrics import SNR_LIMIT

STRICT = TOLERANCES[Precision.FP32]
SPEC = TensorSpec("x", ("n", 4))


class Runs(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


def runner(function: Callable[..., Any], *specs: TensorSpec, outputs: list[str] | None = None) -> PyTorchRunner:
    return PyTorchRunner(Runs(function), specs or (SPEC,), outputs)


def one(reference: Any, candidate: Any, tolerance: Tolerance = STRICT) -> Any:
    (result,) = compare_outputs({"y": np.asarray(reference)}, {"y": np.asarray(candidate)}, tolerance)
    return result


def test_metrics_are_their_formulas() -> None:
    b = np.array([[4.0, 1.0, -2.0], [0.0, 1e-9, 8.0]], np.float32)
    a = np.array([[4.0, 1.5, -2.0], [0.0, 0.004, 8.0]], np.float32)
    got = one(b, a, Tolerance(atol=0.1, rtol=0.05, min_cosine=0.9))
    assert got.passed
    assert got.scale == 8
    assert got.max_abs == 0.5
    # 0.004 is 0.5 of the floor, which is 1e-3 of the scale; so is 0.5 of 1.
    assert got.max_rel == pytest.approx(0.5, rel=1e-6)
    noise, power = 0.25 + 0.004**2, 16 + 1 + 4 + 64
    assert got.snr_db == pytest.approx(10 * np.log10(power / noise), rel=1e-6)
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    assert got.cosine == pytest.approx(float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)), rel=1e-12)
    assert got.argmax_agreement == 1


def test_the_tolerance_is_relative_to_the_scale_of_the_output() -> None:
    b = np.array([[100.0, 0.0]])
    assert one(b, [[100.0, 0.0099]]).passed
    assert not one(b, [[100.0, 0.0101]]).passed


def test_a_failure_says_where_what_and_how_much() -> None:
    b = np.zeros((2, 3), np.float32)
    a = b.copy()
    a[1, 2] = 0.5
    got = one(b, a)
    assert not got.passed
    assert "output 'y' differs most at [1, 2]: got 0.5, expected 0, off by 0.5 where 1e-06 is allowed" in got.detail
    assert "cosine similarity 0 " in got.detail


def test_cosine_alone_can_fail() -> None:
    got = one([[1.0, 0.1]], [[1.0, -0.1]], Tolerance(atol=1, rtol=1, min_cosine=0.999))
    assert not got.passed
    assert "cosine similarity 0.980" in got.detail


def test_identical_and_zero_outputs_are_valid_json() -> None:
    b = np.ones((2, 3), np.float32)
    assert one(b, b).to_dict() == {
        "name": "y",
        "max_abs": 0.0,
        "max_rel": 0.0,
        "cosine": 1.0,
        "snr_db": SNR_LIMIT,
        "argmax_agreement": 1.0,
        "scale": 1.0,
        "passed": True,
        "detail": "",
    }
    zero = one(b * 0, b * 0)
    assert zero.passed
    assert zero.cosine == 1
    assert one(b * 0, b).snr_db == -SNR_LIMIT
    assert one(b * 0, b).to_dict()["max_rel"] is None
    assert one(b, b * 0).cosine == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["reference", "candidate", "both"])
def test_what_is_not_finite_fails(bad: float, side: str) -> None:
    arrays = {"reference": np.ones((2, 3), np.float32), "candidate": np.ones((2, 3), np.float32)}
    for name in arrays:
        if side in (name, "both"):
            arrays[name][1, 0] = bad
    got = one(arrays["reference"], arrays["candidate"])
    assert not got.passed
    assert "not finite" in got.detail
    assert "[1, 0], 1 of 6" in got.detail
    assert json.loads(json.dumps(got.to_dict(), allow_nan=False))["max_abs"] is None


def test_another_shape_fails_and_names_both() -> None:
    got = one(np.zeros((2, 3)), np.zeros((2, 1)))
    assert got.detail == "output 'y' has shape 2x1, expected 2x3"


def test_argmax_is_over_the_classes() -> None:
    b = np.zeros((2, 3, 4), np.float32)
    b[:, 1] = 1
    a = b.copy()
    a[0, 2, 0] = 2
    assert one(b, a).argmax_agreement == pytest.approx(7 / 8)
    assert one([1.0, 2.0], [2.0, 1.0]).argmax_agreement == 0
    assert one(1.0, 1.0).argmax_agreement is None
    assert one([[1.0], [2.0]], [[1.0], [2.0]]).argmax_agreement is None


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.uint8, np.int8, bool])
def test_every_dtype_is_compared_in_float64(dtype: Any) -> None:
    b = np.array([[0, 1, 0, 1]]).astype(dtype)
    assert one(b, b).passed
    assert not one(b, ~b if dtype is bool else b[:, ::-1]).passed
    if np.dtype(dtype).kind == "i":
        low = np.full((1, 2), np.iinfo(dtype).min, dtype)
        assert one(low, low).scale == -float(np.iinfo(dtype).min)


def test_large_outputs_are_compared_in_pieces() -> None:
    b = np.ones((3, 700_001), np.float32)
    a = b.copy()
    a[2, 700_000] = 3
    got = one(b, a)
    assert got.max_abs == 2
    assert "[2, 700000]" in got.detail


def test_batches_add_up() -> None:
    reference = runner(lambda x: x * 1.0)
    feeds = [{"x": np.full((n, 4), float(n), np.float32)} for n in (1, 2, 5)]
    report = validate(reference, runner(lambda x: x + (x == 2).float()), feeds, STRICT, metamorphic=False)
    assert report.samples == 8
    assert report.outputs[0].scale == 5
    assert "output 'output' of batch 1 differs most at [0, 0]: got 3, expected 2" in report.failures[0]
    power, noise = 4 * 1 + 8 * 4 + 20 * 25, 8.0
    assert report.outputs[0].snr_db == pytest.approx(10 * np.log10(power / noise))


def test_outputs_are_paired_by_name_then_in_order() -> None:
    def ab(x: torch.Tensor) -> Any:
        return {"a": x, "b": x * 2}

    def ba(x: torch.Tensor) -> Any:
        return {"b": x * 2, "a": x}

    feeds = seeded_feeds([SPEC])
    assert validate(runner(ab), runner(ba), feeds, STRICT).passed
    assert validate(runner(ab), runner(ab, outputs=["p", "q"]), feeds, STRICT).passed
    assert not validate(runner(ab), runner(ba, outputs=["p", "q"]), feeds, STRICT).passed
    with pytest.raises(DataError, match="the outputs do not match: b, c against a, b of the reference"):
        validate(runner(ab), runner(ab, outputs=["b", "c"]), feeds, STRICT)


def test_inputs_of_other_names_and_float_types() -> None:
    half = TensorSpec("picture", ("n", 4), "float16")
    report = validate(runner(lambda x: x), runner(lambda x: x.float(), half), seeded_feeds([SPEC]), TOLERANCES[Precision.FP16])
    assert report.passed
    assert 0 < report.outputs[0].max_abs < 5e-3


def test_no_data_is_an_error() -> None:
    with pytest.raises(DataError, match="no data"):
        validate(runner(lambda x: x), runner(lambda x: x), [], STRICT)


def test_report_is_the_contract() -> None:
    report = validate(runner(lambda x: x), runner(lambda x: x), seeded_feeds([SPEC], samples=8), STRICT)
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["passed"] is True
    assert document["samples"] == 8
    assert document["tolerance"] == {"atol": STRICT.atol, "rtol": STRICT.rtol, "min_cosine": STRICT.min_cosine}
    assert {"name", "max_abs", "max_rel", "cosine", "snr_db", "argmax_agreement"} <= set(document["outputs"][0])
    assert [check["skipped"] for check in document["checks"]] == [False] * 3
    assert document["exact"] is None


def honest(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@pytest.mark.parametrize(
    ("broken", "failed"),
    [
        # Each is right on the batches that are compared (4 rows) and wrong elsewhere.
        (lambda x: x * 2 if len(x) != 1 else x, {"a row gives the same in a batch of 1"}),
        (lambda x: x * 2 if len(x) != 3 else x * 2 + torch.arange(3.0)[:, None], None),
        (
            lambda x: x * 2 if len(x) == 4 else x * 2 + x[0, 0],
            {"permuted rows permute the outputs", "a row gives the same in a batch of 1"},
        ),
    ],
)
def test_a_candidate_that_lets_rows_see_each_other_fails(broken: Callable[..., Any], failed: set[str] | None) -> None:
    feeds = seeded_feeds([SPEC], sizes={"n": 4})
    report = validate(runner(honest), runner(broken), feeds, STRICT)
    assert all(output.passed for output in report.outputs)
    assert not report.passed
    found = {check.name for check in report.checks if not check.passed}
    assert found == (failed or {check.name for check in report.checks})
    assert all("differs most at" in line for line in report.failures)


def test_a_candidate_that_fails_on_another_batch_size_fails() -> None:
    report = validate(
        runner(lambda x: x.reshape(-1, 4)), runner(lambda x: x.reshape(4, 4)), seeded_feeds([SPEC], sizes={"n": 4}), STRICT
    )
    assert not report.passed
    assert "forward failed on input x 3x4" in report.failures[0]


@pytest.mark.parametrize(
    ("function", "spec", "sizes", "reason"),
    [
        (honest, TensorSpec("x", (4, 4)), {}, "the first axis of input 'x' is not dynamic"),
        (lambda x: x.sum(0), SPEC, {"n": 4}, "output 'output' of shape 4 does not follow a batch of 3"),
        (lambda x: x - x.mean(0), SPEC, {"n": 4}, "the reference does not have this property either"),
        (honest, SPEC, {"n": 1}, "fewer than two rows"),
    ],
)
def test_properties_that_do_not_apply_are_skipped(function: Any, spec: TensorSpec, sizes: dict[str, int], reason: str) -> None:
    feeds = seeded_feeds([spec], sizes=sizes, samples=1)
    report = validate(runner(function, spec), runner(function, spec), feeds, STRICT)
    assert report.passed
    assert any(check.skipped and reason in check.detail for check in report.checks)


def test_inputs_with_different_first_dimensions_have_no_rows() -> None:
    specs = (SPEC, TensorSpec("k", ("m", 4)))
    report = validate(runner(lambda x, k: x @ k.T, *specs), runner(lambda x, k: x @ k.T, *specs), seeded_feeds(specs), STRICT)
    assert all(check.skipped and "different first dimensions" in check.detail for check in report.checks)


# ---- exactness beside the verdict

EPS = float(np.finfo(np.float32).eps)


def shifted(by: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """x, computed so that float32 loses what is small beside `by`."""
    return lambda x: (x + by) - by


def test_exactness_is_measured_against_float64() -> None:
    reference, feeds = runner(lambda x: x / 3.0), seeded_feeds([SPEC], samples=8)
    report = validate(reference, runner(lambda x: x * (1 / 3.0)), feeds, STRICT, truth=truth_of(reference, EPS, magnitude=2.0))
    exact = json.loads(json.dumps(report.to_dict(), allow_nan=False))["exact"]
    assert (exact["holds"], exact["samples"], exact["why_not"], exact["conditioning"]) == (True, 8, "", "")
    (output,) = exact["outputs"]
    assert {"name", "error", "original_error", "magnitude", "eps", "allowed", "holds"} <= output.keys()
    assert 0 < output["original_error"] < 1e-7
    assert output["magnitude"] == 2.0


def test_the_verdict_stays_the_tolerances() -> None:
    reference, feeds = runner(lambda x: x * 1.0), seeded_feeds([SPEC])
    report = validate(reference, runner(lambda x: x * (1 + 2e-5)), feeds, STRICT, truth=truth_of(reference, EPS))
    assert report.passed
    assert report.exact is not None
    assert report.exact.holds is False


def test_an_ill_conditioned_network_is_told_and_still_fails() -> None:
    reference, feeds = runner(shifted(1e5)), seeded_feeds([SPEC])
    report = validate(reference, runner(lambda x: x * 1.0), feeds, STRICT, truth=truth_of(reference, EPS))
    assert not report.passed
    assert report.exact is not None
    assert "output 'output': PyTorch in float32 is itself 0.00" in report.exact.conditioning
    assert "from its float64 evaluation, the file 0, where" in report.exact.conditioning
    assert "the network is ill-conditioned" in explain_difference(reference, runner(lambda x: x * 1.0), feeds, STRICT)


def test_a_wrong_candidate_of_a_well_conditioned_network_is_to_blame() -> None:
    reference, wrong, feeds = runner(lambda x: x * 2.0), runner(lambda x: x * 2.01), seeded_feeds([SPEC])
    report = validate(reference, wrong, feeds, STRICT, truth=truth_of(reference, EPS))
    assert not report.passed
    assert report.exact is not None
    assert report.exact.conditioning == ""
    assert explain_difference(reference, wrong, feeds, STRICT) == ""


def test_not_every_row_is_evaluated_in_float64() -> None:
    reference = runner(lambda x: x * 1.0)
    feeds = [{"x": np.ones((12, 4), np.float32)}] * 5
    report = validate(reference, reference, feeds, STRICT, truth=truth_of(reference, EPS))
    assert report.exact is not None
    assert (report.samples, report.exact.samples) == (60, 24)


def test_without_a_float64_evaluation_the_reason_is_told() -> None:
    """A forward that names float32 itself cannot run in float64; nor can a module be copied that refuses to."""
    reference, feeds = runner(lambda x: x @ torch.ones(4, 4, dtype=torch.float32)), seeded_feeds([SPEC])
    report = validate(reference, reference, feeds, STRICT, truth=truth_of(reference, EPS))
    assert report.passed
    assert report.exact is not None
    assert report.exact.holds is None
    assert "forward failed on input x 1x4 float64" in report.exact.why_not
    module = Runs(lambda x: x)
    module.handle = (i for i in range(3))  # a generator cannot be copied
    assert "cannot be copied into float64" in truth_of(PyTorchRunner(module, [SPEC]), EPS).why_not
    assert validate(reference, reference, feeds, STRICT, truth=Truth(None, EPS, why_not="no")).exact is not None


def test_a_copy_in_double_computes_in_double_and_leaves_the_network() -> None:
    module = nn.Sequential(nn.Linear(4, 4), Runs(lambda x: x + torch.zeros(4) + torch.full((4,), 1 / 3)))
    reference = PyTorchRunner(module, [SPEC])
    copy = reference.copy_in_double()
    assert copy.inputs == (TensorSpec("x", ("n", 4), "float64"),)
    assert copy.infer({"x": np.ones((2, 4))})["output"].dtype == np.float64
    assert module[0].weight.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32
    weight, bias = (tensor.detach().numpy().astype(np.float64) for tensor in module[0].parameters())
    expected = np.ones((2, 4)) @ weight.T + bias + 1 / 3
    np.testing.assert_allclose(copy.infer({"x": np.ones((2, 4))})["output"], expected, rtol=1e-15, atol=1e-15)
