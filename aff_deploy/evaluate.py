"""Answers on held-out data: does the file decide as the network does, and how often rightly?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from aff_deploy.errors import CheckFailed, DataError
from aff_deploy.recipe import Evaluation
from aff_deploy.runtimes import Array, Feeds, Runner
from aff_deploy.runtimes.feeds import load_npz_feeds
from aff_deploy.spec import TensorSpec

ACCURACY_SLACK = 0.005
"""How far accuracy may lie below what the recipe records, for other versions and processors than those it was trained on."""


class RecordingRunner:
    """A runner that keeps the answers (largest class of the first output) of its first `batches` runs."""

    def __init__(self, runner: Runner, batches: int) -> None:
        self.name = runner.name
        self.answers: list[Array] = []
        self._runner, self._batches = runner, batches

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._runner.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        return self._runner.outputs

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        """As the wrapped runner."""
        found = self._runner.infer(feeds)
        if len(self.answers) < self._batches:
            first = next(iter(found.values()))
            self.answers.append(first.argmax(axis=1) if first.ndim > 1 else first)
        return found

    def __enter__(self) -> RecordingRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        return None


@dataclass(frozen=True)
class Evaluated:
    """Counts over the evaluation data; `reference_correct` and `correct` are None where there are no labels."""

    samples: int
    same: int
    reference_correct: int | None
    correct: int | None
    recorded: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with accuracies (0 to 1) beside the counts."""
        return {
            "samples": self.samples,
            "same_answers": self.same,
            "correct": {"pytorch": self.reference_correct, "file": self.correct},
            "accuracy": {
                "pytorch": None if self.reference_correct is None else self.reference_correct / self.samples,
                "file": None if self.correct is None else self.correct / self.samples,
                "recorded": self.recorded,
            },
        }

    def lines(self) -> list[str]:
        """What was found, in words."""
        lines = [f"the file gives the same answer as PyTorch on {self.same} of {self.samples}"]
        if self.correct is not None and self.reference_correct is not None:
            recorded = "" if self.recorded is None else f"; the recipe records {100 * self.recorded:.2f} %"
            lines.append(
                f"accuracy {100 * self.correct / self.samples:.2f} % ({self.correct} of {self.samples}), "
                f"PyTorch {100 * self.reference_correct / self.samples:.2f} %{recorded}"
            )
        return lines

    def require_accuracy(self, name: str) -> None:
        """Raise where accuracy lies below the recorded one by more than `ACCURACY_SLACK`.

        Raises:
            CheckFailed: with both numbers.
        """
        if self.recorded is None or self.correct is None:
            return
        reached = self.correct / self.samples
        if reached < self.recorded - ACCURACY_SLACK:
            raise CheckFailed(
                f"{name}: accuracy is {100 * reached:.2f} % on {self.samples} samples, "
                f"the recipe records {100 * self.recorded:.2f} %",
                fix="check the weights, the preprocessing and the labels; nothing was written",
            )


def load_labels(evaluation: Evaluation) -> Array:
    """The class labels of the evaluation data, one int64 a sample.

    Raises:
        DataError: no such array, or not integers of rank 1.
    """
    spec = TensorSpec("labels", ("samples",), "int64")
    batches = load_npz_feeds(evaluation.data, [spec], keys={"labels": evaluation.labels})
    return np.concatenate([batch["labels"] for batch in batches])


def evaluate(
    reference: Sequence[Array], candidate: Sequence[Array], labels: Array | None, evaluation: Evaluation | None
) -> Evaluated:
    """Count answers that agree, and that are right.

    Args:
        reference: class indices by batch, from PyTorch.
        candidate: the same from the file.
        labels: the truth, at least as long; None where there is none.
        evaluation: what the recipe says of the data.

    Raises:
        DataError: labels or samples of another number than the recipe or the data has.
    """
    ours, theirs = np.concatenate(list(candidate)), np.concatenate(list(reference))
    expected = evaluation.samples if evaluation is not None else None
    if expected is not None and expected != len(ours):
        raise DataError(f"the evaluation data has {len(ours)} samples, the recipe says {expected}", fix="correct 'samples'")
    same = int((ours == theirs).sum())
    recorded = evaluation.accuracy if evaluation is not None else None
    if labels is None:
        return Evaluated(ours.size, same, None, None, recorded)
    if len(labels) < len(ours) or ours.ndim != 1:
        raise DataError(
            f"the evaluation data has {len(labels)} labels for answers of shape {list(ours.shape)}",
            fix="labels need one class a sample, and the network's first output one score a class",
        )
    labels = labels[: len(ours)]
    return Evaluated(len(ours), same, int((theirs == labels).sum()), int((ours == labels).sum()), recorded)
