"""What constant weights say of a precision: which are no numbers at all, and which float16 does not hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from aff_deploy.errors import ModelError
from aff_deploy.ops import is_fusion
from aff_deploy.precision.values import FP16_MAX, FP16_TINY, rounded
from aff_deploy.precision.wiring import reads
from aff_deploy.runtimes import Array

MOST_LOST = 0.01
"""The share of its norm that a weight may lose to rounding. Rounding of normal numbers costs 0.0005 at most."""
# What is only added may be wrong by float16's smallest number, as may the sum: an epsilon of 1e-12 stays a guard.
_ADDED: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Add", "Sub", "Sum", "Max", "Min", "Clip"), tuple(range(16))),
    **dict.fromkeys(
        ("Conv", "ConvTranspose", "Gemm", "LayerNormalization", "BatchNormalization", "InstanceNormalization"), (2,)
    ),
}
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def require_finite_weights(model: ModelProto) -> None:
    """Refuse a layer that is multiplied with NaN or infinities; elsewhere (masks) infinities have their place.

    Raises:
        ModelError: naming the weight and its layer.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    for node in model.graph.node:
        if node.op_type not in _LAYERS and not is_fusion(node.domain, node.op_type):
            continue
        for name in node.input:
            if name in weights and not np.isfinite(numpy_helper.to_array(weights[name])).all():
                raise ModelError(
                    f"weight {name!r} of {node.op_type} {node.name or node.output[0]!r} holds NaN or infinities",
                    fix="export the network again from a sound checkpoint",
                )


def misfits(graph: GraphProto, weights: Mapping[str, TensorProto]) -> Iterator[tuple[NodeProto, str]]:
    """Nodes with a weight that float16 does not hold, and why: beyond its ends, or lost among its smallest numbers.

    A weight is lost where rounding changes more than `MOST_LOST` of its norm.
    """
    words: dict[str, str] = {}
    lost: dict[str, str] = {}
    for name, tensor in weights.items():
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        finite = np.isfinite(values)
        reach = float(np.max(np.abs(values), initial=0.0, where=finite))
        if reach > FP16_MAX:
            words[name] = f"overflows: the weight {name!r} reaches {reach:.3g}, fp16 ends at 65504"
        elif finite.all() and _share_lost(tensor, values) > MOST_LOST:
            lost[name] = f"underflows: the weight {name!r} reaches only {reach:.3g}, which fp16 distorts"
    for node in graph.node:
        for name in reads(node):
            if name in words:
                yield node, words[name]
        added = _ADDED.get(node.op_type, ())
        for position, name in enumerate(node.input):
            if name in lost and position not in added and not _is_bias(node, weights[name]):
                yield node, lost[name]


def _share_lost(tensor: TensorProto, values: Array) -> float:
    # Rounding moves a number by less than 0.0005 of itself or float16's smallest, so large weights lose little.
    if float(np.linalg.norm(values.ravel())) > 2 * FP16_TINY / MOST_LOST * np.sqrt(values.size):
        return 0.0
    exact = values.astype(np.float64)
    norm = float(np.linalg.norm(exact.ravel()))
    narrow = numpy_helper.to_array(rounded(tensor, TensorProto.FLOAT16)).astype(np.float64)
    return float(np.linalg.norm((narrow - exact).ravel())) / norm if norm else 0.0


def _is_bias(node: NodeProto, weight: TensorProto) -> bool:
    """Whether a fusion call adds this weight: of its weights those of one dimension are biases."""
    return is_fusion(node.domain, node.op_type) and len(weight.dims) == 1
