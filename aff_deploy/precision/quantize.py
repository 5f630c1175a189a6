"""int8 and fp8: quantise and dequantise around the layers that profit, everything else as it was.

Quantised are convolutions and matrix products whose weights are constants: weights by output channel, their inputs by
tensor, all symmetric, biases not. The attention calls, whose gates decide what passes, stay in the model's own precision,
and so does every other reader of a quantised tensor: it reads the tensor itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from aff_deploy.errors import ModelError, UsageError
from aff_deploy.onnx_data import nested_graphs
from aff_deploy.onnx_file import check_onnx, infer_types, opset_of, overridable
from aff_deploy.passes.functions import attach_functions
from aff_deploy.precision.clipping import observe_magnitudes
from aff_deploy.precision.feeds import channel_axis, remove_feeds, separate_readers
from aff_deploy.precision.fp8 import LARGEST as FP8_LARGEST
from aff_deploy.precision.fp8 import OPSET as FP8_OPSET
from aff_deploy.precision.fp8 import to_fp8
from aff_deploy.precision.prepare import raise_opset
from aff_deploy.precision.static import OP_TYPES, quantize_layers
from aff_deploy.precision.weights import require_finite_weights
from aff_deploy.precision.wide import KeptWide
from aff_deploy.precision.wiring import add_weights, name_nodes, require_names, require_size, require_unquantised
from aff_deploy.runtimes import Array
from aff_deploy.spec import Precision

# Scales by channel came with opset 13; ONNX Runtime's static quantisation ends at 20.
OLDEST_OPSET, NEWEST_OPSET = 13, 20
# The share of an activation's values that fit its scale. Measured on the digits and on ResNets with randomised BatchNorm:
# as close to PyTorch as with the largest value (MinMax; -0.3 to +0.9 dB), but deaf to single spikes; 0.9999 loses up to
# 3.6 dB. ONNX Runtime's Entropy, with the settings that can be reached, is left with hardly more than the largest value.
KEPT_SHARE = 0.99999
INT8_LARGEST = 127.0


def quantize(
    model: ModelProto, precision: Precision, batches: Sequence[Mapping[str, Array]], *, keep_fp32: Sequence[str] = ()
) -> tuple[ModelProto, tuple[KeptWide, ...]]:
    """A copy of `model` that computes its large layers in 8 bits, written with QuantizeLinear and DequantizeLinear.

    Args:
        model: a float32 model of opset 13 to 20, below 2 GB; as `aff_deploy.passes.optimize` leaves it.
        precision: INT8 or FP8 (E4M3). FP8 raises the opset to 19, since when the operators take it.
        batches: calibration data: inputs by name, as the model takes them.
        keep_fp32: names of nodes that stay as they are.

    Returns:
        A model in which the weights of quantised layers are int8 or fp8, for the same inputs and outputs; and the nodes
        that were asked to stay as they are, or whose numbers say nothing to scale by.

    Raises:
        UsageError: another precision; `keep_fp32` names no node.
        ModelError: the model is already quantised, not float32, not finite, too large, of another opset, has nested graphs,
            or nothing in it can be quantised.
        DataError: the data does not fit, or the model is not finite on it.
        MissingDependency: onnxruntime is not installed.
    """
    if precision not in (Precision.INT8, Precision.FP8):
        raise UsageError(f"{precision} is not an 8-bit precision", fix="use int8 or fp8")
    _require_quantisable(model)
    require_names(model.graph, keep_fp32)
    source = _of_fp8_opset(model) if precision is Precision.FP8 else model
    prepared = ModelProto()
    prepared.CopyFrom(source)
    name_nodes(prepared.graph)
    pairs = zip(source.graph.node, prepared.graph.node, strict=True)
    chosen = _layers(prepared, frozenset(new.name for old, new in pairs if old.name in keep_fp32))
    _require_some(chosen, "no convolution or matrix product with constant float32 weights and a bias by channel is left")
    magnitudes = observe_magnitudes(prepared, list(dict.fromkeys(node.input[0] for node in chosen)), batches)
    kept = {node.name: reason for node in chosen if (reason := _unscalable(node, prepared, magnitudes[node.input[0]].largest))}
    chosen = [node for node in chosen if node.name not in kept]
    _require_some(chosen, next(iter(kept.values()), ""))
    largest = {
        # Of the floating 8-bit type even the largest value costs small ones nothing.
        name: found.largest if precision is Precision.FP8 else found.percentile(KEPT_SHARE)
        for name, found in magnitudes.items()
    }
    fed = separate_readers(prepared, chosen)
    scales = {feed: largest[name] / INT8_LARGEST for feed, name in fed.items()}
    quantised = quantize_layers(prepared, [node.name for node in chosen], scales, batches[:1])
    remove_feeds(quantised, fed)
    _restore(quantised, model)
    if precision is Precision.FP8:
        to_fp8(quantised, prepared, largest_by_scale={f"{feed}_scale": largest[name] for feed, name in fed.items()})
    check_onnx(quantised, "the quantised model", full=False)
    wide = [*((name, "asked for") for name in keep_fp32), *kept.items()]
    return quantised, tuple(KeptWide(name, reason) for name, reason in wide)


def _of_fp8_opset(model: ModelProto) -> ModelProto:
    """`model`, or one of the opset that fp8 needs, its functions but the fusions' expanded."""
    if opset_of(model) >= FP8_OPSET:
        return model
    light, _ = raise_opset(model, FP8_OPSET, FP8_OPSET, "fp8")
    add_weights(light, model)
    attach_functions(light)
    return light


