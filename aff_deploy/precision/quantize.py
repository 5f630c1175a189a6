"""int8 and fp8: quantise and dequantise around the layers that profit, everything else as it was.

Quantised are convolutions and matrix products whose weights are constants: weights by output channel, their inputs by
tensor, all symmetric, biases not. The attention calls, whose gates decide what passes, stay in the model's own precision,
and so does every other reader of a quantised tensor: it reads the tensor itself.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence

from onnx import ModelProto, NodeProto, TensorProto, helper

from aff_deploy.errors import ModelError, UsageError
from aff_deploy.onnx_data import iter_tensors, nested_graphs, tensor_bytes
from aff_deploy.onnx_file import MAX_MODEL_BYTES, check_onnx, infer_types, overridable, sorted_nodes
from aff_deploy.precision.clipping import observe_magnitudes
from aff_deploy.precision.fp8 import to_fp8
from aff_deploy.precision.static import OP_TYPES, quantize_layers
from aff_deploy.runtimes import Array
from aff_deploy.spec import Precision

QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul")
# Scales by channel came with opset 13; ONNX Runtime's static quantisation ends at 20.
OLDEST_OPSET, NEWEST_OPSET = 13, 20
# The share of an activation's values that fit its scale. Measured on the digits and on ResNets with randomised BatchNorm:
# as close to PyTorch as with the largest value (MinMax; -0.3 to +0.9 dB), but deaf to single spikes; 0.9999 loses up to
# 3.6 dB. ONNX Runtime's Entropy, with the settings that can be reached, is left with hardly more than the largest value.
KEPT_SHARE = 0.99999
INT8_LARGEST = 127.0
FEED = "{}/quantised"


def quantize(
    model: ModelProto, precision: Precision, batches: Sequence[Mapping[str, Array]], *, keep_wide: Sequence[str] = ()
) -> ModelProto:
    """A copy of `model` that computes its large layers in 8 bits, written with QuantizeLinear and DequantizeLinear.

    Args:
        model: a float32 model of opset 13 to 20, below 2 GB; as `aff_deploy.passes.optimize` leaves it.
        precision: INT8 or FP8 (E4M3). FP8 raises the opset to 19, since when the operators take it.
        batches: calibration data: inputs by name, as the model takes them.
        keep_wide: names of nodes that stay as they are.

    Returns:
        A model in which the weights of quantised layers are int8 or fp8, for the same inputs and outputs.

    Raises:
        UsageError: another precision; `keep_wide` names no node.
        ModelError: the model is already quantised, not float32, too large, of another opset, has nested graphs, or nothing
            in it can be quantised.
        DataError: the data does not fit, or the model is not finite on it.
        MissingDependency: onnxruntime is not installed.
    """
    if precision not in (Precision.INT8, Precision.FP8):
        raise UsageError(f"{precision} is not an 8-bit precision", fix="use int8 or fp8")
    _require_quantisable(model)
    _require_known(model, keep_wide)
    prepared = ModelProto()
    prepared.CopyFrom(model)
    _name_nodes(prepared)
    pairs = zip(model.graph.node, prepared.graph.node, strict=True)
    chosen = _layers(prepared, frozenset(new.name for old, new in pairs if old.name in keep_wide))
    if not chosen:
        raise ModelError(
            "nothing in the model can be quantised: no convolution or matrix product with constant float32 weights is left",
            fix="use --fp16, or keep fewer layers wide",
        )
    tensors = list(dict.fromkeys(node.input[0] for node in chosen))
    magnitudes = observe_magnitudes(prepared, tensors, batches)
    largest = {
        # Of the floating 8-bit type even the largest value costs small ones nothing.
        name: (found.largest if precision is Precision.FP8 else found.percentile(KEPT_SHARE)) or 1.0
        for name, found in magnitudes.items()
    }
    fed = _separate_readers(prepared, chosen)
    scales = {feed: largest[name] / INT8_LARGEST for feed, name in fed.items()}
    quantised = quantize_layers(prepared, [node.name for node in chosen], scales, batches[:1])
    _remove_feeds(quantised, fed)
    _restore(quantised, model)
    if precision is Precision.FP8:
        to_fp8(quantised, prepared, largest_by_scale={f"{feed}_scale": largest[name] for feed, name in fed.items()})
    check_onnx(quantised, "the quantised model", full=False)
    return quantised


def _require_quantisable(model: ModelProto) -> None:
    graph = model.graph
    if any(node.op_type in QUANTISED for node in graph.node):
        raise ModelError(
            "the model is quantised already: it holds QuantizeLinear or its like",
            fix="build it without --int8 or --fp8, or give the float32 model",
        )
    if nesting := next((node for node in graph.node if any(True for _ in nested_graphs(node))), None):
        raise ModelError(
            f"node {nesting.name or nesting.op_type!r} holds a graph of its own ({nesting.op_type}), which cannot be quantised",
            fix="export the network without branches on values, or use --fp16",
        )
    if sum(tensor_bytes(tensor) for tensor in iter_tensors(model)) > MAX_MODEL_BYTES:
        raise ModelError("the model holds over 1.9 GB, more than can be quantised", fix="use --fp16")
    opset = _opset_of(model)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ModelError(
            f"the model is of opset {opset}, and only {OLDEST_OPSET} to {NEWEST_OPSET} can be quantised",
            fix="export it again with --opset 18",
        )
    half = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
    if low := next((t for t in graph.initializer if t.data_type in half), None):
        raise ModelError(f"weight {low.name!r} is {half[low.data_type]}", fix="give the float32 model")


def _opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators that a model imports."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def _require_known(model: ModelProto, keep_wide: Sequence[str]) -> None:
    names = [node.name for node in model.graph.node if node.name]
    for name in keep_wide:
        if name not in names:
            guess = difflib.get_close_matches(name, names, n=1)
            raise UsageError(
                f"the model has no node {name!r} to keep wide",
                fix=f"did you mean {guess[0]!r}?" if guess else "list the nodes with: aff-deploy inspect",
            )


def _name_nodes(model: ModelProto) -> None:
    """Give every node a name of its own: layers are chosen by name."""
    taken = Counter(node.name for node in model.graph.node)
    for position, node in enumerate(model.graph.node):
        if not node.name or taken[node.name] > 1:
            node.name = f"{node.name or node.op_type}/{position}"


def _layers(model: ModelProto, keep_wide: frozenset[str]) -> list[NodeProto]:
    """The nodes to quantise: of constant weights, and of an activation whose type is known to be float32."""
    types, defaults = infer_types(model), overridable(model)
    constants = (tensor for tensor in model.graph.initializer if tensor.name not in defaults)
    weights = {tensor.name: len(tensor.dims) for tensor in constants if tensor.data_type == TensorProto.FLOAT}
    chosen = []
    for node in model.graph.node:
        if node.op_type not in OP_TYPES or node.domain not in ("", "ai.onnx") or node.name in keep_wide:
            continue
        activation, weight, *biases = node.input
        known = types.get(activation)
        if activation in weights or weight not in weights or known is None or known.elem_type != TensorProto.FLOAT:
            continue
        if node.op_type == "MatMul" and weights[weight] != 2:
            continue
        # ONNX Runtime resets beta, which it would fold into a quantised bias.
        if node.op_type == "Gemm" and any(attribute.name == "beta" and attribute.f != 1 for attribute in node.attribute):
            continue
        if all(bias in weights or not bias for bias in biases):
            chosen.append(node)
    return chosen


def _channel_axis(node: NodeProto) -> int:
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Conv" or (node.op_type == "Gemm" and transposed) else 1


def _separate_readers(model: ModelProto, chosen: Sequence[NodeProto]) -> dict[str, str]:
    """Let the chosen nodes read their activations, and weights that others read too, under names of their own.

    ONNX Runtime rewires every reader of a tensor that it quantises: a residual sum or a gate would get rounded values.

    Returns:
        The tensor behind each new name of an activation.
    """
    graph = model.graph
    fed: dict[str, str] = {}
    identities = []
    weights: dict[str, list[NodeProto]] = {}
    for node in chosen:
        source, feed = node.input[0], FEED.format(node.input[0])
        if feed not in fed:
            fed[feed] = source
            identities.append(helper.make_node("Identity", [source], [feed], name=feed))
        node.input[0] = feed
        weights.setdefault(node.input[1], []).append(node)
    readers = Counter(name for node in graph.node for name in node.input)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    for name, nodes in weights.items():
        axes = sorted({_channel_axis(node) for node in nodes})
        if readers[name] == len(nodes) and len(axes) == 1 and name not in outputs:
            continue
        for axis in axes:
            copy = graph.initializer.add()
            copy.CopyFrom(constants[name])
            copy.name = f"{FEED.format(name)}{axis}"
            for node in nodes:
                if _channel_axis(node) == axis:
                    node.input[1] = copy.name
    graph.node.extend(identities)
    ordered = [NodeProto.FromString(node.SerializeToString()) for node in sorted_nodes(graph)]
    del graph.node[:]
    graph.node.extend(ordered)
    return fed


def _remove_feeds(model: ModelProto, fed: Mapping[str, str]) -> None:
    graph = model.graph
    kept = [node for node in graph.node if not (node.op_type == "Identity" and node.name in fed)]
    for node in kept:
        for position, name in enumerate(node.input):
            if name in fed:
                node.input[position] = fed[name]
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)
    values = [value for value in graph.value_info if value.name not in fed]
    del graph.value_info[:]
    graph.value_info.extend(values)


def _restore(model: ModelProto, original: ModelProto) -> None:
    """What ONNX Runtime writes about itself, as it was."""
    model.producer_name, model.producer_version = original.producer_name, original.producer_version
    del model.metadata_props[:]
    model.metadata_props.extend(original.metadata_props)
