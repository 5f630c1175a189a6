"""Compute, once, what depends on constants alone.

Rules:
1. A Constant node becomes an initializer.
2. An operator of `FOLDED` whose inputs are all small constants is evaluated: by numpy where that is a line,
   else by onnx's reference implementation. Results over `LARGEST_RESULT` elements stay computed: a file
   should not grow by folding.
3. Shape of a tensor whose shape is static is a constant.

`FOLDED` is what shapes, positions and weights are computed with. The reference implementation departs from
the standard in places (Softmax before opset 13, LpNormalization, LRN, ...), so that nothing is folded that
tests/passes/test_folded_operators.py does not hold against ONNX Runtime: every operator here, in every version
and type. Where a value is left undefined (an integer divided by zero, a NaN made an integer) nothing is folded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from aff_deploy.passes.convert import export_node
from aff_deploy.passes.graph import Array, drop_unused, is_op, named_axes, output_names, small_value, sort_nodes

LARGEST_RESULT = 65536

HALF = tuple(helper.tensor_dtype_to_np_dtype(kind) for kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16))
FOLDED_TYPES = (*HALF, *map(np.dtype, ("float32", "float64", "int8", "uint8", "int32", "int64", "bool")))

_MOVING = ("Concat", "Expand", "Flatten", "Gather", "GatherND", "Identity", "Reshape", "Slice", "Squeeze", "Transpose")
_MAKING = ("ConstantOfShape", "NonZero", "Range", "ScatterND", "Size", "Trilu", "Unsqueeze", "Where")
_ARITHMETIC = ("Abs", "Add", "Ceil", "Clip", "CumSum", "Div", "Floor", "MatMul", "Max", "Min", "Mod", "Mul", "Neg")
_FUNCTIONS = ("Cos", "Exp", "Log", "Pow", "Reciprocal", "Round", "Sin", "Sqrt", "Sub", "Sum")
_REDUCTIONS = ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")
_LOGIC = ("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor")
_CASTS = ("Cast", "CastLike")
FOLDED = frozenset((*_MOVING, *_MAKING, *_ARITHMETIC, *_FUNCTIONS, *_REDUCTIONS, *_LOGIC, *_CASTS))
"""Operators that rule 2 computes."""

_Inputs = list[Array | None]

# The reference implementation takes the axes one after the other, where they are meant at once.
_BY_NUMPY: Mapping[str, Callable[[gs.Node, Array], Array]] = {
    "Squeeze": lambda node, value: np.squeeze(value, _axes(node)),
    "Unsqueeze": lambda node, value: np.expand_dims(value, _axes(node) or ()),
}


def fold_constants(graph: gs.Graph) -> int:
    """Apply the rules of this file; returns how many nodes became constants."""
    sort_nodes(graph)
    outputs = output_names(graph)
    count = 0
    for node in list(graph.nodes):
        value = None if any(t.name in outputs for t in node.outputs) else _constant_value(node, graph.opset)
        if value is not None:
            (output,) = node.outputs
            node.outputs = []
            output.to_constant(np.ascontiguousarray(value).reshape(value.shape))
            count += 1
    drop_unused(graph)
    return count


def _constant_value(node: gs.Node, opset: int) -> Array | None:
    if len(node.outputs) != 1 or not is_op(node, node.op):
        return None
    if node.op == "Constant":
        return _literal(node)
    if node.op == "Shape":
        return _static_shape_value(node)
    if node.op not in FOLDED or not node.inputs:
        return None
    inputs: _Inputs = []
    for tensor in node.inputs:
        value = None if tensor.is_empty() else small_value(tensor)
        if not tensor.is_empty() and (value is None or value.dtype not in FOLDED_TYPES):
            return None
        inputs.append(value)
    return _evaluate(node, inputs, opset)


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


def _axes(node: gs.Node) -> tuple[int, ...] | None:
    axes = named_axes(node)
    return None if axes is None else tuple(axes)


def _evaluate(node: gs.Node, inputs: _Inputs, opset: int) -> Array | None:
    """The node's output; None where it is not defined, too large, or not of the type that it should have."""
    first = inputs[0]
    if first is None or _elements(node, inputs) > LARGEST_RESULT or not _is_defined(node, inputs):
        return None
    kind = node.outputs[0].dtype
    if kind is None and any(value is not None and value.dtype in HALF for value in inputs):
        return None
    # As runtimes do, half precision is computed in float32 and rounded once.
    wide = inputs if node.op in _CASTS else [_widened(value) for value in inputs]
    try:
        with np.errstate(all="ignore"):
            value = _BY_NUMPY[node.op](node, first) if node.op in _BY_NUMPY else _by_reference(node, wide, opset)
            if kind in HALF and isinstance(value, np.ndarray) and value.dtype == np.float32:
                value = value.astype(kind)
    except Exception:  # whatever the reference implementation cannot do is left for the runtime
        return None
    if not isinstance(value, (np.ndarray, np.generic)) or value.size > LARGEST_RESULT:
        return None
    # numpy promotes types more freely than ONNX does.
    return np.asarray(value) if kind is None or value.dtype == kind else None


