"""What a half-precision graph computes, computed on a CPU.

ONNX Runtime's CPU provider takes float16 graphs, but computes many of their operators in fp32 and leaves out the
casts in between: overflow would go unseen. And of bfloat16 it has next to nothing. So the graph is written in fp32,
and each tensor that it holds in half precision is rounded to it by a pair of casts, which stay where they were
put. Sums inside an operator run in fp32, as they do on a GPU's tensor cores.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from aff_deploy.precision.prepare import HALF_NAMES
from aff_deploy.precision.wiring import (
    fresh,
    inlined,
    names_of,
    rename_reads,
    replace_nodes,
    require_size,
    tensor_types,
    with_weights,
)

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
        ModelError: the type of some tensor cannot be told, or the model is too large.
    """
    require_size(model)
    flat, _ = inlined(model)
    halves = {name: kind.elem_type for name, kind in tensor_types(flat).items() if kind.elem_type in HALF_NAMES}
    wide = with_weights(flat, model)
    graph = wide.graph
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.data_type in HALF_NAMES and tensor.name not in inputs:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    ends = inputs | {value.name for value in graph.output}
    taken = {*halves, *names_of(graph)}
    # An end keeps its name and its type; inside, its values go by another name.
    inner = {name: fresh(f"{name}_inside", taken) for name in halves if name in ends}
    nodes = [_cast(name, inner[name], TensorProto.FLOAT) for name in inner]
    for node in graph.node:
        rename_reads(node, inner)
        _widen_attributes(node)
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in halves and (name in ends or node.op_type not in _EXACT):
                node.output[i] = fresh(f"{name}_exact", taken)
                rounded = name if name in ends else fresh(f"{name}_rounded", taken)
                nodes.append(_cast(node.output[i], rounded, halves[name]))
                if name not in ends:
                    nodes.append(_cast(rounded, name, TensorProto.FLOAT))
    del graph.value_info[:]
    replace_nodes(graph, nodes)
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
