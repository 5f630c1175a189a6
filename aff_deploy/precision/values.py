"""Numbers of fp32 as the nearest of a half-precision type."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from onnx import TensorProto, numpy_helper

from aff_deploy.runtimes import Array
from aff_deploy.runtimes.onnxruntime import bfloat16_bits

FP16_MAX = 65504.0
FP16_TINY = 6e-8
"""The smallest positive fp16 number is 2 ** -24, about 5.96e-8."""


def rounded(tensor: TensorProto, half: int) -> TensorProto:
    """An fp32 tensor as the nearest of `half`.

    What is not zero stays so, for it may guard a division; and what is finite stays so, for a mask of the lowest
    fp32 number is not one of minus infinity, of which a softmax makes NaN.
    """
    values = numpy_helper.to_array(tensor)
    data = _ROUNDING[half](values)
    return TensorProto(name=tensor.name, dims=tensor.dims, data_type=half, raw_data=np.ascontiguousarray(data).tobytes())


def _float16_bits(values: Array) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        narrow = values.astype("<f2")
    lost = (narrow == 0) & (values != 0)
    narrow = np.where(np.isfinite(values), np.clip(narrow, np.float16(-FP16_MAX), np.float16(FP16_MAX)), narrow)
    return np.asarray(np.where(lost, np.copysign(np.float16(FP16_TINY), values.astype(np.float32)).astype("<f2"), narrow))


def _bfloat16_bits(values: Array) -> Array:
    nearest = bfloat16_bits(values)
    # Carried into infinity: the largest finite number is one bit pattern below it.
    carried = np.isfinite(values) & (nearest & np.uint16(0x7FFF) == np.uint16(0x7F80))
    return np.asarray((nearest - carried.astype(np.uint16)).astype("<u2"))


_ROUNDING: Mapping[int, Callable[[Array], Array]] = {
    TensorProto.FLOAT16: _float16_bits,
    TensorProto.BFLOAT16: _bfloat16_bits,
}
