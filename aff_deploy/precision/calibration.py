"""Calibration data: what the ranges of an 8-bit model are taken from, out of a recipe, an ``.npz`` or a folder of images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aff_deploy.errors import DataError
from aff_deploy.recipe import CalibrationData, Evaluation, Recipe
from aff_deploy.runtimes.data import Data, count_samples, has_fixed_batch, load_data, rows_for
from aff_deploy.runtimes.feeds import free_sizes, seeded_feeds
from aff_deploy.spec import TensorSpec

SEEDED = "seeded"
CALIBRATION_SEED = 1
"""Another than that of the data on which results are compared."""
SEEDED_SAMPLES = 32
LIMIT = 512
MAX_BYTES = 2**30
"""Most bytes of the arrays of an ``.npz``, which as float32 may be four times as many."""
GIVE_DATA = "give --calib data.npz (or a folder of images), or --calib seeded if random data will do"


def load_calibration(
    source: str | Path | None,
    inputs: Sequence[TensorSpec],
    recipe: Recipe | None,
    *,
    limit: int = LIMIT,
    overrides: Mapping[str, Any] | None = None,
) -> Data:
    """Calibration data for a model.

    Args:
        source: an ``.npz`` or a folder of images, as `aff_deploy.runtimes.data.load_data` reads them, against a recipe
            with its preprocessing and its names of arrays; the word ``seeded``; or None for the recipe's calibration
            data, else its evaluation data.
        inputs: names, shapes and dtypes of the model's inputs.
        recipe: of the network; None for a bare model.
        limit: most samples.
        overrides: of ``scale``, ``mean`` and ``std`` those that replace the recipe's preprocessing.

    Raises:
        DataError: there is no data, it is unreadable or does not fit, or an image is unreadable.
        MissingDependency: a folder is given and Pillow is not installed.
    """
    if source is None:
        return _from_recipe(inputs, recipe, limit, overrides)
    if str(source) == SEEDED:
        count = min(limit, SEEDED_SAMPLES)
        rows, sizes = rows_for(inputs), free_sizes(inputs)
        batches = seeded_feeds(inputs, seed=CALIBRATION_SEED, samples=count, recipe=recipe, batch=rows, sizes=sizes)
        drawn = count_samples(batches)
        return Data(tuple(batches), f"{drawn} seeded random samples", drawn)
    path = Path(source)
    if not os.path.exists(path):
        raise DataError(f"there is no calibration data at {path}", fix=GIVE_DATA)
    described = None if recipe is None else recipe.calibration or recipe.evaluation
    return load_data(
        path,
        inputs,
        preprocessing=None if recipe is None else recipe.preprocessing,
        overrides=overrides,
        keys=None if described is None else described.inputs,
        limit=limit,
        max_bytes=MAX_BYTES,
    )


def _from_recipe(inputs: Sequence[TensorSpec], recipe: Recipe | None, limit: int, overrides: Mapping[str, Any] | None) -> Data:
    found: CalibrationData | Evaluation | None = None
    if recipe is not None:
        found = recipe.checked_calibration() or recipe.checked_evaluation()
    if recipe is None or found is None:
        name = "a model without a recipe" if recipe is None else f"recipe {recipe.name!r}"
        raise DataError(f"{name} has no calibration data, which 8-bit precisions take their ranges from", fix=GIVE_DATA)
    read = load_data(
        found.data,
        inputs,
        preprocessing=recipe.preprocessing,
        overrides=overrides,
        keys=found.inputs,
        limit=limit,
        max_bytes=MAX_BYTES,
    )
    # A fixed batch leaves out an incomplete last one.
    if found.samples is not None and not has_fixed_batch(inputs) and read.available != found.samples:
        raise DataError(f"{found.data} has {read.available} samples, the recipe says {found.samples}", fix="correct 'samples'")
    kind = "calibration" if isinstance(found, CalibrationData) else "evaluation"
    return Data(read.batches, f"{read.samples} samples of the recipe's {kind} data, {found.data.name}", read.available)
