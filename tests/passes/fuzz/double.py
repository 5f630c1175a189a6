"""What a graph computes, in double precision.

The common operators are computed by numpy, the rarer ones by ONNX Runtime in float64. Written apart from the
package, whose results it judges, and from onnx's reference evaluator, which folding once trusted. Weights are
as they are stored, every step between is in float64: a Cast between floats does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, helper, numpy_helper

from tests.passes.fuzz.operators import RULES, Array, Values, widened


def evaluate(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Values:
    """Every tensor of the main graph of `model`, whose nodes must be in order."""
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    values = {tensor.name: widened(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    values.update({name: widened(array) for name, array in feeds.items()})
    run_nodes(model.graph.node, values, opset)
    return values


def run_nodes(nodes: Iterable[NodeProto], values: Values, opset: int) -> None:
    """Run nodes in order; adds what they make to `values`."""
    for node in nodes:
        results = run_node(node, values, opset)
        values.update({name: value for name, value in zip(node.output, results, strict=False) if name})


def run_node(node: NodeProto, values: Mapping[str, Array], opset: int) -> list[Array]:
    """What one node makes, its nested graphs run with what they capture."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "If":
        branch = attributes["then_branch" if values[node.input[0]].reshape(-1)[0] else "else_branch"]
        return _run_graph(branch, dict(values), opset)
    if node.op_type == "Loop":
        return _run_loop(node, attributes["body"], values, opset)
    inputs = [values[name] if name else None for name in node.input]
    rule = RULES.get(node.op_type)
    with np.errstate(all="ignore"):
        result = None if rule is None else rule(inputs, attributes, opset)
    if result is None:
        return _by_runtime(node, inputs, opset)
    results = result if isinstance(result, list) else [result]
    return [np.asarray(value) for value in results]


def _run_graph(graph: GraphProto, values: Values, opset: int) -> list[Array]:
    values.update({tensor.name: widened(numpy_helper.to_array(tensor)) for tensor in graph.initializer})
    run_nodes(graph.node, values, opset)
    return [values[output.name] for output in graph.output]


def _run_loop(node: NodeProto, body: GraphProto, values: Mapping[str, Array], opset: int) -> list[Array]:
    count, carried = (
        int(values[node.input[0]].reshape(-1)[0]),
        [values[name] for name in node.input[2:]],
    )
    scanned: list[list[Array]] = []
    for i in range(count):
        inner = dict(values)
        going = np.asarray(True)
        arguments = (np.asarray(i), going, *carried)
        inner.update({value.name: array for value, array in zip(body.input, arguments, strict=True)})
        results = _run_graph(body, inner, opset)
        carried = results[1 : 1 + len(carried)]
        scanned.append(results[1 + len(carried) :])
    return carried + [np.stack(items) for items in zip(*scanned, strict=True)]


def _by_runtime(node: NodeProto, inputs: Sequence[Array | None], opset: int) -> list[Array]:
    """One node by ONNX Runtime, in float64 or, where it has no such kernel, in float32."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for dtype in (np.float64, np.float32):
        feeds = {
            name: array.astype(dtype) if array.dtype.kind == "f" else array
            for name, array in zip(node.input, inputs, strict=True)
            if array is not None
        }
        types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()}
        ends = [helper.make_tensor_value_info(name, types[name], feeds[name].shape) for name in feeds]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = helper.make_graph([node], "one", ends, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        try:
            session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return [widened(np.asarray(array)) for array in session.run(None, feeds)]
        except Exception:  # whatever ONNX Runtime raises: no kernel, or an invalid node
            if dtype == np.float32:
                raise
    raise AssertionError
