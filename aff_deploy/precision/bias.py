"""Biases that make up for what rounding the weights does on average.

A rounded weight W + dW adds dW . x to what a convolution makes. Behind a ReLU the mean of x is far from zero,
so much of that is the same at every position: dW . mean(x), which the bias can take back. On aff_resnet50
and iaff_resnext50_32x4d with random BatchNorm statistics it raises the signal-to-noise ratio of fp16 from 53.0 and 52.2 dB
to 57.9 and 56.6 dB (docs/benchmarks/engine_build.md has the latter); what is left is mostly the rounding of activations.

After Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2,
with means observed on data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from aff_deploy.precision.prepare import Source
from aff_deploy.precision.values import rounded
from aff_deploy.precision.wiring import ONNX_DOMAINS, reads
from aff_deploy.runtimes import Array


@dataclass(frozen=True)
class Layer:
    """A convolution or Gemm whose bias can be corrected.

    Attributes:
        node: in the main graph or inside a fusion.
        name: of it, or of the fusion call that it lies in.
    """

    node: NodeProto
    name: str


def find_layers(source: Source) -> list[Layer]:
    """Convolutions and Gemms with constant weights and a bias of their own.

    A bias that several nodes read stays as it is: its nodes have different inputs; so does one that leaves the model
    as an output, or that a caller may override.
    """
    flat = source.expanded.model
    weights = {name: tensor for name, tensor in source.weights.items() if name not in source.defaults}
    readers = Counter(name for node in flat.graph.node for name in reads(node))
    readers.update(source.outputs)
    owners = source.expanded.owners
    return [
        Layer(node, owners.get(node.output[0], (node.name,))[0])
        for node in flat.graph.node
        if _is_correctable(node, weights) and readers[node.input[2]] == 1
    ]


def corrected_biases(
    layers: Sequence[Layer], weights: Mapping[str, TensorProto], means: Mapping[str, Array], half: int
) -> dict[str, TensorProto]:
    """Biases that suit rounded weights, by name.

    Border positions, where padding takes the place of data, keep the error that they have.

    Args:
        layers: whose weights will be rounded.
        weights: by name.
        means: of the layers' inputs by channel, float64; a layer without one keeps its bias.
        half: what weights will be rounded to: TensorProto.FLOAT16 or BFLOAT16.
    """
    corrected = {
        layer.node.input[2]: _corrected(layer.node, weights, half, means[layer.node.input[0]])
        for layer in layers
        if layer.node.input[0] in means
    }
    # Of weights near the end of fp32 even a finite mean may make an infinite bias.
    return {name: numpy_helper.from_array(bias, name) for name, bias in corrected.items() if np.isfinite(bias).all()}


def _is_correctable(node: NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    if node.op_type not in ("Conv", "Gemm") or node.domain not in ONNX_DOMAINS:
        return False
    if len(node.input) < 3 or any(not _is_float(weights.get(name)) for name in node.input[1:]):
        return False
    plain = all(_attribute(node, name, default) == default for name, default in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)))
    return plain and len(weights[node.input[2]].dims) == 1


def _is_float(weight: TensorProto | None) -> bool:
    return weight is not None and weight.data_type == TensorProto.FLOAT


def _attribute(node: NodeProto, name: str, default: float) -> float:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _corrected(node: NodeProto, weights: Mapping[str, TensorProto], half: int, mean: Array) -> Array:
    weight = weights[node.input[1]]
    exact = numpy_helper.to_array(weight)
    change = numpy_helper.to_array(rounded(weight, half)).astype(np.float32) - exact
    if node.op_type == "Gemm":
        moved = (change if _attribute(node, "transB", 0) else change.T).astype(np.float64) @ mean
    else:
        groups = int(_attribute(node, "group", 1))
        summed = change.reshape(groups, len(exact) // groups, exact.shape[1], -1).sum(axis=3, dtype=np.float64)
        moved = np.einsum("goi,gi->go", summed, mean.reshape(groups, -1)).reshape(-1)
    bias = numpy_helper.to_array(weights[node.input[2]]).astype(np.float64) - moved
    with np.errstate(over="ignore"):
        return np.asarray(bias.astype(np.float32))
