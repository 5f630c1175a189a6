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
from collections.abc import Set as AbstractSet

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from aff_deploy.onnx_file import opset_of, overridable
from aff_deploy.precision.values import rounded
from aff_deploy.precision.wiring import ONNX_DOMAINS, fresh, inlined, names_of, reads, tensor_types, with_weights
from aff_deploy.runtimes import Array
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

FIRST_AXES_INPUT = 18
"""From this opset on, ReduceMean takes its axes as an input."""


def correct_biases(
    model: ModelProto, half: int, batches: Sequence[Mapping[str, Array]], *, wide: AbstractSet[str] = frozenset()
) -> int:
    """Change the biases of convolutions and Gemms to suit weights that will be rounded; returns how many.

    A bias that several nodes read stays as it is: its nodes have different inputs; so does one that leaves the model
    as an output, or that a caller may override, and one whose node's input has no finite mean. Border positions,
    where padding takes the place of data, keep the error that they have.

    Args:
        model: of fp32, its nodes named, fusion calls in the convex form; changed in place.
        half: what weights will be rounded to: TensorProto.FLOAT16 or BFLOAT16.
        batches: inputs by name, on which the means are observed.
        wide: names of nodes and fusion calls whose weights stay as they are.
    """
    flat, owners = inlined(model)
    constants = (tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT)
    defaults = overridable(model)
    weights = {tensor.name: tensor for tensor in constants if tensor.name not in defaults}
    readers = Counter(name for node in flat.graph.node for name in reads(node))
    readers.update(value.name for value in flat.graph.output)
    nodes = [
        node
        for node in flat.graph.node
        if _is_correctable(node, weights)
        and readers[node.input[2]] == 1
        and owners.get(node.output[0], (node.name,))[0] not in wide
    ]
    means = _observe_means(flat, model, nodes, batches)
    corrected = {
        node.input[2]: _corrected(node, weights, half, means[node.input[0]]) for node in nodes if node.input[0] in means
    }
    # Of weights near the end of fp32 even a finite mean may make an infinite bias.
    corrected = {name: bias for name, bias in corrected.items() if np.isfinite(bias).all()}
    for tensor in model.graph.initializer:
        if tensor.name in corrected:
            tensor.CopyFrom(numpy_helper.from_array(corrected[tensor.name], tensor.name))
    return len(corrected)


def _is_correctable(node: NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    if node.op_type not in ("Conv", "Gemm") or node.domain not in ONNX_DOMAINS:
        return False
    if len(node.input) < 3 or node.input[1] not in weights or node.input[2] not in weights:
        return False
    plain = all(_attribute(node, name, default) == default for name, default in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)))
    return plain and len(weights[node.input[2]].dims) == 1


def _attribute(node: NodeProto, name: str, default: float) -> float:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _observe_means(
    flat: ModelProto, model: ModelProto, nodes: Sequence[NodeProto], batches: Sequence[Mapping[str, Array]]
) -> dict[str, Array]:
    """The mean of each node's input over all but its channels, axis 1, float64; only of those where it is finite."""
    graph = flat.graph
    types = tensor_types(flat)
    taken = names_of(graph) | {tensor.name for tensor in model.graph.initializer}
    statistics: dict[str, str] = {}
    del graph.output[:]
    for name in dict.fromkeys(node.input[0] for node in nodes):
        kind = types.get(name)
        if kind is None or not kind.HasField("shape") or len(kind.shape.dim) < 2:
            continue
        axes = [axis for axis in range(len(kind.shape.dim)) if axis != 1]
        statistic = fresh(f"{name}_mean", taken)
        statistics[statistic] = name
        if opset_of(model) >= FIRST_AXES_INPUT:
            chosen = fresh(f"{name}_axes", taken)
            graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), chosen))
            graph.node.append(helper.make_node("ReduceMean", [name, chosen], [statistic], keepdims=0))
        else:
            graph.node.append(helper.make_node("ReduceMean", [name], [statistic], keepdims=0, axes=axes))
        graph.output.append(helper.make_tensor_value_info(statistic, TensorProto.FLOAT, [None]))
    if not statistics:
        return {}
    sums: dict[str, Array] = {}
    rows = 0
    with OnnxRuntimeRunner(with_weights(flat, model)) as runner:
        for batch in batches:
            # Scalars have no rows, and a model may have no inputs at all.
            count = next((len(array) for array in batch.values() if np.ndim(array)), 1)
            found = runner.infer(batch)
            if not count:
                continue
            rows += count
            for statistic, value in found.items():
                name = statistics[statistic]
                sums[name] = sums.get(name, np.zeros(())) + count * value.astype(np.float64)
    return {name: total / rows for name, total in sums.items() if np.isfinite(total).all()}


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
