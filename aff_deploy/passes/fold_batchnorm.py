"""Fold BatchNormalization into the linear operator beside it.

At inference ``y = s * x + t`` per channel, with ``s = gamma / sqrt(var + epsilon)`` and
``t = beta - mean * s`` (Ioffe & Szegedy 2015).

Rules:
1. Behind Conv, ConvTranspose, Gemm, or MatMul with a constant right side: the weights of output
   channel c are multiplied by s_c, the bias becomes ``b * s + t``.
2. Before a Conv without padding: the weights that read input channel c are multiplied by s_c, and
   the bias grows by the sum of weights times t. With padding the zeros around the image would have
   to become ``-t / s``: not exact, so left alone.
3. Only where nothing else reads the tensor in between, and never in training mode.

Everything is computed in float64 and rounded once, and left alone where it does not fit its type.
Weights shared by two convolutions behind which the same BatchNormalization stands stay shared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from aff_deploy.passes.graph import (
    Array,
    drop_unused,
    fresh_name,
    is_absent,
    is_op,
    name_counts,
    only_read_by,
    output_names,
    producer,
    rank,
    replace_uses,
)
from aff_deploy.passes.rounding import merge_bias, merge_weights

DEFAULT_EPSILON = float(np.float32(1e-5))


@dataclass(frozen=True)
class Affine:
    """``y = scale * x + shift`` per channel, float64, and the constants it came from."""

    scale: Array
    shift: Array
    epsilon: float
    source: tuple[gs.Constant, ...]


# Folded constants by the identity of what they were made from, so that sharing survives; what they were
# made from is kept beside them, or another tensor could be given its identity.
_Folded = dict[tuple[object, ...], tuple[gs.Constant, tuple[gs.Constant, ...]]]


def fold_batchnorm(graph: gs.Graph) -> int:
    """Apply the rules of this file; returns how many BatchNormalization nodes went."""
    outputs = output_names(graph)
    taken = name_counts((*graph.tensors(), *outputs))
    folded: _Folded = {}
    count = 0
    for node in graph.nodes:
        affine = read_batchnorm(node)
        if affine is None:
            continue
        count += _fold_back(graph, node, affine, outputs, folded, taken) or _fold_forward(node, affine, outputs, taken)
    drop_unused(graph)
    return count


def read_batchnorm(node: gs.Node) -> Affine | None:
    """What a BatchNormalization with constant statistics does at inference; None for anything else."""
    if not is_op(node, "BatchNormalization") or node.attrs.get("training_mode", 0):
        return None
    if any(not is_absent(node.outputs, i) for i in range(1, len(node.outputs))):
        return None
    if not all(isinstance(tensor, gs.Constant) for tensor in node.inputs[1:5]):
        return None
    if len(node.inputs[1].shape) != 1 or len({tuple(tensor.shape) for tensor in node.inputs[1:5]}) > 1:
        return None
    gamma, beta, mean, var = (np.asarray(tensor.values, dtype=np.float64) for tensor in node.inputs[1:5])
    epsilon = float(node.attrs.get("epsilon", DEFAULT_EPSILON))
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(var + epsilon)
        shift = beta - mean * scale
    if not (np.all(np.isfinite(scale)) and np.all(np.isfinite(shift))):
        return None
    return Affine(scale, shift, epsilon, tuple(node.inputs[1:5]))


def _fold_back(
    graph: gs.Graph, node: gs.Node, affine: Affine, outputs: frozenset[str], folded: _Folded, taken: dict[str, int]
) -> bool:
    """Rule 1."""
    linear = producer(node.inputs[0])
    if linear is None or not only_read_by(node.inputs[0], node, outputs) or not is_op(linear, *_OUTPUT_AXIS):
        return False
    if is_op(linear, "MatMul") and rank(node.inputs[0]) != 2:
        return False
    axis = 0 if is_op(linear, "Gemm") and linear.attrs.get("transB", 0) else _OUTPUT_AXIS[linear.op]
    groups = linear.attrs.get("group", 1) if is_op(linear, "ConvTranspose") else 1
    weight, bias = linear.inputs[1], None if is_absent(linear.inputs, 2) else linear.inputs[2]
    channels = affine.scale.size
    if not isinstance(weight, gs.Constant) or len(weight.shape) <= axis or weight.shape[axis] * groups != channels:
        return False
    if bias is not None and not (isinstance(bias, gs.Constant) and _is_row(bias, channels)):
        return False
    values = np.asarray(weight.values)
    grouped = values.reshape(groups, values.shape[0] // groups, *values.shape[1:])
    along = np.ones(grouped.ndim, dtype=int)
    along[[0, axis + 1]] = (groups, channels // groups) if axis else (1, channels)
    made = merge_weights(lambda: grouped * affine.scale.reshape(along), values.dtype, axis + 1)
    beta = linear.attrs.get("beta", 1.0)
    old = 0.0 if bias is None else beta * np.asarray(bias.values, dtype=np.float64).reshape(-1)
    shifted = merge_bias(lambda: old * affine.scale + affine.shift, values.dtype)
    scaled = None if made is None else made.reshape(values.shape)
    if scaled is None or shifted is None:
        return False
    if not replace_uses(node.outputs[0], node.inputs[0], outputs):
        return False
    node.inputs, node.outputs = [], []
    bias_name = bias.name if bias is not None else f"{weight.name}_bias"
    source = (weight, *affine.source, *([] if bias is None else [bias]))
    key = ("weight", axis, affine.epsilon, id(weight), *map(id, affine.source))
    bias_key = ("bias", beta, affine.epsilon, *map(id, source))
    if key not in folded:
        folded[key] = _constant(weight.name, scaled, weight, outputs, taken), source
    if bias_key not in folded:
        folded[bias_key] = _constant(bias_name, shifted, bias, outputs, taken), source
    linear.inputs = [linear.inputs[0], folded[key][0], folded[bias_key][0]]
    linear.attrs.pop("beta", None)
    if is_op(linear, "MatMul"):
        linear.op = "Gemm"
    return True


# The weight axis that is the output channel (per group, for ConvTranspose).
_OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


def _is_row(bias: gs.Constant, channels: int) -> bool:
    """Whether a bias is one row: C, or 1 x C as Gemm allows."""
    return list(bias.shape[-1:]) == [channels] and all(dim == 1 for dim in bias.shape[:-1])


def _constant(
    name: str, values: Array, replaced: gs.Constant | None, outputs: frozenset[str], taken: dict[str, int]
) -> gs.Constant:
    """A constant under the name of the one it replaces, if nobody else reads that."""
    if replaced is not None and len(replaced.outputs) == 1 and name not in outputs:
        replaced.name = fresh_name(f"{name}_unfolded", taken)
        taken.pop(name, None)
    return gs.Constant(fresh_name(name, taken), values)


def _fold_forward(node: gs.Node, affine: Affine, outputs: frozenset[str], taken: dict[str, int]) -> bool:
    """Rule 2."""
    output = node.outputs[0]
    conv = output.outputs[0] if len(output.outputs) == 1 else None
    if conv is None or not is_op(conv, "Conv") or not only_read_by(output, conv, outputs) or conv.inputs[0] is not output:
        return False
    weight, bias = conv.inputs[1], None if is_absent(conv.inputs, 2) else conv.inputs[2]
    if not isinstance(weight, gs.Constant) or (bias is not None and not isinstance(bias, gs.Constant)):
        return False
    if any(conv.attrs.get("pads", ())) or conv.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    groups = conv.attrs.get("group", 1)
    values = np.asarray(weight.values)
    if values.shape[1] * groups != affine.scale.size:
        return False
    # Weights O x I/g x k...: output channel o reads the input channels of its own group.
    per_output = np.ones((values.shape[0], values.shape[1], *[1] * (values.ndim - 2)))
    own = np.arange(values.shape[0]) * groups // values.shape[0]
    scale = per_output * affine.scale.reshape(groups, -1)[own].reshape(per_output.shape)
    shift = per_output * affine.shift.reshape(groups, -1)[own].reshape(per_output.shape)
    old = 0.0 if bias is None else np.asarray(bias.values, dtype=np.float64)
    new_weight = merge_weights(lambda: values * scale, values.dtype)
    new_bias = merge_bias(lambda: old + (values * shift).sum(axis=tuple(range(1, values.ndim))), values.dtype)
    if new_weight is None or new_bias is None:
        return False
    bias_name = bias.name if bias is not None else f"{weight.name}_bias"
    weight_made = _constant(weight.name, new_weight, weight, outputs, taken)
    conv.inputs = [node.inputs[0], weight_made, _constant(bias_name, new_bias, bias, outputs, taken)]
    node.inputs, node.outputs = [], []
    return True
