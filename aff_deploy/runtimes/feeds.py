"""What runners eat: seeded data, and data from ``.npz`` files that nobody vouches for."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aff_deploy.artifact import open_archive
from aff_deploy.errors import AffDeployError, DataError
from aff_deploy.recipe import Preprocessing, Recipe
from aff_deploy.runtimes import Array, numpy_dtype, shape_text
from aff_deploy.spec import INTEGER_BOUNDS, MAX_ELEMENTS, MAX_RANK, Distribution, TensorSpec

MAX_FILE_BYTES = 16 * 2**30
MAX_HEADER_BYTES = 65536
MAX_NPZ_BYTES = 8 * 2**30
"""Unpacked arrays of a data file; checked against what the file declares before anything is read."""
LABELS = frozenset({"label", "labels", "target", "targets", "y", "classes"})
BATCH = 32
INTEGER_RANGE = (0, 2)
"""Both ends included, where nothing is said: integers are mostly indices into tables of unknown size."""
FREE_SIZE = 64
"""Size of a dynamic dimension of which nothing is known; networks divide it by 2 up to six times."""


def free_sizes(inputs: Sequence[TensorSpec]) -> dict[str, int]:
    """A size for each dynamic dimension after the first axis, by name, for data drawn without an example."""
    return {dim: FREE_SIZE for spec in inputs if spec.example is None for dim in spec.shape[1:] if isinstance(dim, str)}


def unknown_ranges(inputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """The integer inputs of which nobody said what values they take; uint8 takes all that it holds."""
    kinds = set(INTEGER_BOUNDS) - {"uint8"}
    return tuple(spec.name for spec in inputs if spec.dtype in kinds and spec.distribution is None)


def describe_seeded(inputs: Sequence[TensorSpec]) -> str:
    """What to call seeded data for `inputs`: it says which integers were drawn from a few values alone."""
    if not (names := unknown_ranges(inputs)):
        return "seeded"
    low, high = INTEGER_RANGE
    listed = ", ".join(repr(name) for name in names)
    said = f"seeded, {listed} from {low} to {high} alone: other values are not covered"
    return f"{said} (say them with --range, or distribution in a recipe)"


def seeded_feeds(
    inputs: Sequence[TensorSpec],
    *,
    seed: int = 0,
    samples: int = 8,
    recipe: Recipe | None = None,
    batch: int = BATCH,
    sizes: Mapping[str, int] | None = None,
) -> list[dict[str, Array]]:
    """Reproducible batches for `inputs`.

    A dynamic first dimension gives batches of 1, 3 and then up to `batch` rows until there are
    `samples` rows (at least 4, so that both sizes occur); a fixed one gives as many batches as
    needed. Values follow each spec's ``distribution``; without one floats are standard normal, uint8
    takes its whole range, other integers are `INTEGER_RANGE` (`unknown_ranges` names them), and
    booleans are fair.

    Args:
        inputs: names, shapes and dtypes.
        seed: of numpy's generator.
        samples: rows in all.
        recipe: its shape profile bounds the batch.
        batch: most rows in one batch.
        sizes: sizes of dynamic dimensions by name, in place of the specs' examples.
    """
    generator = np.random.default_rng(seed)
    first = inputs[0].shape[0] if inputs and inputs[0].shape else 1
    if isinstance(first, int):
        rows = [first] * max(1, math.ceil(samples / first))
    elif sizes and first in sizes:
        rows = [sizes[first]] * max(1, math.ceil(samples / sizes[first]))
    else:
        rows = _row_counts(samples, *_batch_bounds(inputs[0].name, recipe, batch))
    feeds = []
    for count in rows:
        named = {**(sizes or {}), **({first: count} if isinstance(first, str) else {})}
        feeds.append({spec.name: _draw(generator, spec, _sized(spec, named, inputs)) for spec in inputs})
    return feeds


def _sized(spec: TensorSpec, named: Mapping[str, int], inputs: Sequence[TensorSpec]) -> tuple[int, ...]:
    """`spec`'s shape with `named` sizes; a name has one size in all inputs, that of its first example."""
    examples: dict[str, int] = {}
    for other in inputs:
        for dim, size in zip(other.shape, other.concrete(), strict=True):
            if isinstance(dim, str):
                examples.setdefault(dim, size)
    return spec.concrete(**{**examples, **named})


