"""The data of a build: what ranges are observed on, and what the result is compared on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aff_deploy.precision.calibration import load_calibration
from aff_deploy.recipe import Recipe
from aff_deploy.runtimes import Array
from aff_deploy.runtimes.feeds import load_npz_feeds, seeded_feeds
from aff_deploy.spec import Precision, TensorSpec
from aff_deploy.verify import free_sizes

SEEDED = "seeded"
COMPARED_SAMPLES = 8
MOST_OBSERVED = 128
"""Samples of real data on which fp16 and bf16 observe ranges and means."""
OBSERVED_SAMPLES = 4
"""The same of seeded data, of which more says no more."""
OBSERVED_ROWS = 2
"""Rows in a batch of them: every tensor of the network may be in memory at once."""


@dataclass(frozen=True)
class EngineData:
    """Batches, by input name.

    Attributes:
        observed_on: for ranges and calibration; empty for fp32, which needs neither.
        observed: what `observed_on` is, in words.
        compared_on: for the comparison with the reference.
        compared: what `compared_on` is, in words.
        evaluation: how many of the first batches of `compared_on` are the recipe's evaluation data.
    """

    observed_on: Sequence[Mapping[str, Array]]
    observed: str
    compared_on: Sequence[Mapping[str, Array]]
    compared: str
    evaluation: int = 0


def engine_data(
    precision: Precision, inputs: Sequence[TensorSpec], *, recipe: Recipe | None, calib: str | None, data: Path | None = None
) -> EngineData:
    """Choose the data of a build.

    int8 and fp8 are calibrated, so they need data that is real, or a person who asks for ``seeded``. fp16
    only looks at ranges: where there is no real data it takes seeded data, and `observed` says so.

    Args:
        precision: what is built.
        inputs: of the network.
        recipe: its calibration and evaluation data, preprocessing and distributions.
        calib: an ``.npz``, a folder of images, or ``seeded``.
        data: an ``.npz`` to compare on, in place of the recipe's evaluation data.

    Raises:
        DataError: data that does not fit, or none where it is needed.
    """
    compared: list[dict[str, Array]] = []
    evaluation = recipe.checked_evaluation() if recipe is not None else None
    if data is not None:
        keys = evaluation.inputs if evaluation is not None else None
        compared = load_npz_feeds(data, inputs, keys=keys, preprocessing=recipe.preprocessing if recipe is not None else None)
    elif recipe is not None and evaluation is not None:
        compared = load_npz_feeds(evaluation.data, inputs, keys=evaluation.inputs, preprocessing=recipe.preprocessing)
    count = len(compared)
    quantised = precision in (Precision.INT8, Precision.FP8)
    # Noise lies outside the ranges that real data was calibrated on, and says nothing of answers on real data.
    if data is None and not (quantised and compared and calib != SEEDED):
        compared += seeded_feeds(inputs, samples=COMPARED_SAMPLES, recipe=recipe, sizes=free_sizes(inputs))
    parts = [data.name] if data is not None else ["evaluation data"] * bool(count) + ["seeded"] * (len(compared) > count)
    words, count = " and ".join(parts), count if data is None else 0
    if precision is Precision.FP32:
        return EngineData((), "", compared, words, count)
    source = calib
    if source is None and not quantised and not _has_real_data(recipe):
        source = SEEDED
    if quantised:
        calibration = load_calibration(source, inputs, recipe)
        return EngineData(calibration.batches, calibration.described, compared, words, count)
    calibration = load_calibration(source, inputs, recipe, limit=OBSERVED_SAMPLES if source == SEEDED else MOST_OBSERVED)
    return EngineData(_in_rows(calibration.batches, inputs), calibration.described, compared, words, count)


def _in_rows(batches: Sequence[Mapping[str, Array]], inputs: Sequence[TensorSpec]) -> list[Mapping[str, Array]]:
    """The same data in batches of `OBSERVED_ROWS`, where every input has the same dynamic first dimension."""
    if len({spec.shape[:1] for spec in inputs}) != 1 or not all(
        spec.shape and isinstance(spec.shape[0], str) for spec in inputs
    ):
        return list(batches)
    return [
        {name: array[start : start + OBSERVED_ROWS] for name, array in batch.items()}
        for batch in batches
        for start in range(0, len(next(iter(batch.values()))), OBSERVED_ROWS)
    ]


def _has_real_data(recipe: Recipe | None) -> bool:
    return recipe is not None and (recipe.calibration is not None or recipe.evaluation is not None)
