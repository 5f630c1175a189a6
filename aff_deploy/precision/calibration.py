"""Calibration data: what the ranges of an 8-bit model are taken from, out of a recipe, an ``.npz`` or a folder of images."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aff_deploy.errors import DataError
from aff_deploy.precision.images import find_images, read_images
from aff_deploy.recipe import CalibrationData, Evaluation, Recipe
from aff_deploy.runtimes import Array, numpy_dtype, shape_text
from aff_deploy.runtimes.feeds import load_npz_feeds, seeded_feeds
from aff_deploy.spec import TensorSpec
from aff_deploy.verify import free_sizes

SEEDED = "seeded"
CALIBRATION_SEED = 1
"""Another than that of the data on which results are compared."""
SEEDED_SAMPLES = 32
LIMIT = 512
# Every quantised layer's input is held for a whole batch, some 40 times what an image network itself is fed.
BATCH_BYTES = 4 * 2**20
MOST_ROWS = 32
MAX_BYTES = 2**30
"""Most bytes of all batches together, and of the arrays of an ``.npz``, which as float32 may be four times as many."""
GIVE_DATA = "give --calib data.npz (or a folder of images), or --calib seeded if random data will do"


@dataclass(frozen=True)
class Calibration:
    """Batches for `aff_deploy.precision.quantize`, inputs by name, and in words what they are."""

    batches: tuple[Mapping[str, Array], ...]
    described: str

    @property
    def samples(self) -> int:
        """Rows of the first input, over all batches."""
        return _samples(self.batches)


def load_calibration(
    source: str | Path | None, inputs: Sequence[TensorSpec], recipe: Recipe | None, *, limit: int = LIMIT
) -> Calibration:
    """Calibration data for a model.

    Args:
        source: an ``.npz``, against a recipe raw data with its preprocessing and its names of arrays; a folder of images,
            at any depth, which needs a recipe; the word ``seeded``; or None for the recipe's calibration data, else its
            evaluation data.
        inputs: names, shapes and dtypes of the model's inputs.
        recipe: of the network; None for a bare model.
        limit: most samples: the first ones of an ``.npz``; of a folder an even choice from its sorted names, fewer where
            all would take over 1 GiB.

    Raises:
        DataError: there is no data, it is unreadable or does not fit, or an image is unreadable.
        MissingDependency: a folder is given and Pillow is not installed.
    """
    if source is None:
        return _from_recipe(inputs, recipe, limit)
    if str(source) == SEEDED:
        count = min(limit, SEEDED_SAMPLES)
        rows, sizes = _rows_for(inputs), free_sizes(inputs)
        batches = seeded_feeds(inputs, seed=CALIBRATION_SEED, samples=count, recipe=recipe, batch=rows, sizes=sizes)
        return Calibration(tuple(batches), f"{_samples(batches)} seeded random samples")
    path = Path(source)
    if os.path.isdir(path):
        return _from_images(path, inputs, recipe, limit)
    if not os.path.exists(path):
        raise DataError(f"there is no calibration data at {path}", fix=GIVE_DATA)
    described = None if recipe is None else recipe.calibration or recipe.evaluation
    read = _from_npz(path, inputs, recipe, None if described is None else described.inputs, limit)
    return Calibration(read, f"{_samples(read)} samples of {path.name}")


def _from_recipe(inputs: Sequence[TensorSpec], recipe: Recipe | None, limit: int) -> Calibration:
    found: CalibrationData | Evaluation | None = None
    if recipe is not None:
        found = recipe.checked_calibration() or recipe.checked_evaluation()
    if recipe is None or found is None:
        name = "a model without a recipe" if recipe is None else f"recipe {recipe.name!r}"
        raise DataError(f"{name} has no calibration data, which 8-bit precisions take their ranges from", fix=GIVE_DATA)
    if found.data.is_dir():
        return _from_images(found.data, inputs, recipe, limit)
    batches = _from_npz(found.data, inputs, recipe, found.inputs, limit, expected=found.samples)
    kind = "calibration" if isinstance(found, CalibrationData) else "evaluation"
    return Calibration(batches, f"{_samples(batches)} samples of the recipe's {kind} data, {found.data.name}")


def _from_npz(
    path: Path,
    inputs: Sequence[TensorSpec],
    recipe: Recipe | None,
    keys: Mapping[str, str] | None,
    limit: int,
    *,
    expected: int | None = None,
) -> tuple[Mapping[str, Array], ...]:
    steps = None if recipe is None else recipe.preprocessing
    batches = load_npz_feeds(path, inputs, batch=_rows_for(inputs), keys=keys, preprocessing=steps, max_bytes=MAX_BYTES)
    # A fixed batch leaves out an incomplete last one.
    fixed = any(spec.shape and isinstance(spec.shape[0], int) for spec in inputs)
    if expected is not None and not fixed and (total := _samples(batches)) != expected:
        raise DataError(f"{path} has {total} samples, the recipe says {expected}", fix="correct 'samples'")
    kept: list[Mapping[str, Array]] = []
    left = limit
    for batch in batches:
        kept.append(batch if fixed else {name: array[:left] for name, array in batch.items()})
        left -= _samples([batch])
        if left <= 0:
            break
    return tuple(kept)


def _from_images(folder: Path, inputs: Sequence[TensorSpec], recipe: Recipe | None, limit: int) -> Calibration:
    if recipe is None:
        raise DataError(
            "how images become the model's input is not known without a recipe",
            fix="build from a recipe with [preprocessing], or give an .npz of what the model takes",
        )
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[1] not in (1, 3):
        listed = ", ".join(spec.text for spec in inputs)
        raise DataError(
            f"images fit a network of one input N x 1 or 3 x height x width; this one has {listed}", fix="give an .npz"
        )
    spec, steps = inputs[0], recipe.preprocessing
    channels = 1 if spec.shape[1] == 1 else 3
    crop = tuple(size for size in spec.shape[2:] if isinstance(size, int)) or steps.crop
    if len(crop) != 2:
        raise DataError(f"images need a size: input {spec.text!r} has none", fix="give [preprocessing] a crop in the recipe")
    if steps.resize and max(crop) > steps.resize:
        raise DataError(
            f"[preprocessing] resizes images to {steps.resize}, less than the input's {shape_text(crop)}",
            fix="make 'resize' larger, or leave it out",
        )
    files = find_images(folder)
    named = {dim: size for dim, size in zip(spec.shape[2:], crop, strict=True) if isinstance(dim, str)}
    most = max(1, min(limit, len(files), MAX_BYTES // _bytes_of_one(inputs, named)))
    fixed = spec.shape[0] if isinstance(spec.shape[0], int) else None
    if fixed and most < fixed:
        raise DataError(f"{folder} gives {most} images, a batch of the network {fixed}", fix=f"give at least {fixed} images")
    most -= most % fixed if fixed else 0
    chosen = [files[i * len(files) // most] for i in range(most)]
    rows = fixed or _rows_for(inputs, named)
    batches = []
    for start in range(0, most, rows):
        raw = read_images(chosen[start : start + rows], height=crop[0], width=crop[1], channels=channels, resize=steps.resize)
        # Where a recipe's raw data lies as the network takes it, image files still do not.
        raw = raw if steps.layout == "channels-last" else np.moveaxis(raw, -1, 1)
        batches.append({spec.name: steps.apply(raw, str(numpy_dtype(spec.dtype)))})
    return Calibration(tuple(batches), f"{most} of the {len(files)} images in {folder.name or folder}")


def _bytes_of_one(inputs: Sequence[TensorSpec], named: Mapping[str, int]) -> int:
    """Bytes of one sample of all inputs."""
    sizes = {**free_sizes(inputs), **named}
    return max(1, sum(math.prod(spec.concrete(**sizes)[1:]) * numpy_dtype(spec.dtype).itemsize for spec in inputs))


def _rows_for(inputs: Sequence[TensorSpec], named: Mapping[str, int] | None = None) -> int:
    """Rows of a batch, where they are free to choose."""
    return max(1, min(MOST_ROWS, BATCH_BYTES // _bytes_of_one(inputs, named or {})))


def _samples(batches: Sequence[Mapping[str, Array]]) -> int:
    first = (next(iter(batch.values())) for batch in batches)
    return sum(len(array) if array.ndim else 1 for array in first)
