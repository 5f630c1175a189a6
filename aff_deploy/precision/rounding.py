"""What a half-precision graph computes, computed on a CPU.

ONNX Runtime's CPU provider takes float16 graphs, but computes many of their operators in fp32 and leaves out the
casts in between: overflow would go unseen. And of bfloat16 it has next to nothing. So the graph is written in fp32,
and each tensor that it holds in half precision is rounded to it by a pair of casts, which stay where they were
put. Sums inside an operator run in fp32, as they do on a GPU's tensor cores.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from aff_deploy.onnx_file import overridable, skeleton
from aff_deploy.precision.prepare import HALF_NAMES
from aff_deploy.precision.wiring import (
    add_weights,
    copy_without_nodes,
    expand,
    fresh,
    names_of,
    open_skeleton,
    rename_reads,
    require_size,
)
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

# Their results are among the numbers that went in, which were rounded before.
_EXACT = frozenset(
    (
        *("Relu", "MaxPool", "GlobalMaxPool", "Reshape", "Transpose", "Identity", "Concat", "Slice"),
        *("Split", "Squeeze", "Unsqueeze", "Flatten", "Gather", "Expand", "Tile", "Neg", "Abs", "Max"),
        *("Min", "ReduceMax", "ReduceMin", "Where", "DepthToSpace", "SpaceToDepth"),
    )
)


def rounding_model(model: ModelProto) -> ModelProto:
    """The fp32 form of a typed model: every float16 or bfloat16 tensor is rounded to its type where it is made.

    Inputs and outputs keep their types.

    Args:
        model: typed, below 2 GB; left as it is.

    Returns:
        A model without local functions, which ONNX Runtime's CPU provider runs.

    Raises:
        ModelError: types contradict each other, that of some tensor cannot be told, or the model is too large.
    """
    wide = _rounding_skeleton(model)
    add_weights(wide, model)
    return wide


def open_rounding(model: ModelProto) -> OnnxRuntimeRunner:
    """A runner of what `rounding_model` makes, its weights never copied.

    Raises:
        MissingDependency: onnxruntime is not installed.
        ModelError: as `rounding_model`, or it cannot be run.
    """
    return open_skeleton(_rounding_skeleton(model), model.graph.initializer, overridable(model))


def _rounding_skeleton(model: ModelProto) -> ModelProto:
    require_size(model)
    expanded = expand(skeleton(model), strict=True)
    halves = {name: kind.elem_type for name, kind in expanded.types.items() if kind.elem_type in HALF_NAMES}
    graph = expanded.model.graph
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    ends = given | {value.name for value in graph.output}
    taken = {*halves, *names_of(graph)}
    # An end keeps its name and its type, as weights do; inside, its values go by another name.
    inner = {name: fresh(f"{name}_inside", taken) for name in halves if name in ends}
    nodes = [_cast(name, inner[name], TensorProto.FLOAT) for name in inner if name in given]
    for node in graph.node:
        rename_reads(node, inner)
        _widen_attributes(node)
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in halves and (name in ends or node.op_type not in _EXACT):
                node.output[i] = fresh(f"{name}_exact", taken)
                rounded = name if name in ends else fresh(f"{name}_rounded", taken)
                nodes.append(_cast(node.output[i], rounded, halves[name]))
                nodes.append(_cast(rounded, inner.get(name, name), TensorProto.FLOAT))
    wide = copy_without_nodes(expanded.model)
    del wide.graph.value_info[:]
    wide.graph.node.extend(nodes)
    return wide


def _cast(source: str, result: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [result], to=to)


def _widen_attributes(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i in HALF_NAMES:
            attribute.i = TensorProto.FLOAT
        if attribute.t.data_type in HALF_NAMES:
            values = numpy_helper.to_array(attribute.t).astype(np.float32)
            attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))