def _batch_bounds(name: str, recipe: Recipe | None, batch: int) -> tuple[int, int]:
    profile = recipe.profile if recipe is not None else None
    if profile is None or name not in profile.max:
        return 1, batch
    return profile.min[name][0], min(batch, profile.max[name][0])


def _row_counts(samples: int, least: int, most: int) -> list[int]:
    most = max(least, most)
    counts = [min(max(1, least), most), min(max(3, least), most)]
    left = samples - sum(counts)
    while left > 0:
        counts.append(max(min(left, most), least))
        left -= counts[-1]
    return counts


def _draw(generator: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    if (count := math.prod(shape)) > MAX_ELEMENTS or len(shape) > MAX_RANK:
        said = f"input {spec.name!r} would be drawn as {shape_text(shape)}, {count} elements"
        raise DataError(said, fix=f"at most {MAX_ELEMENTS} in {MAX_RANK} dimensions are drawn: give it a smaller shape")
    drawn = spec.distribution
    dtype = numpy_dtype(spec.dtype)
    if dtype.kind == "b":
        return np.asarray(generator.random(shape) < 0.5)
    if dtype.kind in "iu":
        return _draw_integers(generator, spec, shape)
    drawn = drawn or Distribution()
    if drawn.kind == "normal":
        return np.asarray(generator.normal(drawn.first, drawn.second, shape)).astype(dtype)
    return np.asarray(generator.uniform(drawn.first, drawn.second, shape)).astype(dtype)


def _draw_integers(generator: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    drawn, dtype = spec.distribution, numpy_dtype(spec.dtype)
    bounds = INTEGER_BOUNDS[spec.dtype]
    if drawn is not None and drawn.kind == "normal":
        values = np.rint(generator.normal(drawn.first, drawn.second, shape))
        return np.asarray(np.clip(values, bounds[0], min(bounds[1], 2**62)).astype(dtype))
    low, high = bounds if spec.dtype == "uint8" else INTEGER_RANGE
    if drawn is not None:
        low, high = int(drawn.first), int(drawn.second)
    values = np.asarray(generator.integers(low, high, size=shape, dtype=dtype.type, endpoint=True))
    if values.size > 1:
        # The ends are where tables end and types overflow, and few values seldom hold them.
        values.flat[0], values.flat[-1] = low, high
    return values


def load_npz_feeds(
    path: Path,
    inputs: Sequence[TensorSpec],
    *,
    batch: int = BATCH,
    keys: Mapping[str, str] | None = None,
    preprocessing: Preprocessing | None = None,
    max_bytes: int = MAX_NPZ_BYTES,
) -> list[dict[str, Array]]:
    """Batches from an ``.npz``, which is never unpickled.

    Each input is the array of its name (or of ``keys[name]``), samples on the first axis. For a
    network of one input, a single array of any name will do; arrays called ``labels`` and the like
    do not count. Floats convert to the input's float type, integers to its integer type where the
    values fit; a fixed batch size drops an incomplete last batch.

    Args:
        path: the file.
        inputs: names, shapes and dtypes.
        batch: most rows in one batch where the first dimension is dynamic.
        keys: array name by input name.
        preprocessing: applied to the first input, whose array is then raw data.
        max_bytes: most bytes of unpacked arrays.

    Raises:
        DataError: the file is unreadable, too large, or does not fit the inputs.
    """
    arrays = _read_npz(path, inputs, keys or {}, max_bytes)
    counts = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    total = next(iter(counts.values()))
    if len(set(counts.values())) != 1 or total == 0:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(
            f"{path}: the inputs need the same number of samples, at least 1; there are {listed}", fix="mend the file"
        )
    fixed = [spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], int)]
    step = int(fixed[0]) if fixed else max(1, batch)
    if fixed and total < step:
        raise DataError(f"{path} has {total} samples, a batch of the network {step}", fix=f"give at least {step} samples")
    stop = total - total % step if fixed else total
    feeds = []
    for start in range(0, stop, step):
        feed = {}
        for position, spec in enumerate(inputs):
            part = arrays[spec.name][start : start + step]
            if preprocessing is not None and position == 0:
                part = preprocessing.apply(part, str(numpy_dtype(spec.dtype)))
            feed[spec.name] = _fitted(part, spec, path)
        feeds.append(feed)
    return feeds


