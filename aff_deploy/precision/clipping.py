"""How large the values of a tensor are on data, rare ones left out: what an 8-bit type is scaled to.

ONNX Runtime's own percentile calibration keeps all values of a run, or, given its data in strides, a histogram whose
number of bins grows with the ratio of the largest value so far to that of the first stride, without bound.
This one keeps `BINS` counts a tensor whatever it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from onnx import ModelProto, ValueInfoProto

from aff_deploy.errors import DataError
from aff_deploy.runtimes import Array
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

BINS = 4096


class Magnitudes:
    """A histogram of absolute values: `BINS` equal bins from 0 to a top that doubles when values exceed it."""

    def __init__(self) -> None:
        self.largest = 0.0
        self._top = 0.0
        self._counts = np.zeros(BINS, np.int64)
        self._zeros = 0

    def add(self, values: Array) -> None:
        """Count `values` (finite floats of any shape)."""
        sizes = np.abs(values, dtype=np.float32).ravel()
        peak = float(sizes.max(initial=0.0))
        if peak == 0.0:
            self._zeros += sizes.size
            return
        self.largest = max(self.largest, peak)
        if self._top == 0.0:
            self._top = peak
        while peak > self._top:
            self._counts[: BINS // 2] = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts[BINS // 2 :] = 0
            self._top *= 2
        # In double precision, or a scale of tiny values overflows.
        bins = (sizes * np.float64(BINS / self._top)).astype(np.int32)
        self._counts += np.bincount(np.minimum(bins, BINS - 1, out=bins), minlength=BINS)

    def percentile(self, share: float) -> float:
        """The smallest bin's upper edge below which `share` (0 to 1) of the values lie; 0 where all are 0."""
        total = int(self._counts.sum()) + self._zeros
        if self.largest == 0.0:
            return 0.0
        wanted = share * total - self._zeros
        position = int(np.searchsorted(np.cumsum(self._counts), wanted))
        return min(self.largest, self._top * (position + 1) / BINS)


def observe_magnitudes(
    model: ModelProto, tensors: Sequence[str], batches: Iterable[Mapping[str, Array]]
) -> dict[str, Magnitudes]:
    """The magnitudes of float `tensors` of the main graph over all batches, one batch in memory at a time.

    Args:
        model: below 2 GB; a tensor of it may be an input.
        tensors: names of tensors.
        batches: inputs by name.

    Raises:
        DataError: there is no batch, one does not fit, or a tensor is not finite on the data.
        ModelError: ONNX Runtime cannot run the model.
    """
    watched = ModelProto()
    watched.CopyFrom(model)
    outputs = {value.name for value in watched.graph.output}
    fed = {value.name for value in watched.graph.input}
    made = [name for name in tensors if name not in fed and name not in outputs]
    watched.graph.output.extend(ValueInfoProto(name=name) for name in made)
    found = {name: Magnitudes() for name in tensors}
    seen = False
    with OnnxRuntimeRunner(watched) as runner:
        del watched
        for batch in batches:
            seen = True
            results = runner.infer(batch)
            for name, magnitudes in found.items():
                values = batch[name] if name in fed else results.pop(name) if name in made else results[name]
                if not np.isfinite(values).all():
                    raise DataError(
                        f"tensor {name!r} is not finite on the calibration data",
                        fix="give data of the kind that the network was trained on, preprocessed as there",
                    )
                magnitudes.add(values)
    if not seen:
        raise DataError("there is no data to calibrate on", fix="give at least one batch")
    return found
