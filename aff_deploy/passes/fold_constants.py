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
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from aff_deploy.passes.cleanup import NONDETERMINISTIC
from aff_deploy.passes.graph import Array, is_op, output_names, small_value

LARGEST_RESULT = 65536

# Operators whose result's size is a value they are given.
_SIZED_BY_VALUE = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "Resize", "OneHot", "Pad"})

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
    (name, value), *_ = node.attrs.items()
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
    sizes = [np.prod(np.abs(value.astype(np.float64))) for value in inputs.values() if value.dtype.kind in "fiu"]
    if node.op in _SIZED_BY_VALUE and max(sizes, default=0) > LARGEST_RESULT:
        return None
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in inputs.items()
    ]
    result = onnx.helper.make_empty_tensor_value_info(node.outputs[0].name)
    graph = onnx.helper.make_graph([OnnxExporter.export_node(node)], "constant", values, [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        (value,) = ReferenceEvaluator(model).run(None, inputs)
    except Exception:  # whatever the reference implementation cannot do is left for the runtime
        return None
    return value if isinstance(value, np.ndarray) and value.size <= LARGEST_RESULT else None
