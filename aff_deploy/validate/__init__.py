"""Proof that one runner computes what another does.

The metrics are described in `aff_deploy.validate.metrics`, the properties that are checked beside
them in `aff_deploy.validate.rows`, what passes in `aff_deploy.spec.Tolerance`, and the definition of
exact, which is measured beside it, in `aff_deploy.validate.exact`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from aff_deploy.errors import DataError
from aff_deploy.runtimes import Array, Feeds, Runner
from aff_deploy.runtimes.feeds import load_npz_feeds, seeded_feeds
from aff_deploy.spec import Tolerance
from aff_deploy.validate.exact import Exactness
from aff_deploy.validate.metrics import OutputComparison, compare_batches, compare_outputs
from aff_deploy.validate.rows import Check, Rows, adapt_feeds, check_rows, rows_of
from aff_deploy.validate.truth import Doubling, Exact, Truth, TruthMeasuring, truth_of

__all__ = [
    "Check",
    "Exact",
    "Exactness",
    "OutputComparison",
    "Truth",
    "ValidationReport",
    "compare_outputs",
    "explain_difference",
    "load_npz_feeds",
    "seeded_feeds",
    "truth_of",
    "validate",
]


@dataclass(frozen=True)
class ValidationReport:
    """The outcome of `validate`; `samples` counts rows of the first input. `exact` decides nothing."""

    passed: bool
    outputs: tuple[OutputComparison, ...]
    tolerance: Tolerance
    samples: int
    checks: tuple[Check, ...] = ()
    exact: Exact | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each output and check that failed."""
        outputs = tuple(output.detail for output in self.outputs if not output.passed)
        return outputs + tuple(f"{check.name}: {check.detail}" for check in self.checks if not check.passed)

    def to_dict(self) -> dict[str, Any]:
        """The document of ``validate --json``."""
        return {
            "passed": self.passed,
            "outputs": [output.to_dict() for output in self.outputs],
            "tolerance": asdict(self.tolerance),
            "samples": self.samples,
            "checks": [check.to_dict() for check in self.checks],
            "exact": None if self.exact is None else self.exact.to_dict(),
        }


def validate(
    reference: Runner,
    candidate: Runner,
    batches: Iterable[Mapping[str, Array]],
    tolerance: Tolerance,
    *,
    metamorphic: bool = True,
    truth: Truth | None = None,
) -> ValidationReport:
    """Run both on every batch and compare; then check properties of the candidate alone.

    The properties hold for any network that treats the rows of a batch alone: identical rows give
    identical rows, a row gives the same in a batch of 1, permuted rows permute the output. They
    are skipped where the first axis is not a dynamic batch, or the reference lacks them too.

    Args:
        reference: what is right, usually eager PyTorch.
        candidate: what is to be proven.
        batches: inputs by name; float types adapt to either runner's.
        tolerance: what each output must keep.
        metamorphic: whether to check the properties.
        truth: the reference in double precision, to measure exactness against.

    Raises:
        DataError: no batch, or one that does not fit; inputs or outputs that cannot be paired.
    """
    rows = Rows()
    samples = 0
    measuring = TruthMeasuring(truth)

    def run() -> Iterator[tuple[Feeds, Feeds]]:
        nonlocal samples
        for batch in batches:
            samples += rows_of(batch)
            rows.offer(batch)
            expected = reference.infer(adapt_feeds(batch, reference.inputs))
            got = candidate.infer(adapt_feeds(batch, candidate.inputs))
            measuring.offer(adapt_feeds(batch, reference.inputs), expected, got)
            yield expected, got

    outputs = compare_batches(run(), tolerance)
    if not outputs:
        raise DataError("there is no data to compare on", fix="give at least one batch")
    checks = check_rows(reference, candidate, rows.best(), tolerance) if metamorphic else ()
    passed = all(output.passed for output in outputs) and all(check.passed for check in checks)
    exact = measuring.finish(outputs, tolerance, reference)
    return ValidationReport(passed, outputs, tolerance, samples, checks, exact)


def explain_difference(
    reference: Doubling, candidate: Runner, batches: Iterable[Mapping[str, Array]], tolerance: Tolerance
) -> str:
    """Whether it is the network itself that makes a comparison fail, in words with the figures; nothing where it is not.

    Args:
        reference: what the candidate was held against.
        candidate: what failed.
        batches: data on which it failed.
        tolerance: by which it failed.
    """
    truth = truth_of(reference, eps=0.0)
    report = validate(reference, candidate, batches, tolerance, metamorphic=False, truth=truth)
    return "" if report.exact is None else report.exact.conditioning
