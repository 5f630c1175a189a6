"""The one definition of *exact*: no further from the truth than the original's own rounding explains.

The truth is the original in double precision. For finite inputs, an output of a candidate is exact when

    max |candidate - truth|  <=  8 (max |original - truth| + eps m)

where eps is the machine epsilon of the type that it computes in and m the largest magnitude among the
inputs and outputs of the sites that were rewritten and the output itself; and when it has no infinity
or NaN where the original has none. Maxima are over all data of an output. Where the truth itself is
not finite, the original decides. What is no float must equal the original or the truth.

The second term is there because rewritten arithmetic rounds elsewhere: ``y + w (x - y)`` rounds
relative to y also where w is 1 and the result x (docs/exactness.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from aff_deploy.errors import DataError
from aff_deploy.runtimes import Array, Feeds, shape_text
from aff_deploy.validate.metrics import pair_names

FACTOR = 8
"""So much larger than the original's may an error be: one is a maximum of as many draws as the other, of another sum."""


class Answers(NamedTuple):
    """The outputs of three runners for the same data: the original in float64, the original, and the candidate."""

    truth: Feeds
    original: Feeds
    candidate: Feeds


@dataclass(frozen=True)
class Exactness:
    """How far an output is from the truth, and how far it may be.

    Attributes:
        name: of the output.
        error: the candidate's largest.
        original_error: the original's largest.
        magnitude: the largest among the sites' inputs and outputs, and the output.
        eps: of the type.
        broken: what is wrong beside the error, in words: a shape, a NaN, an integer; empty where nothing is.
    """

    name: str
    error: float
    original_error: float
    magnitude: float
    eps: float
    broken: str = ""

    @property
    def allowed(self) -> float:
        return FACTOR * (self.original_error + self.eps * self.magnitude)

    @property
    def holds(self) -> bool:
        # "<=" and not its opposite, so that a NaN fails.
        return not self.broken and self.error <= self.allowed

    @property
    def detail(self) -> str:
        """Why it does not hold, in one line; empty where it does."""
        if self.holds:
            return ""
        if self.broken:
            return self.broken
        return (
            f"output {self.name!r} is {self.error:.3g} from a float64 evaluation, where the original is "
            f"{self.original_error:.3g} from it and {self.allowed:.3g} is allowed"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; numbers that are not finite become None."""
        found = {**asdict(self), "allowed": self.allowed, "holds": self.holds}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}


class _Measuring:
    """Maxima of one output over batches."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.error = self.original_error = self.scale = 0.0
        self.broken = ""

    def add(self, truth: Array, original: Array, candidate: Array) -> None:
        if original.shape != candidate.shape:
            got, expected = shape_text(candidate.shape), shape_text(original.shape)
            self.broken = self.broken or f"output {self.name!r} has shape {got}, expected {expected}"
        elif truth.shape != original.shape:
            got, expected = shape_text(original.shape), shape_text(truth.shape)
            self.broken = self.broken or f"output {self.name!r} has shape {expected} in float64, and else {got}"
        elif original.dtype.kind == "f":
            self._add_floats(*(array.astype(np.float64) for array in (truth, original, candidate)))
        else:
            wrong = (candidate != original) & (candidate != truth)
            self._complain(wrong, candidate, original, "differs")

    def _add_floats(self, truth: Array, original: Array, candidate: Array) -> None:
        truth = np.where(np.isfinite(truth), truth, original)
        is_finite = np.isfinite(truth)
        self._complain(np.isfinite(original) & ~np.isfinite(candidate), candidate, original, "is not finite")
        same = (candidate == truth) | (np.isnan(candidate) & np.isnan(truth))
        self._complain(~is_finite & ~same, candidate, truth, "is another infinity")
        self.scale = max(self.scale, _largest(truth))
        self.error = max(self.error, _largest(candidate, truth))
        self.original_error = max(self.original_error, _largest(original, truth))

    def _complain(self, wrong: Array, got: Array, expected: Array, how: str) -> None:
        if self.broken or not wrong.any():
            return
        at = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
        count = int(np.count_nonzero(wrong))
        self.broken = (
            f"output {self.name!r} {how} at {list(at)}: got {got[at]}, expected {expected[at]}; "
            f"{count} of {wrong.size} such values"
        )


def _largest(array: Array, other: Array | None = None) -> float:
    """The largest finite magnitude of an array, or of its difference from another; 0 without any."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(array if other is None else array - other)
    return float(np.max(difference, initial=0.0, where=np.isfinite(difference)))


def measure_exactness(answers: Iterable[Answers], eps: float, magnitude: float = 0.0) -> tuple[Exactness, ...]:
    """Hold a candidate against the definition, output by output.

    Args:
        answers: of the three runners, batch by batch; outputs are paired as in `compare_batches`.
        eps: of the narrowest float type that original or candidate compute in.
        magnitude: the largest magnitude of a site's input or output; each output's own comes to it.

    Raises:
        DataError: there is no batch, or outputs cannot be paired.
    """
    measuring: dict[str, _Measuring] = {}
    for each in answers:
        truths = dict(pair_names(tuple(each.original), tuple(each.truth), "outputs"))
        for ours, theirs in pair_names(tuple(each.original), tuple(each.candidate), "outputs"):
            output = measuring.setdefault(theirs, _Measuring(theirs))
            output.add(each.truth[truths[ours]], each.original[ours], each.candidate[theirs])
    if not measuring:
        raise DataError("there is no data to compare on", fix="give at least one batch")
    return tuple(
        Exactness(m.name, m.error, m.original_error, max(m.scale, magnitude), eps, m.broken) for m in measuring.values()
    )


def describe_conditioning(found: Iterable[Exactness], allowed: Mapping[str, float], reference: str) -> str:
    """Why a comparison failed, where it is the network and not the candidate that is to blame; else nothing.

    Two that are each within half of what is allowed from the truth are within the whole of each other. So
    where a comparison fails and the reference is further than half, its own rounding is part of the reason.

    Args:
        found: the measured outputs.
        allowed: by output that failed, the largest difference that the tolerance allows.
        reference: what to call it, as ``PyTorch in float32``.
    """
    for output in found:
        if output.name in allowed and output.original_error > allowed[output.name] / 2:
            return (
                f"output {output.name!r}: {reference} is itself {output.original_error:.3g} from its float64 evaluation, "
                f"the file {output.error:.3g}, where {allowed[output.name]:.3g} is allowed between them: "
                "the network is ill-conditioned, it amplifies rounding beyond the tolerance"
            )
    return ""
