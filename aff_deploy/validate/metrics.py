"""How far two sets of outputs are apart.

Metrics, per output, over all batches, accumulated in float64 (b is the reference):

- ``max_abs``: max |a - b|, and ``scale``: max |b|.
- ``max_rel``: max |a - b| / max(|b|, floor), the floor being 1e-3 of the scale of the batch's
  output: without one, elements near zero would decide. Infinite where all of b is zero and a is not.
- ``cosine``: a.b / (|a| |b|) of the flattened outputs; 1 where both are zero, 0 where one is.
- ``snr_db``: 10 log10(sum b^2 / sum (a - b)^2), kept within +-300 dB, so that identical outputs
  have 300 (beyond what float64 resolves) and the number stays valid JSON.
- ``argmax_agreement``: the fraction of positions whose largest class is the same; the classes lie
  on axis 1, or on the only axis of a 1-D output; None where there is no such axis.

What passes is defined by `aff_deploy.spec.Tolerance`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aff_deploy.errors import DataError
from aff_deploy.runtimes import Array, Feeds, shape_text
from aff_deploy.spec import Tolerance

REL_FLOOR = 1e-3
SNR_LIMIT = 300.0
CHUNK = 1 << 20
"""Elements widened to float64 at a time."""


@dataclass(frozen=True)
class OutputComparison:
    """How one output compares; see the module's docstring for the metrics.

    The numbers are NaN where the shapes differ or a value is not finite. `detail` is empty where
    `passed`, and else says where the worst element is, what it is, what it should be and what was
    allowed.
    """

    name: str
    max_abs: float
    max_rel: float
    cosine: float
    snr_db: float
    argmax_agreement: float | None
    scale: float
    passed: bool
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; numbers that are not finite become None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


class _Comparing:
    """Sums and maxima of one output over batches."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.batches = 0
        self.max_abs = self.max_rel = self.scale = 0.0
        self.dot = self.reference_power = self.candidate_power = self.noise_power = 0.0
        self.worst = ""
        self.broken = ""
        self.agreed = self.positions = 0

    def add(self, reference: Array, candidate: Array) -> None:
        where = f"output {self.name!r}" + (f" of batch {self.batches}" if self.batches else "")
        self.batches += 1
        if self.broken:
            return
        if reference.shape != candidate.shape:
            self.broken = f"{where} has shape {shape_text(candidate.shape)}, expected {shape_text(reference.shape)}"
            return
        for array, whose in ((candidate, "got"), (reference, "the reference has")):
            finite = np.isfinite(array)
            if not finite.all():
                at = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), array.shape))
                count = array.size - int(np.count_nonzero(finite))
                self.broken = f"{where} is not finite: {whose} {array[at]} at {list(at)}, {count} of {array.size} such values"
                return
        self._add_argmax(reference, candidate)
        self._add_values(reference, candidate, where)

    def _add_values(self, reference: Array, candidate: Array, where: str) -> None:
        expected, got = reference.reshape(-1), candidate.reshape(-1)
        # Not np.abs, which overflows on the smallest integer.
        scale = max(abs(float(expected.max())), abs(float(expected.min()))) if expected.size else 0.0
        self.scale = max(self.scale, scale)
        floor = REL_FLOOR * scale
        for start in range(0, expected.size, CHUNK):
            b = expected[start : start + CHUNK].astype(np.float64)
            a = got[start : start + CHUNK].astype(np.float64)
            error = np.abs(a - b)
            at = int(error.argmax())
            if error[at] > self.max_abs or not self.worst:
                self.max_abs = float(error[at])
                index = [int(i) for i in np.unravel_index(start + at, reference.shape)]
                self.worst = f"{where} differs most at {index}: got {a[at]:.7g}, expected {b[at]:.7g}, off by {error[at]:.3g}"
            with np.errstate(divide="ignore", over="ignore"):
                relative = np.divide(error, np.maximum(np.abs(b), floor), out=np.zeros_like(error), where=error > 0)
            self.max_rel = max(self.max_rel, float(relative.max()))
            self.dot += float(a @ b)
            self.reference_power += float(b @ b)
            self.candidate_power += float(a @ a)
            self.noise_power += float(error @ error)

    def _add_argmax(self, reference: Array, candidate: Array) -> None:
        axis = 1 if reference.ndim > 1 else 0
        if reference.ndim == 0 or reference.shape[axis] < 2 or reference.size == 0:
            return
        same = reference.argmax(axis) == candidate.argmax(axis)
        self.agreed += int(np.count_nonzero(same))
        self.positions += int(np.size(same))

    def finish(self, tolerance: Tolerance) -> OutputComparison:
        if self.broken:
            nan = math.nan
            return OutputComparison(self.name, nan, nan, nan, nan, None, nan, False, self.broken)
        cosine = self._cosine()
        allowed = tolerance.atol + tolerance.rtol * self.scale
        problems = []
        # "not <=", so that a NaN fails.
        if not self.max_abs <= allowed:
            problems.append(f"{self.worst} where {allowed:.3g} is allowed")
        if not cosine >= tolerance.min_cosine:
            asked = f"output {self.name!r} has cosine similarity {cosine:.7g} where {tolerance.min_cosine:.7g} is asked"
            problems.append(asked if problems else f"{asked}; {self.worst}")
        return OutputComparison(
            name=self.name,
            max_abs=self.max_abs,
            max_rel=self.max_rel,
            cosine=cosine,
            snr_db=self._snr_db(),
            argmax_agreement=self.agreed / self.positions if self.positions else None,
            scale=self.scale,
            passed=not problems,
            detail="; ".join(problems),
        )

    def _cosine(self) -> float:
        if self.noise_power == 0:
            return 1.0
        if self.reference_power == 0 or self.candidate_power == 0:
            return 0.0
        return max(-1.0, min(1.0, self.dot / math.sqrt(self.reference_power) / math.sqrt(self.candidate_power)))

    def _snr_db(self) -> float:
        if self.noise_power == 0:
            return SNR_LIMIT
        if self.reference_power == 0:
            return -SNR_LIMIT
        ratio = 10 * (math.log10(self.reference_power) - math.log10(self.noise_power))
        return max(-SNR_LIMIT, min(SNR_LIMIT, ratio))


def compare_outputs(reference: Feeds, candidate: Feeds, tolerance: Tolerance) -> tuple[OutputComparison, ...]:
    """Compare two sets of outputs, by name; in order where no name is shared.

    Raises:
        DataError: the outputs cannot be paired.
    """
    return compare_batches([(reference, candidate)], tolerance)


def compare_batches(pairs: Iterable[tuple[Feeds, Feeds]], tolerance: Tolerance) -> tuple[OutputComparison, ...]:
    comparing: dict[str, _Comparing] = {}
    for reference, candidate in pairs:
        for ours, theirs in pair_names(tuple(reference), tuple(candidate), "outputs"):
            comparing.setdefault(theirs, _Comparing(theirs)).add(reference[ours], candidate[theirs])
    return tuple(item.finish(tolerance) for item in comparing.values())


def pair_names(reference: Sequence[str], candidate: Sequence[str], what: str) -> list[tuple[str, str]]:
    """Equal names belong together; names that share nothing go in order; anything between is a mistake."""
    if set(reference) == set(candidate):
        return [(name, name) for name in candidate]
    if len(reference) == len(candidate) and not set(reference) & set(candidate):
        return list(zip(reference, candidate, strict=True))
    raise DataError(
        f"the {what} do not match: {', '.join(candidate)} against {', '.join(reference)} of the reference",
        fix=f"give both the same {what}",
    )