def _by_reference(node: gs.Node, inputs: _Inputs, opset: int) -> object:
    given = {tensor.name: value for tensor, value in zip(node.inputs, inputs, strict=True) if value is not None}
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in given.items()
    ]
    result = helper.make_empty_tensor_value_info(node.outputs[0].name)
    graph = helper.make_graph([export_node(node)], "constant", values, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    (value,) = ReferenceEvaluator(model).run(None, given)
    return value


def _widened(value: Array | None) -> Array | None:
    return value.astype(np.float32) if value is not None and value.dtype in HALF else value


def _is_defined(node: gs.Node, inputs: _Inputs) -> bool:
    """Whether the standard says what the result is, and the reference implementation follows it."""
    first, second = inputs[0], inputs[1] if len(inputs) > 1 else None
    if first is None:
        return False
    if is_op(node, "Div", "Mod") and first.dtype.kind in "iu":
        # The least number of a signed type has no negative.
        return second is not None and bool(
            np.all(second) and not (np.any(second == -1) and np.any(first == np.iinfo(first.dtype).min))
        )
    if is_op(node, "Pow"):
        return second is not None and first.dtype == second.dtype and first.dtype.kind not in "iub"
    if is_op(node, "Cast", "CastLike"):
        return _is_castable(first, _cast_type(node, second))
    if is_op(node, "Clip"):
        # A bound that is not given is the largest finite number.
        return (second is not None and len(inputs) > 2 and inputs[2] is not None) or bool(np.all(np.isfinite(first)))
    if is_op(node, "Range"):
        return first.dtype.kind == "i" and all(value is not None and value.size == 1 for value in inputs)
    if is_op(node, "ScatterND"):
        return bool(node.attrs.get("reduction", "none") == "none")
    if is_op(node, "NonZero"):
        return first.ndim > 0
    if is_op(node, "Squeeze"):
        return second is None or second.size > 0
    return not is_op(node, *_REDUCTIONS) or first.size > 0


def _cast_type(node: gs.Node, like: Array | None) -> np.dtype[Any] | None:
    if is_op(node, "CastLike"):
        return None if like is None else like.dtype
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(node.attrs["to"]))
    except (KeyError, TypeError):
        return None


def _is_castable(values: Array, kind: np.dtype[Any] | None) -> bool:
    if kind not in FOLDED_TYPES:
        return False
    if kind.kind not in "iu" or values.dtype.kind in "iub":
        return True
    wide, limits = values.astype(np.float64), np.iinfo(kind)
    # The largest int64 is no float64; the number above it is.
    return bool(np.all(np.isfinite(wide) & (wide >= float(limits.min)) & (wide < float(limits.max) + 1.0)))


def _elements(node: gs.Node, values: _Inputs) -> float:
    """How many elements a result will have at most, where a value says so; else 0."""
    shape = values[_SHAPE_IS_VALUE[node.op]] if node.op in _SHAPE_IS_VALUE and len(values) > _SHAPE_IS_VALUE[node.op] else None
    if shape is not None:
        product = float(np.prod(np.maximum(np.abs(shape.astype(np.float64)), 1.0)))
        return product * max(value.size for value in values if value is not None)
    if node.op == "Range" and len(values) == 3:
        start, limit, delta = (0.0 if value is None else float(value.reshape(-1)[0]) for value in values)
        return abs(limit - start) / abs(delta) if delta else float("inf")
    return 0.0


# Operators whose result is as large as a value says: measured first.
_SHAPE_IS_VALUE = {"ConstantOfShape": 0, "Expand": 1}
