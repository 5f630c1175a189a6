"""The data of a build: what ranges are observed on, and what the result is compared on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aff_deploy.precision.calibration import LIMIT, SEEDED, load_calibration
from aff_deploy.recipe import Recipe
from aff_deploy.runtimes import Array
from aff_deploy.runtimes.data import Data, count_samples, has_fixed_batch, load_data
from aff_deploy.runtimes.feeds import describe_seeded, free_sizes, load_npz_feeds, seeded_feeds
from aff_deploy.spec import Precision, TensorSpec

COMPARED_SAMPLES = 8
MOST_OBSERVED = 128
"""Samples of real data on which fp16 and bf16 observe ranges and means."""
OBSERVED_SAMPLES = 4
"""The same of seeded data, of which more says no more."""
HELD_OUT_STEP = 5
"""Of so many calibration samples one is kept to compare on."""
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
    precision: Precision,
    inputs: Sequence[TensorSpec],
    *,
    recipe: Recipe | None,
    calib: str | None,
    data: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> EngineData:
    """Choose the data of a build.

    int8 and fp8 are calibrated, so they need data that is real, or a person who asks for ``seeded``. fp16
    only looks at ranges: where there is no real data it takes seeded data, and `observed` says so. Where
    there is calibration data and nothing else that is real, every fifth sample of it is held out to
    compare on, and the words of both say so.

    Args:
        precision: what is built.
        inputs: of the network.
        recipe: its calibration and evaluation data and preprocessing.
        calib: an ``.npz``, a folder of images, or ``seeded``.
        data: an ``.npz`` or a folder of images to compare on, in place of the recipe's evaluation data.
        overrides: of ``scale``, ``mean`` and ``std`` those that replace the recipe's preprocessing.

    Raises:
        DataError: data that does not fit, or none where it is needed.
    """
    compared, words, evaluated = _real_data(inputs, recipe, data, overrides)
    quantised = precision in (Precision.INT8, Precision.FP8)
    observed = Data((), "", 0)
    if precision is not Precision.FP32:
        source = calib
        if source is None and not quantised and not _has_real_data(recipe):
            source = SEEDED
        limit = LIMIT if quantised else MOST_OBSERVED
        if source == SEEDED and not quantised:
            limit = OBSERVED_SAMPLES
        observed = load_calibration(source, inputs, recipe, limit=limit, overrides=overrides)
        if source != SEEDED and not compared:
            observed, held = _hold_out(observed, inputs)
            compared, words = list(held.batches), [held.described]
        if not quantised:
            observed = replace(observed, batches=tuple(_in_rows(observed.batches, inputs)))
    # Noise lies outside the ranges that real data was calibrated on, and says nothing of answers on real data.
    if data is None and not (quantised and compared and calib != SEEDED):
        compared += seeded_feeds(inputs, samples=COMPARED_SAMPLES, recipe=recipe, sizes=free_sizes(inputs))
        words.append(describe_seeded(inputs))
    return EngineData(observed.batches, observed.described, compared, " and ".join(words), evaluated)


def _real_data(
    inputs: Sequence[TensorSpec], recipe: Recipe | None, data: Path | None, overrides: Mapping[str, Any] | None
) -> tuple[list[Mapping[str, Array]], list[str], int]:
    """What there is to compare on beside calibration data, in words, and how many batches are the recipe's evaluation."""
    evaluation = recipe.checked_evaluation() if recipe is not None else None
    steps = recipe.preprocessing if recipe is not None else None
    keys = evaluation.inputs if evaluation is not None else None
    if data is not None:
        read = load_data(data, inputs, preprocessing=steps, overrides=overrides, keys=keys)
        return list(read.batches), [read.described], 0
    if evaluation is None:
        return [], [], 0
    read_ = load_npz_feeds(evaluation.data, inputs, keys=keys, preprocessing=steps)
    return list(read_), ["evaluation data"], len(read_)


def _hold_out(data: Data, inputs: Sequence[TensorSpec]) -> tuple[Data, Data]:
    """Two parts of `data`: every fifth sample is the second's; of fewer than five the last, and a single one is both's.

    Samples are whole batches where the network's batch has a fixed size.
    """
    whole = has_fixed_batch(inputs)
    total = len(data.batches) if whole else data.samples
    if total == 1:
        held = f"{data.described}, the same that it was calibrated on: too little to hold any out"
        return data, replace(data, described=held)
    step = min(HELD_OUT_STEP, total)
    kept: list[Mapping[str, Array]] = []
    held_out: list[Mapping[str, Array]] = []
    position = 0
    for batch in data.batches:
        rows = 1 if whole else count_samples([batch])
        chosen = np.arange(position, position + rows) % step == step - 1
        position += rows
        for part, wanted in ((kept, ~chosen), (held_out, chosen)):
            if whole and wanted.all():
                part.append(batch)
            elif not whole and wanted.any():
                part.append({name: array[wanted] for name, array in batch.items()})
    which = "every fifth" if step == HELD_OUT_STEP else "the last"
    first, second = (count_samples(part) for part in (kept, held_out))
    return (
        Data(tuple(kept), f"{first} of {data.described} ({which} held out)", data.available),
        Data(tuple(held_out), f"{second} held out of {data.described} ({which})", data.available),
    )


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
