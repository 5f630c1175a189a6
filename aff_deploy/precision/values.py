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
    values = np.ascontiguousarray(numpy_helper.to_array(tensor))
    bits, infinity = _NEAREST[half](values)
    size = bits & np.uint16(0x7FFF)
    # The largest finite number is one bit pattern below infinity, the smallest that is not zero one above zero.
    bits -= (np.isfinite(values) & (size == infinity)).astype(np.uint16)
    bits += ((values != 0) & (size == 0)).astype(np.uint16)
    data = bits.astype("<u2", copy=False).tobytes()
    return TensorProto(name=tensor.name, dims=tensor.dims, data_type=half, raw_data=data)


def _float16_bits(values: Array) -> tuple[Array, int]:
    """The bits of the nearest float16, and those of its infinity."""
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float16).view(np.uint16), 0x7C00


def _bfloat16_bits(values: Array) -> tuple[Array, int]:
    """The bits of the nearest bfloat16, and those of its infinity."""
    return bfloat16_bits(values), 0x7F80


_NEAREST: Mapping[int, Callable[[Array], tuple[Array, int]]] = {
    TensorProto.FLOAT16: _float16_bits,
    TensorProto.BFLOAT16: _bfloat16_bits,
}