def _require_some(chosen: Sequence[NodeProto], reason: str) -> None:
    if not chosen:
        raise ModelError(
            f"nothing in the model can be quantised: {reason}", fix="use --fp16, or keep fewer layers with --keep-fp32"
        )


def _unscalable(node: NodeProto, model: ModelProto, largest: float) -> str:
    """Why there is no scale for what a node reads, or nothing; `largest` is of its activation."""
    if largest == 0.0:
        return f"{node.input[0]!r} is empty, or zero throughout, on the data: there is nothing to scale it by"
    weight = next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == node.input[1])
    if not weight.size:
        return f"{node.input[1]!r} is empty: there is nothing to scale it by"
    for name, reach in ((node.input[0], largest), (node.input[1], float(np.max(np.abs(weight), initial=0.0)))):
        # A scale must be a normal number of fp32.
        if 0.0 < reach < FP8_LARGEST * np.finfo(np.float32).tiny:
            return f"{name!r} reaches only {reach:.3g}, too little for a scale"
    return ""


def _require_quantisable(model: ModelProto) -> None:
    graph = model.graph
    require_unquantised(model)
    if nesting := next((node for node in graph.node if any(True for _ in nested_graphs(node))), None):
        raise ModelError(
            f"node {nesting.name or nesting.op_type!r} holds a graph of its own ({nesting.op_type}), which cannot be quantised",
            fix="export the network without branches on values, or use --fp16",
        )
    require_size(model)
    require_finite_weights(model)
    opset = opset_of(model)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ModelError(
            f"the model is of opset {opset}, and only {OLDEST_OPSET} to {NEWEST_OPSET} can be quantised",
            fix="export it again with --opset 18",
        )
    half = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
    if low := next((t for t in graph.initializer if t.data_type in half), None):
        raise ModelError(f"weight {low.name!r} is {half[low.data_type]}", fix="give the float32 model")


def _layers(model: ModelProto, keep_fp32: frozenset[str]) -> list[NodeProto]:
    """The nodes to quantise: of constant weights, and of an activation whose type is known to be float32."""
    types, defaults = infer_types(model), overridable(model)
    constants = (tensor for tensor in model.graph.initializer if tensor.name not in defaults)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in constants if tensor.data_type == TensorProto.FLOAT}
    chosen = []
    for node in model.graph.node:
        if node.op_type not in OP_TYPES or node.domain not in ("", "ai.onnx") or node.name in keep_fp32:
            continue
        activation, weight, *biases = node.input
        known = types.get(activation)
        if activation in shapes or weight not in shapes or known is None or known.elem_type != TensorProto.FLOAT:
            continue
        if node.op_type == "MatMul" and len(shapes[weight]) != 2:
            continue
        # ONNX Runtime resets beta, which it would fold into a quantised bias.
        if node.op_type == "Gemm" and any(attribute.name == "beta" and attribute.f != 1 for attribute in node.attribute):
            continue
        # Nor is a bias that is spread over the output known to it.
        if any(bias and shapes.get(bias) != (shapes[weight][channel_axis(node)],) for bias in biases):
            continue
        chosen.append(node)
    return chosen


def _restore(model: ModelProto, original: ModelProto) -> None:
    """What ONNX Runtime writes about itself, as it was."""
    model.producer_name, model.producer_version = original.producer_name, original.producer_version
    del model.metadata_props[:]
    model.metadata_props.extend(original.metadata_props)
