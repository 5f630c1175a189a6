"""Exactness beside a comparison: what the truth is, on how many rows it is asked for, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from aff_deploy.errors import InputError
from aff_deploy.runtimes import Feeds, Runner
from aff_deploy.spec import Tolerance
from aff_deploy.validate.exact import Answers, Exactness, describe_conditioning, measure_exactness
from aff_deploy.validate.metrics import OutputComparison
from aff_deploy.validate.rows import adapt_feeds, rows_of

EXACT_ROWS = 16
"""So many rows are evaluated in float64, which takes some seconds for a network of usual size."""


@dataclass(frozen=True)
class Truth:
    """What exactness is measured against.

    Attributes:
        runner: the reference in double precision; None where there is no such evaluation.
        eps: the machine epsilon of the narrowest float type that reference or candidate compute in.
        magnitude: the largest magnitude of an input or output of the candidate's fused calls.
        why_not: why there is no such evaluation.
    """

    runner: Runner | None
    eps: float
    magnitude: float = 0.0
    why_not: str = ""


class Doubling(Runner, Protocol):
    """A runner that can make one of itself in double precision, as PyTorch's."""

    def copy_in_double(self) -> Runner: ...


def truth_of(reference: Doubling, eps: float, magnitude: float = 0.0) -> Truth:
    """The reference in double precision; without a runner, and with the reason, where it cannot be had."""
    try:
        return Truth(reference.copy_in_double(), eps, magnitude)
    except InputError as error:
        return Truth(None, eps, magnitude, error.message)


@dataclass(frozen=True)
class Exact:
    """Whether the definition of exact holds, on the first `EXACT_ROWS` rows.

    Attributes:
        outputs: the measured outputs; none where nothing could be measured, for the reason `why_not`.
        samples: rows that were evaluated.
        why_not: see above.
        conditioning: where the comparison failed because the reference itself is far from the truth, that in words.
    """

    outputs: tuple[Exactness, ...]
    samples: int
    why_not: str = ""
    conditioning: str = ""

    @property
    def holds(self) -> bool | None:
        """None where nothing was measured."""
        return all(output.holds for output in self.outputs) if self.outputs else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        outputs = [output.to_dict() for output in self.outputs]
        words = {"why_not": self.why_not, "conditioning": self.conditioning}
        return {"holds": self.holds, "samples": self.samples, "outputs": outputs, **words}


class TruthMeasuring:
    """The first rows' answers, beside the truth's."""

    def __init__(self, truth: Truth | None) -> None:
        self._truth = truth
        self._answers: list[Answers] = []
        self._samples = 0
        self._why_not = "" if truth is None else truth.why_not

    def offer(self, feeds: Feeds, expected: Feeds, got: Feeds) -> None:
        """The batch as the reference took it, and what both answered."""
        if self._truth is None or self._truth.runner is None or self._why_not or self._samples >= EXACT_ROWS:
            return
        runner = self._truth.runner
        try:
            right = runner.infer(adapt_feeds(feeds, runner.inputs))
        except InputError as error:
            self._why_not, self._answers, self._samples = error.message, [], 0
            return
        self._answers.append(Answers(right, expected, got))
        self._samples += rows_of(feeds)

    def finish(self, outputs: Iterable[OutputComparison], tolerance: Tolerance, reference: Runner) -> Exact | None:
        """What was measured; None where that was not asked for."""
        if self._truth is None:
            return None
        if not self._answers:
            return Exact((), 0, self._why_not)
        found = measure_exactness(self._answers, self._truth.eps, self._truth.magnitude)
        return Exact(found, self._samples, "", describe_conditioning(found, _allowed(outputs, tolerance), _name_of(reference)))


def _allowed(outputs: Iterable[OutputComparison], tolerance: Tolerance) -> dict[str, float]:
    """For each output that failed, the largest difference that it may have."""
    return {each.name: tolerance.atol + tolerance.rtol * each.scale for each in outputs if not each.passed}


def _name_of(reference: Runner) -> str:
    dtypes = [spec.dtype for spec in reference.inputs if "float" in spec.dtype]
    return f"{reference.name} in {dtypes[0]}" if dtypes else reference.name
