"""Compute, once, what depends on constants alone.

Rules:
1. A Constant node becomes an initializer.
2. A deterministic standard operator whose inputs are all small constants is evaluated by onnx's
   reference implementation. Results over `LARGEST_RESULT` elements stay computed: a file should
   not grow by folding.
3. Shape of a tensor whose shape is static is a constant.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator

from aff_deploy.passes.cleanup import NONDETERMINISTIC
from aff_deploy.passes.convert import export_node
from aff_deploy.passes.graph import Array, is_op, output_names, small_value

LARGEST_RESULT = 65536

# Operators whose result, or the work for it, is as large as a value or attribute says. Those that shape
# arithmetic is made of are measured first, the others left to the runtime.
_SHAPE_IS_VALUE = {"ConstantOfShape": 0, "Expand": 1}
_SIZED_BY_VALUE = frozenset({
    "AffineGrid", "AveragePool", "BlackmanWindow", "CenterCropPad", "Col2Im", "Conv", "ConvInteger", "ConvTranspose", "DFT",
    "DeformConv", "Einsum", "GridSample", "HammingWindow", "HannWindow", "LpPool", "MaxPool", "MaxRoiPool", "MaxUnpool",
    "MelWeightMatrix", "OneHot", "Pad", "QLinearConv", "Resize", "RoiAlign", "STFT", "Tile", "Unique", "Upsample",
})  # fmt: skip

# A quantised weight is meant to stay one; a loop may cost anything.
_NEVER = NONDETERMINISTIC | {"DequantizeLinear", "QuantizeLinear", "If", "Loop", "Scan", "Constant", "BatchNormalization"}


def fold_constants(graph: gs.Graph) -> int:
    """Apply the rules of this file; returns how many nodes became constants."""
    graph.toposort()
    outputs = output_names(graph)
    count = 0
    for node in list(graph.nodes):
        value = None if any(t.name in outputs for t in node.outputs) else _constant_value(node, graph.opset)
        if value is not None:
            (output,) = node.outputs
            node.outputs = []
            output.to_constant(np.ascontiguousarray(value).reshape(value.shape))
            count += 1
    graph.cleanup(remove_unused_node_outputs=False)
    return count


def _constant_value(node: gs.Node, opset: int) -> Array | None:
    if len(node.outputs) != 1 or not is_op(node, node.op):
        return None
    if node.op == "Constant":
        return _literal(node)
    if node.op == "Shape":
        return _static_shape_value(node)
    if node.op in _NEVER or not node.inputs or any(isinstance(value, gs.Graph) for value in node.attrs.values()):
        return None
    inputs: dict[str, Array] = {}
    for tensor in node.inputs:
        value = None if tensor.is_empty() else small_value(tensor)
        if value is None and not tensor.is_empty():
            return None
        if value is not None:
            inputs[tensor.name] = value
    return _evaluate(node, inputs, opset) if inputs else None


def _literal(node: gs.Node) -> Array | None:
    if len(node.attrs) != 1:
        return None  # a sparse value, which graphsurgeon does not show
    ((name, value),) = node.attrs.items()
    if name == "value":
        return np.asarray(value.values)
    types = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return np.asarray(value, dtype=types[name]) if name in types else None


def _static_shape_value(node: gs.Node) -> Array | None:
    shape = node.inputs[0].shape
    if shape is None or not all(isinstance(dim, int) for dim in shape):
        return None
    return np.asarray(shape[node.attrs.get("start", 0) : node.attrs.get("end")], dtype=np.int64)


def _evaluate(node: gs.Node, inputs: dict[str, Array], opset: int) -> Array | None:
    """The node's output by onnx's reference implementation; None where it has none, or is too large."""
    if node.op in _SIZED_BY_VALUE or _elements(node, list(inputs.values())) > LARGEST_RESULT:
        return None
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in inputs.items()
    ]
    result = onnx.helper.make_empty_tensor_value_info(node.outputs[0].name)
    graph = onnx.helper.make_graph([export_node(node)], "constant", values, [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            (value,) = ReferenceEvaluator(model).run(None, inputs)
    except Exception:  # whatever the reference implementation cannot do is left for the runtime
        return None
    if not isinstance(value, np.ndarray) or value.size > LARGEST_RESULT:
        return None
    # numpy promotes types more freely than ONNX does.
    return value if node.outputs[0].dtype in (None, value.dtype) else None


def _elements(node: gs.Node, values: list[Array]) -> float:
    """How many elements a result will have at most, where a value says so; else 0."""
    if node.op in _SHAPE_IS_VALUE and len(values) > _SHAPE_IS_VALUE[node.op]:
        shape = values[_SHAPE_IS_VALUE[node.op]].astype(np.float64)
        return float(np.prod(np.maximum(np.abs(shape), 1.0))) * max(value.size for value in values)
    if node.op == "Range" and len(values) == 3:
        start, limit, delta = (float(value.reshape(-1)[0]) for value in values)
        return abs(limit - start) / abs(delta) if delta else float("inf")
    return 0.0
