"""Properties that any network which treats the rows of a batch alone must have.

Metamorphic checks: they need no reference, and find what a comparison on one batch size cannot, such
as a batch size that was baked into a reshape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aff_deploy.errors import InputError
from aff_deploy.runtimes import Array, Feeds, Runner, numpy_dtype, shape_text
from aff_deploy.spec import TensorSpec, Tolerance
from aff_deploy.validate.metrics import compare_outputs, pair_names


@dataclass(frozen=True)
class Check:
    """A property that was checked beside the comparison. A skipped one counts as passed; `detail` says why."""

    name: str
    passed: bool
    detail: str = ""
    skipped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def adapt_feeds(feeds: Feeds, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """`feeds` under the names and float types of `inputs`: an fp16 model and its fp32 reference eat the same data."""
    adapted = {}
    specs = {spec.name: spec for spec in inputs}
    for theirs, ours in pair_names(tuple(feeds), tuple(specs), "inputs"):
        array, dtype = feeds[theirs], numpy_dtype(specs[ours].dtype)
        adapted[ours] = array.astype(dtype) if array.dtype != dtype and array.dtype.kind == dtype.kind == "f" else array
    return adapted


ROWS = 3


class _Mixes(Exception):
    """The property cannot be asked of this network; the message says why."""


def _take(feeds: Feeds, index: Sequence[int]) -> dict[str, Array]:
    return {name: np.ascontiguousarray(array[list(index)]) for name, array in feeds.items()}


def _infer_rows(runner: Runner, feeds: Feeds) -> dict[str, Array]:
    count = rows_of(feeds)
    outputs = runner.infer(adapt_feeds(feeds, runner.inputs))
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != count:
            raise _Mixes(f"output {name!r} of shape {shape_text(array.shape)} does not follow a batch of {count}")
    return outputs


def _identical_rows(runner: Runner, feeds: Feeds) -> tuple[Feeds, Feeds]:
    outputs = _infer_rows(runner, _take(feeds, [0] * ROWS))
    return _take(outputs, [0] * ROWS), outputs


def _batch_of_one(runner: Runner, feeds: Feeds) -> tuple[Feeds, Feeds]:
    together = _infer_rows(runner, feeds)
    alone = [_infer_rows(runner, _take(feeds, [i])) for i in range(rows_of(feeds))]
    return together, {name: np.concatenate([row[name] for row in alone]) for name in together}


def _permuted_rows(runner: Runner, feeds: Feeds) -> tuple[Feeds, Feeds]:
    order = [*range(1, rows_of(feeds)), 0]
    return _take(_infer_rows(runner, feeds), order), _infer_rows(runner, _take(feeds, order))


PROPERTIES: tuple[tuple[str, Callable[[Runner, Feeds], tuple[Feeds, Feeds]]], ...] = (
    ("identical rows give identical outputs", _identical_rows),
    ("a row gives the same in a batch of 1", _batch_of_one),
    ("permuted rows permute the outputs", _permuted_rows),
)


class Rows:
    """The first `ROWS` rows of equal shape among batches that pass by."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], dict[str, Array]] = {}

    def offer(self, batch: Feeds) -> None:
        if rows_of(self.best()) >= ROWS or any(array.ndim == 0 for array in batch.values()):
            return
        kind = tuple((name, array.shape[1:]) for name, array in batch.items())
        had = self._kept.get(kind)
        self._kept[kind] = {
            name: array[:ROWS] if had is None else np.concatenate([had[name], array])[:ROWS] for name, array in batch.items()
        }

    def best(self) -> dict[str, Array]:
        """The most rows of one shape; nothing where no batch had any."""
        return max(self._kept.values(), key=rows_of, default={})


def check_rows(reference: Runner, candidate: Runner, feeds: Feeds, tolerance: Tolerance) -> tuple[Check, ...]:
    """Check the properties on `candidate`, with the rows of `feeds`.

    A property is skipped where the first axes are not one dynamic batch, where an output does not
    follow it, where there are fewer than two rows, or where `reference` lacks it too: then it is
    the network that lets rows see each other.
    """
    reason = _why_not(candidate.inputs)
    if not reason and (not feeds or rows_of(feeds) < 2):
        reason = "the data has fewer than two rows of one shape"
    if reason:
        return tuple(Check(name, True, reason, skipped=True) for name, _ in PROPERTIES)
    return tuple(_check(name, holds, reference, candidate, feeds, tolerance) for name, holds in PROPERTIES)


def _why_not(inputs: Sequence[TensorSpec]) -> str:
    for spec in inputs:
        if not spec.shape or not isinstance(spec.shape[0], str):
            return f"the first axis of input {spec.name!r} is not dynamic ({shape_text(spec.shape)})"
        if spec.shape[0] != inputs[0].shape[0]:
            return f"inputs {inputs[0].name!r} and {spec.name!r} have different first dimensions"
    return ""


def _check(
    name: str,
    sides: Callable[[Runner, Feeds], tuple[Feeds, Feeds]],
    reference: Runner,
    candidate: Runner,
    feeds: Feeds,
    tolerance: Tolerance,
) -> Check:
    try:
        problem = _difference(candidate, feeds, sides, tolerance)
    except _Mixes as reason:
        return Check(name, True, str(reason), skipped=True)
    except InputError as error:
        problem = str(error)
    if not problem:
        return Check(name, True)
    try:
        mixes = bool(_difference(reference, feeds, sides, tolerance))
    except (_Mixes, InputError):
        mixes = True
    if mixes:
        return Check(name, True, "the reference does not have this property either", skipped=True)
    return Check(name, False, problem)


def _difference(
    runner: Runner, feeds: Feeds, sides: Callable[[Runner, Feeds], tuple[Feeds, Feeds]], tolerance: Tolerance
) -> str:
    expected, got = sides(runner, feeds)
    return "; ".join(output.detail for output in compare_outputs(expected, got, tolerance) if not output.passed)


def rows_of(batch: Feeds) -> int:
    """Rows of the first input; 1 for a scalar, 0 without any input."""
    first = next(iter(batch.values()), None)
    return 0 if first is None else 1 if first.ndim == 0 else int(first.shape[0])
