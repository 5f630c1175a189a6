"""Weights that are made anew, in float64, and rounded once to the type of the model, or not at all.

A product of weights and factors may overflow its type, or fall among its subnormal numbers, where little of
it is left. What counts is what the output loses: the rounding error of the weights of one output channel,
as a vector, may be at most the type's unit roundoff times the channel. Where all its numbers are normal that
always holds; a tiny number beside large ones may be rounded more coarsely.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from aff_deploy.passes.graph import Array


def merge_weights(make: Callable[[], Array], dtype: np.dtype[Any], axis: int = 0) -> Array | None:
    """The float64 values that `make` gives, in `dtype`; None where they do not fit it.

    Args:
        make: computes the weights.
        dtype: a floating type.
        axis: that of the output channels.
    """
    values = _computed(make)
    made = None if values is None else _rounded(values, dtype)
    if values is None or made is None:
        return None
    # What is infinite was so before, and stays it.
    finite = np.where(np.isfinite(values), values, 0.0)
    error = np.where(np.isfinite(values), made.astype(np.float64), 0.0) - finite
    with np.errstate(all="ignore"):  # squares of float64's largest and smallest
        lost, kept = (np.linalg.norm(_rows(each, axis), axis=1) for each in (error, finite))
    unit_roundoff = float(ml_dtypes.finfo(dtype).eps) / 2  # type: ignore[no-untyped-call]
    return made if bool(np.all(lost <= unit_roundoff * kept)) else None


def merge_bias(make: Callable[[], Array], dtype: np.dtype[Any]) -> Array | None:
    """Likewise a bias: it must not overflow; what it loses among the subnormals the output cannot hold either."""
    values = _computed(make)
    return None if values is None else _rounded(values, dtype)


def _rows(values: Array, axis: int) -> Array:
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _computed(make: Callable[[], Array]) -> Array | None:
    try:
        # A float64 model may leave no room: what is lost here is not seen later.
        with np.errstate(over="raise", invalid="raise", under="raise"):
            return np.asarray(make(), dtype=np.float64)
    except FloatingPointError:
        return None


def _rounded(values: Array, dtype: np.dtype[Any]) -> Array | None:
    with np.errstate(all="ignore"):
        made = np.ascontiguousarray(values, dtype=dtype).reshape(values.shape)
    overflows = np.isfinite(values) & ~np.isfinite(made.astype(np.float64))
    return None if np.any(overflows) else made