def _read_npz(path: Path, inputs: Sequence[TensorSpec], keys: Mapping[str, str], max_bytes: int) -> dict[str, Array]:
    export_fix = "give what numpy.savez writes, or a folder of images"
    try:
        with open_archive(path, error=DataError, most=MAX_FILE_BYTES, fix="give the path of an .npz file") as archive:
            members = {
                info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")
            }
            chosen = _choose_arrays(path, tuple(members), inputs, keys)
            if (size := sum(members[key].file_size for key in set(chosen.values()))) > max_bytes:
                raise DataError(f"{path} unpacks to {size} bytes", fix=f"at most {max_bytes} are read; give fewer samples")
            arrays: dict[str, Array] = {}
            for name, key in chosen.items():
                arrays[name] = _read_array(archive, members[key])
            return arrays
    except AffDeployError:
        raise
    except Exception as error:  # the readers of archives and of headers raise whatever they meet
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as .npz: {reason}", fix=export_fix) from None


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    with archive.open(member) as stream:
        # A header may claim gigabytes for itself, and numpy would read them.
        head = io.BytesIO(stream.read(MAX_HEADER_BYTES))
    version = np.lib.format.read_magic(head)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(head)
    with archive.open(member) as stream:
        stream.read(head.tell())
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"array {member.filename!r} claims the shape {shape}")
        if dtype.hasobject or dtype.kind not in "fiub":
            raise ValueError(f"array {member.filename!r} holds {dtype}, not numbers")
        # numpy allocates what the header claims, which need not be what the file holds.
        count = math.prod(shape)
        if count * dtype.itemsize > member.file_size:
            raise ValueError(f"array {member.filename!r} claims the shape {shape_text(shape)}, more than the file holds")
        data = stream.read(count * dtype.itemsize)
        if len(data) != count * dtype.itemsize:
            raise ValueError(f"array {member.filename!r} is truncated")
        array = np.frombuffer(data, dtype)
        return array.reshape(shape, order="F" if fortran else "C")


def _choose_arrays(
    path: Path, present: tuple[str, ...], inputs: Sequence[TensorSpec], keys: Mapping[str, str]
) -> dict[str, str]:
    chosen = {spec.name: keys.get(spec.name, spec.name) for spec in inputs}
    absent = [key for key in chosen.values() if key not in present]
    if not absent:
        return chosen
    others = [name for name in present if name.lower() not in LABELS]
    if len(inputs) == 1 and len(others) == 1 and not keys:
        return {inputs[0].name: others[0]}
    raise DataError(
        f"{path} has no array {absent[0]!r}; it has {', '.join(present) or 'none'}",
        fix=f"name the arrays after the inputs: {', '.join(chosen.values())}",
    )


def _fitted(array: Array, spec: TensorSpec, path: Path) -> Array:
    trailing = spec.shape[1:]
    fits = array.ndim == len(spec.shape) and all(
        isinstance(dim, str) or dim == size for dim, size in zip(trailing, array.shape[1:], strict=True)
    )
    if not fits:
        raise DataError(
            f"{path}: samples for input {spec.name!r} have shape {shape_text(array.shape[1:])}",
            fix=f"expected {shape_text(trailing)}, samples on the first axis",
        )
    dtype = numpy_dtype(spec.dtype)
    if array.dtype != dtype:
        array = _converted(array, dtype, spec, path)
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{path}: input {spec.name!r} has values that are not finite as {dtype}", fix="clean or scale the data")
    return np.ascontiguousarray(array)


def _converted(array: Array, dtype: np.dtype[Any], spec: TensorSpec, path: Path) -> Array:
    if array.dtype.kind == "f" and dtype.kind == "f":
        with np.errstate(over="ignore"):
            return array.astype(dtype)
    if array.dtype.kind in "iu" and dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        if bounds.min <= int(array.min()) and int(array.max()) <= bounds.max:
            return array.astype(dtype)
    raise DataError(
        f"{path}: input {spec.name!r} is {array.dtype}",
        fix=f"expected {dtype}; convert the data as the network's preprocessing does",
    )
