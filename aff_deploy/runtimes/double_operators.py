"""Operators for `aff_deploy.runtimes.double`, as the ONNX standard defines them, for float64.

Each stands here because onnx's reference evaluator departs from the standard in it, rounds to
float32 inside, or is too slow for an image network. `tests/runtimes/test_double.py` holds every
one of them against ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper
from onnx.reference.op_run import OpRun

from aff_deploy.runtimes import Array
from aff_deploy.runtimes.double_windows import AveragePool, Conv, ConvTranspose, MaxPool

FIRST_SOFTMAX_ALONG_AXIS = 13
"""Before, Softmax and its relatives worked on a matrix: all axes before `axis`, and all from it on."""
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_WIDE = (TensorProto.FLOAT, TensorProto.DOUBLE)
_FLOAT8 = tuple(getattr(TensorProto, name) for name in ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"))


class Cast(OpRun):
    """To half precision: the rounding, kept as float64."""

    def _run(self, x: Array, to: int, saturate: int = 1, round_mode: str = "up") -> tuple[Array]:
        return (_cast(x, to, bool(saturate)),)


def _cast(x: Array, to: int, saturate: bool) -> Array:
    if to in _WIDE:
        return x.astype(np.float64)
    dtype = helper.tensor_dtype_to_np_dtype(to)
    if to in _HALF:
        return x.astype(dtype).astype(np.float64)
    if to in _FLOAT8 and saturate:
        return np.asarray(numpy_helper.saturate_cast(x, dtype))
    return x.astype(np.str_ if to == TensorProto.STRING else dtype)


class DequantizeLinear(OpRun):
    """``(x - zero_point) * scale``, without a detour through float32."""

    def _run(
        self,
        x: Array,
        scale: Array,
        zero_point: Array | None = None,
        axis: int = 1,
        block_size: int = 0,
        output_dtype: int = 0,
    ) -> tuple[Array]:
        wide = x.astype(np.float64)
        if zero_point is not None:
            wide = wide - _along(zero_point.astype(np.float64), x, axis, block_size)
        return (wide * _along(scale, x, axis, block_size),)


def _along(values: Array, x: Array, axis: int, block_size: int) -> Array:
    """Values of a quantisation, made to broadcast with `x`: one in all, one for each index of an axis, or one a block."""
    if values.size == 1:
        return values.reshape(())
    if block_size:
        return np.repeat(values, block_size, axis=axis)
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)


class GlobalMaxPool(OpRun):
    def _run(self, x: Array) -> tuple[Array]:
        return (x.max(tuple(range(2, x.ndim)), keepdims=True),)


class _Normalised(OpRun):
    """Softmax and its relatives: along an axis, or below opset 13 over everything from that axis on."""

    def _run(self, x: Array, axis: int) -> tuple[Array]:
        if self.run_params["opsets"][self.onnx_node.domain] >= FIRST_SOFTMAX_ALONG_AXIS:
            return (np.moveaxis(self._last(np.moveaxis(x, axis, -1)), -1, axis),)
        # The evaluator fills in the default of the newest opset, which is another.
        if all(attribute.name != "axis" for attribute in self.onnx_node.attribute):
            axis = 1
        rows = math.prod(x.shape[: axis % x.ndim])
        return (self._last(x.reshape(rows, -1)).reshape(x.shape),)

    def _last(self, x: Array) -> Array:
        raise NotImplementedError


class LogSoftmax(_Normalised):
    def _last(self, x: Array) -> Array:
        low = x - x.max(-1, keepdims=True)
        return np.asarray(low - np.log(np.exp(low).sum(-1, keepdims=True)))


class Softmax(_Normalised):
    def _last(self, x: Array) -> Array:
        powers = np.exp(x - x.max(-1, keepdims=True))
        return np.asarray(powers / powers.sum(-1, keepdims=True))


class Hardmax(_Normalised):
    def _last(self, x: Array) -> Array:
        return np.asarray(np.arange(x.shape[-1]) == x.argmax(-1)[..., None], dtype=x.dtype)


class LpNormalization(OpRun):
    def _run(self, x: Array, axis: int = -1, p: int = 2) -> tuple[Array]:
        norm = (np.abs(x) ** p).sum(axis, keepdims=True) ** (1.0 / p)
        return (np.divide(x, norm, out=np.zeros_like(x), where=norm != 0),)


class LRN(OpRun):
    def _run(self, x: Array, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> tuple[Array]:
        before, after = (size - 1) // 2, size // 2
        widths = ((0, 0), (before, after), *[(0, 0)] * (x.ndim - 2))
        squares = sliding_window_view(np.pad(x**2, widths), size, axis=1).sum(-1)
        return (x / (bias + alpha / size * squares) ** beta,)


class MeanVarianceNormalization(OpRun):
    def _run(self, x: Array, axes: Sequence[int] = (0, 2, 3)) -> tuple[Array]:
        along = tuple(axes)
        centred = x - x.mean(along, keepdims=True)
        return (centred / (np.sqrt((centred**2).mean(along, keepdims=True)) + 1e-9),)


class Unsqueeze(OpRun):
    def _run(self, x: Array, given: Array | None = None, axes: Sequence[int] = ()) -> tuple[Array]:
        chosen = axes if given is None else given.reshape(-1).tolist()
        return (np.expand_dims(x, tuple(int(axis) for axis in chosen)),)


class NonZero(OpRun):
    def _run(self, x: Array) -> tuple[Array]:
        return (np.stack(np.nonzero(np.atleast_1d(x))).astype(np.int64),)


class Resize(OpRun):
    """Nearest and linear, which are a matrix along each axis."""

    def _run(
        self, x: Array, roi: Array | None = None, scales: Array | None = None, sizes: Array | None = None, **given: Any
    ) -> tuple[Array]:
        options = {name: value for name, value in given.items() if value is not None}
        mode, coordinates = options.get("mode", "nearest"), options.get("coordinate_transformation_mode", "half_pixel")
        policy = options.get("keep_aspect_ratio_policy", "stretch")
        if mode not in ("nearest", "linear") or coordinates not in _COORDINATES:
            raise NotImplementedError(f"Resize of mode {mode}, {coordinates}")
        if options.get("antialias") or options.get("exclude_outside") or policy != "stretch":
            raise NotImplementedError("Resize with antialias, exclude_outside or keep_aspect_ratio_policy")
        axes = [int(axis) % x.ndim for axis in options.get("axes") or range(x.ndim)]
        for position, axis in enumerate(axes):
            have = x.shape[axis]
            by_size = sizes is not None and sizes.size > 0
            want = int(sizes[position]) if by_size else math.floor(have * float(scales[position]))  # type: ignore[index]
            scale = want / have if by_size else float(scales[position])  # type: ignore[index]
            if want == have and scale == 1.0:
                continue
            at = _COORDINATES[coordinates](np.arange(want, dtype=np.float64), scale, have, want)
            if mode == "linear":
                x = _linear(x, axis, at)
            else:
                x = _nearest(x, axis, at, options.get("nearest_mode", "round_prefer_floor"))
        return (x,)


_COORDINATES: dict[str, Callable[[Array, float, int, int], Array]] = {
    "half_pixel": lambda i, scale, have, want: (i + 0.5) / scale - 0.5,
    "asymmetric": lambda i, scale, have, want: i / scale,
    "align_corners": lambda i, scale, have, want: i * (have - 1) / (want - 1) if want > 1 else i * 0.0,
    "pytorch_half_pixel": lambda i, scale, have, want: (i + 0.5) / scale - 0.5 if want > 1 else i * 0.0,
}
_ROUNDED: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _nearest(x: Array, axis: int, at: Array, rounding: str) -> Array:
    chosen = np.clip(_ROUNDED[rounding](at), 0, x.shape[axis] - 1)
    return np.asarray(x.take(chosen.astype(np.int64), axis))


def _linear(x: Array, axis: int, at: Array) -> Array:
    last = x.shape[axis] - 1
    at = np.clip(at, 0, last)
    low = np.floor(at).astype(np.int64)
    share = (at - low).reshape(-1, *[1] * (x.ndim - 1 - axis))
    return np.asarray(x.take(low, axis) * (1 - share) + x.take(np.minimum(low + 1, last), axis) * share)


OPERATORS: tuple[type[OpRun], ...] = (
    *(AveragePool, Cast, Conv, ConvTranspose, DequantizeLinear, GlobalMaxPool, Hardmax, LRN, LogSoftmax),
    *(LpNormalization, MaxPool, MeanVarianceNormalization, NonZero, Resize, Softmax, Unsqueeze),
)
