"""fp8 (E4M3) out of int8: the same quantised layers, other scales and types.

ONNX Runtime's static quantisation to fp8 fits scales to the spread of values, not to the largest, so that values beyond
a few standard deviations saturate; and it wants weights and activations alike distributed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

OPSET = 19
"""Since which QuantizeLinear and DequantizeLinear take fp8."""
LARGEST = 448.0


def to_fp8(model: ModelProto, wide: ModelProto, *, largest_by_scale: Mapping[str, float]) -> None:
    """Retype an int8 model in place.

    Args:
        model: of opset `OPSET` at least, as `aff_deploy.precision.quantize` makes it: symmetric, weights int8 initializers
            named after those of `wide`.
        wide: the float32 model, whose weights are rounded anew.
        largest_by_scale: the largest magnitude of each quantised activation, by the name of its scale.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = {tensor.name: tensor for tensor in wide.graph.initializer}
    for name, largest in largest_by_scale.items():
        constants[name].CopyFrom(numpy_helper.from_array(np.array(largest / LARGEST, np.float32), name))
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        source, scale, zero = node.input
        if (packed := constants.get(source)) is not None and packed.data_type == TensorProto.INT8:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), None)
            values = numpy_helper.to_array(weights[source.removesuffix("_quantized")])
            scales, rounded = _round_weight(values, axis)
            constants[scale].CopyFrom(numpy_helper.from_array(scales, scale))
            packed.CopyFrom(_fp8_tensor(source, values.shape, rounded))
        if constants[zero].data_type == TensorProto.INT8:
            shape = tuple(constants[zero].dims)
            constants[zero].CopyFrom(_fp8_tensor(zero, shape, bytes(int(np.prod(shape, dtype=np.int64)))))
    model.ir_version = max(model.ir_version, 9)


def _round_weight(values: np.ndarray, axis: int | None) -> tuple[np.ndarray, bytes]:
    """Scales (one a channel of `axis`, or one) and the bytes of the rounded values."""
    import ml_dtypes

    others = tuple(i for i in range(values.ndim) if i != axis) if axis is not None else None
    largest = np.abs(values).max(axis=others)
    # A channel that is dead, or as good as, has no scale in normal numbers: it becomes zero.
    scales = (np.where(largest < LARGEST * np.finfo(np.float32).tiny, LARGEST, largest) / LARGEST).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(values.ndim)] if axis is not None else ()
    scaled = np.clip(values / scales.reshape(shape), -LARGEST, LARGEST)
    return scales, scaled.astype(ml_dtypes.float8_e4m3fn).tobytes()


def _fp8_tensor(name: str, shape: tuple[int, ...], data: bytes) -> TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, shape, data, raw=True)
