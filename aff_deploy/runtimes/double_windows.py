"""Convolutions and pools for `aff_deploy.runtimes.double`: windows over the spatial axes, and matrix products of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from onnx.reference.op_run import OpRun

from aff_deploy.runtimes import Array


class Conv(OpRun):
    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str = "NOTSET",
        dilations: Sequence[int] | None = None,
        group: int = 1,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        windows = _Windows(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
        out = _convolve(windows.of(x, 0.0), w, group)
        return (out if b is None else out + b.reshape(-1, *[1] * (x.ndim - 2)),)


def _convolve(windows: Array, w: Array, group: int) -> Array:
    """Windows N x C x out... x kernel... and weights M x C/group x kernel... to N x M x out..., a matrix product a group."""
    spatial = w.ndim - 2
    n, channels, *rest = windows.shape
    out = rest[:spatial]
    grouped = windows.reshape(n, group, channels // group, *rest)
    # The kernel's axes go behind the channels: N x group x C/group x kernel... x out...
    order = (0, 1, 2, *range(3 + spatial, 3 + 2 * spatial), *range(3, 3 + spatial))
    columns = grouped.transpose(order).reshape(n, group, -1, math.prod(out))
    matrix = w.reshape(group, w.shape[0] // group, -1)
    return np.asarray((matrix @ columns).reshape(n, w.shape[0], *out))


class _Windows:
    """The windows of a convolution or a pool, along every spatial axis."""

    def __init__(
        self,
        sizes: Sequence[int],
        kernel: Sequence[int],
        strides: Sequence[int] | None,
        dilations: Sequence[int] | None,
        pads: Sequence[int] | None,
        auto_pad: str,
        *,
        ceil_mode: bool = False,
    ) -> None:
        rank = len(sizes)
        self.kernel = tuple(kernel)
        self.strides = tuple(strides or [1] * rank)
        self.dilations = tuple(dilations or [1] * rank)
        self.reach = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        self.before = list((pads or [0] * 2 * rank)[:rank])
        self.after = list((pads or [0] * 2 * rank)[rank:])
        if auto_pad not in ("NOTSET", ""):
            self._pad(sizes, auto_pad)
        self.padded = tuple(s + b + a for s, b, a in zip(sizes, self.before, self.after, strict=True))
        self.out = tuple(self._count(axis, sizes[axis], ceil_mode) for axis in range(rank))

    def _pad(self, sizes: Sequence[int], auto_pad: str) -> None:
        for axis, size in enumerate(sizes):
            stride = self.strides[axis]
            total = max(0, (-(-size // stride) - 1) * stride + self.reach[axis] - size) if auto_pad != "VALID" else 0
            small, large = total // 2, total - total // 2
            self.before[axis], self.after[axis] = (large, small) if auto_pad == "SAME_LOWER" else (small, large)

    def _count(self, axis: int, size: int, ceil_mode: bool) -> int:
        steps = (self.padded[axis] - self.reach[axis]) / self.strides[axis]
        if not ceil_mode:
            return math.floor(steps) + 1
        count = math.ceil(steps) + 1
        # A last window that would begin behind the data and its leading padding is none.
        return count - ((count - 1) * self.strides[axis] >= size + self.before[axis])

    def of(self, x: Array, fill: float) -> Array:
        """A view N x C x out... x kernel...; what lies outside of `x` is `fill`."""
        ends = [(n - 1) * s + r for n, s, r in zip(self.out, self.strides, self.reach, strict=True)]
        more = [max(a, end - p + a) for a, end, p in zip(self.after, ends, self.padded, strict=True)]
        widths = ((0, 0), (0, 0), *zip(self.before, more, strict=True))
        padded = np.pad(x, widths, constant_values=fill) if any(map(any, widths)) else x
        axes = tuple(range(2, x.ndim))
        views = sliding_window_view(padded, self.reach, axis=axes)
        starts = tuple(slice(0, (n - 1) * s + 1, s) for n, s in zip(self.out, self.strides, strict=True))
        taps = tuple(slice(None, None, d) for d in self.dilations)
        chosen = (slice(None), slice(None), *starts, *taps)
        return np.asarray(views[chosen])


class ConvTranspose(OpRun):
    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str = "NOTSET",
        dilations: Sequence[int] | None = None,
        group: int = 1,
        kernel_shape: Sequence[int] | None = None,
        output_padding: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        rank = x.ndim - 2
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        extra = list(output_padding or [0] * rank)
        reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
        full = [(n - 1) * s + r + e for n, s, r, e in zip(x.shape[2:], strides, reach, extra, strict=True)]
        before, after = list((pads or [0] * 2 * rank)[:rank]), list((pads or [0] * 2 * rank)[rank:])
        if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            wanted = output_shape or [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
            for axis, (have, want) in enumerate(zip(full, wanted, strict=True)):
                total = max(0, have - want)
                small, large = total // 2, total - total // 2
                before[axis], after[axis] = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
        n, channels = x.shape[:2]
        matrix = w.reshape(group, channels // group, -1).swapaxes(1, 2)
        parts = (matrix @ x.reshape(n, group, channels // group, -1)).reshape(n, -1, *w.shape[2:], *x.shape[2:])
        out = np.zeros((n, parts.shape[1], *full))
        for tap in np.ndindex(*w.shape[2:]):
            starts = [t * d for t, d in zip(tap, dilations, strict=True)]
            steps = (slice(a, a + (m - 1) * s + 1, s) for a, m, s in zip(starts, x.shape[2:], strides, strict=True))
            at, part = (slice(None), slice(None), *steps), (slice(None), slice(None), *tap)
            out[at] += parts[part]
        cut = (slice(lo, size - hi) for lo, hi, size in zip(before, after, full, strict=True))
        kept = (slice(None), slice(None), *cut)
        out = out[kept]
        return (out if b is None else out + b.reshape(-1, *[1] * rank),)


class MaxPool(OpRun):
    def _run(
        self,
        x: Array,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] = (),
        pads: Sequence[int] | None = None,
        storage_order: int = 0,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array, ...]:
        if len(self.onnx_node.output) > 1:
            raise NotImplementedError("MaxPool with indices")
        lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        windows = _Windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode=bool(ceil_mode))
        return (windows.of(x, lowest).max(tuple(range(x.ndim, 2 * x.ndim - 2))),)


class AveragePool(OpRun):
    def _run(
        self,
        x: Array,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        count_include_pad: int = 0,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] = (),
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        windows = _Windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode=bool(ceil_mode))
        axes = tuple(range(x.ndim, 2 * x.ndim - 2))
        counted = np.ones((1, 1, *x.shape[2:]))
        if count_include_pad:
            # Padding counts, but not what a last window of ceil_mode reaches over beyond it.
            widths = ((0, 0), (0, 0), *zip(windows.before, windows.after, strict=True))
            whole = _Windows(windows.padded, kernel_shape, strides, dilations, None, "NOTSET", ceil_mode=bool(ceil_mode))
            whole.out = windows.out
            counts = whole.of(np.pad(counted, widths, constant_values=1.0), 0.0).sum(axes)
        else:
            counts = windows.of(counted, 0.0).sum(axes)
        return (windows.of(x, 0.0).sum(axes) / counts,)
