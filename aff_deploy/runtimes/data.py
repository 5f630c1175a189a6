"""Real data for a network, which a person names: an ``.npz`` or a folder of images."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aff_deploy.errors import DataError
from aff_deploy.recipe import Preprocessing
from aff_deploy.runtimes import Array, numpy_dtype, shape_text
from aff_deploy.runtimes.feeds import MAX_NPZ_BYTES, free_sizes, load_npz_feeds
from aff_deploy.runtimes.images import find_images, read_images
from aff_deploy.spec import TensorSpec

# A quantised network holds every layer's input for a whole batch, some 40 times what it is itself fed.
BATCH_BYTES = 4 * 2**20
MOST_ROWS = 32
MAX_IMAGE_BYTES = 2**30
"""Most bytes of all images of a folder as the network takes them."""
GREY_LEVELS = 255
CHANNELS = {1: "grey", 3: "RGB"}
NO_PIXELS = ("int8", "bool")
"""Dtypes that do not hold 0 to 255."""


@dataclass(frozen=True)
class Data:
    """Batches by input name, in words what they are and what was assumed of them, and how many samples there were."""

    batches: tuple[Mapping[str, Array], ...]
    described: str
    available: int

    @property
    def samples(self) -> int:
        """Rows of the first input, over all batches."""
        return count_samples(self.batches)


def load_data(
    path: Path,
    inputs: Sequence[TensorSpec],
    *,
    preprocessing: Preprocessing | None = None,
    overrides: Mapping[str, Any] | None = None,
    keys: Mapping[str, str] | None = None,
    limit: int | None = None,
    max_bytes: int = MAX_NPZ_BYTES,
) -> Data:
    """Read an ``.npz`` or a folder of images.

    Args:
        path: an ``.npz``, which is never unpickled, or a folder of images at any depth.
        inputs: names, shapes and dtypes of what the network takes; where images leave a size open, their example.
        preprocessing: of raw data into the first input. None takes an ``.npz`` as it is, and images as 0 to 255 for
            an integer input and 0 to 1 for a float one.
        overrides: of ``scale``, ``mean`` and ``std`` those that replace the preprocessing's.
        keys: array name in the ``.npz`` by input name.
        limit: most samples: the first ones of an ``.npz``; of a folder an even choice from its sorted names, fewer
            where all would take over 1 GiB.
        max_bytes: most bytes of an ``.npz``'s arrays.

    Raises:
        DataError: there is nothing, it is unreadable, or does not fit.
        MissingDependency: a folder is given and Pillow is not installed.
    """
    if os.path.isdir(path):
        return _read_folder(path, inputs, preprocessing, overrides or {}, limit)
    if not os.path.exists(path):
        raise DataError(f"there is no data at {path}", fix="give the path of an .npz file or of a folder of images")
    steps = replace(preprocessing or Preprocessing(), **overrides) if overrides else preprocessing
    batches = load_npz_feeds(path, inputs, batch=rows_for(inputs), keys=keys, preprocessing=steps, max_bytes=max_bytes)
    every = count_samples(batches)
    kept = _first_rows(batches, inputs, limit)
    some = count_samples(kept)
    counted = f"{some} samples" if some == every else f"{some} of the {every} samples"
    return Data(kept, f"{counted} of {path.name}", every)


def _first_rows(
    batches: Sequence[Mapping[str, Array]], inputs: Sequence[TensorSpec], limit: int | None
) -> tuple[Mapping[str, Array], ...]:
    if limit is None:
        return tuple(batches)
    fixed = has_fixed_batch(inputs)
    kept: list[Mapping[str, Array]] = []
    left = limit
    for batch in batches:
        if left <= 0:
            break
        kept.append(batch if fixed else {name: array[:left] for name, array in batch.items()})
        left -= count_samples([batch])
    return tuple(kept)


def _read_folder(
    folder: Path,
    inputs: Sequence[TensorSpec],
    preprocessing: Preprocessing | None,
    overrides: Mapping[str, Any],
    limit: int | None,
) -> Data:
    spec = _image_input(inputs)
    steps = replace(preprocessing or _assumed(spec), **overrides)
    channels = 1 if spec.shape[1] == 1 else 3
    height, width = _image_size(spec, steps)
    files = find_images(folder)
    named = {dim: size for dim, size in zip(spec.shape[2:], (height, width), strict=True) if isinstance(dim, str)}
    most = max(1, min(limit or len(files), len(files), MAX_IMAGE_BYTES // _bytes_of_one(inputs, named)))
    fixed = spec.shape[0] if isinstance(spec.shape[0], int) else None
    if fixed and most < fixed:
        raise DataError(f"{folder} gives {most} images, a batch of the network {fixed}", fix=f"give at least {fixed} images")
    most -= most % fixed if fixed else 0
    chosen = [files[i * len(files) // most] for i in range(most)]
    rows = fixed or rows_for(inputs, named)
    batches = []
    for start in range(0, most, rows):
        raw = read_images(chosen[start : start + rows], height=height, width=width, channels=channels, resize=steps.resize)
        # Where a recipe's raw data lies as the network takes it, image files still do not.
        raw = raw if steps.layout == "channels-last" else np.moveaxis(raw, -1, 1)
        batches.append({spec.name: np.ascontiguousarray(steps.apply(raw, str(numpy_dtype(spec.dtype))))})
    described = f"{most} of the {len(files)} images in {folder.name or folder}"
    if preprocessing is None:
        described += f", taken as {CHANNELS[channels]} {height}x{width}{_say_assumed(steps, overrides)}"
    return Data(tuple(batches), described, len(files))


def _say_assumed(steps: Preprocessing, overrides: Mapping[str, Any]) -> str:
    said = ""
    if "scale" not in overrides:
        said += ", values 0 to 255" if steps.scale == 1 else ", divided by 255"
    if "mean" not in overrides and "std" not in overrides:
        said += ", no mean or std (--scale, --mean and --std say otherwise)"
    return said


def _image_input(inputs: Sequence[TensorSpec]) -> TensorSpec:
    if len(inputs) == 1 and len(inputs[0].shape) == 4 and inputs[0].shape[1] in CHANNELS and inputs[0].dtype not in NO_PIXELS:
        return inputs[0]
    listed = ", ".join(spec.text for spec in inputs)
    raise DataError(f"images fit a network of one input N x 1 or 3 x height x width; this one has {listed}", fix="give an .npz")


def _assumed(spec: TensorSpec) -> Preprocessing:
    whole = numpy_dtype(spec.dtype).kind in "iu"
    return Preprocessing(layout="channels-last", scale=1.0 if whole else 1 / GREY_LEVELS)


def _image_size(spec: TensorSpec, steps: Preprocessing) -> tuple[int, int]:
    """Height and width to cut images to, in pixels."""
    example = spec.example or spec.shape
    sizes = [size for size in spec.shape[2:] if isinstance(size, int)]
    sizes = sizes if len(sizes) == 2 else list(steps.crop)
    sizes = sizes or [size for size in example[2:] if isinstance(size, int)]
    if len(sizes) != 2:
        raise DataError(
            f"images need a size: input {spec.text!r} has none",
            fix="give an .npz of what the network takes, a network whose input has a size, or a recipe with a crop",
        )
    if steps.resize and max(sizes) > steps.resize:
        raise DataError(
            f"[preprocessing] resizes images to {steps.resize}, less than the input's {shape_text(sizes)}",
            fix="make 'resize' larger, or leave it out",
        )
    return sizes[0], sizes[1]


def has_fixed_batch(inputs: Sequence[TensorSpec]) -> bool:
    """Whether a batch of the network has a number of rows of its own."""
    return any(spec.shape and isinstance(spec.shape[0], int) for spec in inputs)


def _bytes_of_one(inputs: Sequence[TensorSpec], named: Mapping[str, int]) -> int:
    """Bytes of one sample of all inputs."""
    sizes = {**free_sizes(inputs), **named}
    return max(1, sum(math.prod(spec.concrete(**sizes)[1:]) * numpy_dtype(spec.dtype).itemsize for spec in inputs))


def rows_for(inputs: Sequence[TensorSpec], named: Mapping[str, int] | None = None) -> int:
    """Rows of a batch, where they are free to choose."""
    return max(1, min(MOST_ROWS, BATCH_BYTES // _bytes_of_one(inputs, named or {})))


def count_samples(batches: Sequence[Mapping[str, Array]]) -> int:
    """Rows of the first input, over all batches."""
    first = (next(iter(batch.values())) for batch in batches)
    return sum(len(array) if array.ndim else 1 for array in first)
