"""Linear maps over the channels: Conv 1x1, Gemm and MatMul with constant weights, read as one thing."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

from aff_deploy.passes.axes import Layout
from aff_deploy.passes.graph import Array, is_absent, is_op, producer


@dataclass(frozen=True)
class _Dequantize:
    """``(q - zero_point) * scale``, both numbers or vectors along `axis`."""

    scale: gs.Constant
    zero_point: gs.Constant | None
    axis: int

    def __call__(self, quantised: Array) -> Array:
        shape = [1] * quantised.ndim
        if np.asarray(self.scale.values).size > 1:
            shape[self.axis] = -1
        zero = 0.0 if self.zero_point is None else np.asarray(self.zero_point.values).astype(np.float64).reshape(shape)
        return np.asarray((quantised - zero) * np.asarray(self.scale.values).astype(np.float64).reshape(shape))

    @property
    def key(self) -> tuple[object, ...]:
        return (id(self.scale), id(self.zero_point), self.axis)


@dataclass(frozen=True)
class _Round:
    """To the nearest number of a floating type."""

    elem_type: int

    def __call__(self, values: Array) -> Array:
        with np.errstate(all="ignore"):
            return values.astype(helper.tensor_dtype_to_np_dtype(self.elem_type)).astype(np.float64)


_KEEPS_VALUES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
"""Types to which a Cast changes a weight by rounding alone."""

# What stands between a constant and its use: a transposition's order, a dequantisation, or a rounding.
_Step: TypeAlias = "tuple[int, ...] | _Dequantize | _Round"


@dataclass(frozen=True)
class Weight:
    """A constant, perhaps behind Identity, Cast, Transpose or DequantizeLinear; `steps` are the latter three, nearest first."""

    constant: gs.Constant
    steps: tuple[_Step, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        shape = tuple(int(dim) for dim in self.constant.shape)
        for step in self.steps:
            shape = tuple(shape[i] for i in step) if isinstance(step, tuple) else shape
        return shape

    def values(self) -> Array:
        """The values in float64."""
        array = np.asarray(self.constant.values).astype(np.float64)
        for step in self.steps:
            array = np.transpose(array, step) if isinstance(step, tuple) else step(array)
        return array

    @property
    def key(self) -> tuple[object, ...]:
        return (id(self.constant), tuple(step.key if isinstance(step, _Dequantize) else step for step in self.steps))


def read_weight(tensor: gs.Tensor) -> Weight | None:
    """The constant that `tensor` comes from through Identity, Cast, Transpose and DequantizeLinear; None if from elsewhere."""
    nodes: list[gs.Node] = []
    while not isinstance(tensor, gs.Constant):
        node = producer(tensor)
        if node is None or not is_op(node, "Identity", "Transpose", "Cast", "DequantizeLinear"):
            return None
        nodes.append(node)
        tensor = node.inputs[0]
    weight = Weight(tensor)
    for node in reversed(nodes):
        if is_op(node, "Identity"):
            continue
        step = _read_step(node, weight.shape)
        rounds_product = isinstance(step, _Round) and any(isinstance(other, _Dequantize) for other in weight.steps)
        # A product of its own rounding, rounded again: not to be repeated to the bit.
        if step is None or rounds_product:
            return None
        weight = Weight(tensor, (*weight.steps, step))
    return weight


def _read_step(node: gs.Node, shape: tuple[int, ...]) -> _Step | None:
    """What a Cast, Transpose or DequantizeLinear does to values of `shape`; None where that is not known, or does not fit."""
    if is_op(node, "Cast"):
        return _Round(node.attrs["to"]) if node.attrs["to"] in _KEEPS_VALUES else None
    if is_op(node, "Transpose"):
        order = tuple(node.attrs.get("perm") or range(len(shape) - 1, -1, -1))
        return order if sorted(order) == list(range(len(shape))) else None
    scale, zero_point = node.inputs[1], None if is_absent(node.inputs, 2) else node.inputs[2]
    if not all(isinstance(tensor, gs.Constant) for tensor in (scale, zero_point) if tensor is not None):
        return None
    if node.attrs.get("block_size", 0) or (zero_point is not None and tuple(zero_point.shape) != tuple(scale.shape)):
        return None
    axis = node.attrs.get("axis", 1)
    along = tuple(scale.shape) == shape[axis : axis + 1 or None]
    return _Dequantize(scale, zero_point, axis) if along or math.prod(scale.shape) == 1 else None


@dataclass(frozen=True)
class Linear:
    """``y = M x + b`` over the channels.

    Attributes:
        node: the operator.
        weight: its weights; `stored_in_out` if they are a matrix in x out rather than out x in.
        bias: its own bias, or None.
        factor: Gemm's alpha.
        affine: what follows it, in order: an operation on the result y and a vector or scalar v, "Add",
            "Sub", "Mul" or "Div", or "From" for ``v - y``.
    """

    node: gs.Node
    weight: Weight
    bias: Weight | None
    stored_in_out: bool = False
    factor: float = 1.0
    affine: tuple[tuple[str, Weight], ...] = ()

    @property
    def channels_out(self) -> int:
        return self.weight.shape[-1 if self.stored_in_out else self._row]

    @property
    def channels_in(self) -> int:
        return self.weight.shape[-2 if self.stored_in_out else self._row + 1]

    @property
    def _row(self) -> int:
        """The axis of the output channels: the first of a convolution's weights, the last but one of a matrix."""
        return 0 if is_op(self.node, "Conv", "Gemm") else len(self.weight.shape) - 2

    @property
    def constant_weight(self) -> gs.Constant | None:
        """The constant that already is this map's matrix as a convolution has it; None where it must be made."""
        plain = is_op(self.node, "Conv") and not self.weight.steps and all(op in ("Add", "Sub") for op, _ in self.affine)
        return self.weight.constant if plain else None

    @property
    def constant_bias(self) -> gs.Constant | None:
        """Likewise the bias."""
        plain = self.constant_weight is not None and self.bias is not None and not self.bias.steps and not self.affine
        return self.bias.constant if plain and self.bias is not None else None

    @property
    def key(self) -> tuple[object, ...]:
        bias = None if self.bias is None else self.bias.key
        return (self.weight.key, bias, self.stored_in_out, self.factor, tuple((op, v.key) for op, v in self.affine))

    def matrix_and_bias(self) -> tuple[Array, Array]:
        """M, out x in, and b, out, in float64."""
        stored = self.weight.values()
        shape = (self.channels_in, self.channels_out) if self.stored_in_out else (self.channels_out, self.channels_in)
        matrix = stored.reshape(shape)
        matrix = self.factor * (matrix.T if self.stored_in_out else matrix)
        bias = np.zeros(self.channels_out) if self.bias is None else self._beta * self.bias.values().reshape(-1)
        for op, vector in self.affine:
            values = vector.values().reshape(-1)
            if op in ("Mul", "Div"):
                values = values if op == "Mul" else 1.0 / values
                matrix, bias = matrix * values[:, None], bias * values
            else:
                sign = -1.0 if op == "From" else 1.0
                matrix, bias = sign * matrix, sign * bias + (-values if op == "Sub" else values)
        return matrix, np.broadcast_to(bias, (self.channels_out,))

    @property
    def _beta(self) -> float:
        return float(self.node.attrs.get("beta", 1.0)) if is_op(self.node, "Gemm") else 1.0

    def with_affine(self, affine: list[tuple[str, Weight]]) -> Linear:
        return replace(self, affine=tuple(affine))


LINEAR = ("Conv", "Gemm", "MatMul")


def read_linear(node: gs.Node) -> tuple[Linear, gs.Tensor] | str:
    """A linear operator and the tensor it reads, or why it is not one over channels with constant weights."""
    if is_op(node, "MatMul"):
        right, left = read_weight(node.inputs[1]), read_weight(node.inputs[0])
        weight = right or left
        if weight is None or any(dim != 1 for dim in weight.shape[:-2]) or len(weight.shape) < 2:
            return _not_constant(node.inputs[1])
        return Linear(node, weight, None, stored_in_out=right is not None), node.inputs[0 if right is not None else 1]
    weight = read_weight(node.inputs[1])
    bias = None if is_absent(node.inputs, 2) else read_weight(node.inputs[2])
    if weight is None:
        return _not_constant(node.inputs[1])
    if bias is None and not is_absent(node.inputs, 2):
        return _not_constant(node.inputs[2])
    if is_op(node, "Gemm"):
        in_out = not node.attrs.get("transB", 0)
        linear = Linear(node, weight, bias, in_out, float(node.attrs.get("alpha", 1.0)))
        plain = len(weight.shape) == 2 and not node.attrs.get("transA", 0)
        fits = plain and (bias is None or bias.shape in _rows(linear.channels_out))
        return (linear, node.inputs[0]) if fits else "it is not a plain linear layer"
    if len(weight.shape) < 3 or (bias is not None and bias.shape != weight.shape[:1]):
        return "its weights do not have the shape of a convolution's"
    kernel = weight.shape[2:]
    if any(size != 1 for size in kernel):
        return f"it has a {'x'.join(map(str, kernel))} kernel; the operator needs 1x1"
    if node.attrs.get("group", 1) != 1:
        return f"it has {node.attrs['group']} groups; the operator needs one"
    if any(step != 1 for step in node.attrs.get("strides", ())):
        return "it has a stride; the operator needs stride 1"
    if any(node.attrs.get("pads", ())):
        return "it pads its input; the operator needs no padding"
    return Linear(node, weight, bias), node.inputs[0]


def _rows(channels: int) -> tuple[tuple[int, ...], ...]:
    """The shapes of a bias that is the same for every row of a matrix product."""
    return (), (1,), (channels,), (1, 1), (1, channels)


def _not_constant(tensor: gs.Tensor) -> str:
    while is_op(producer(tensor), "Identity", "Cast", "Transpose"):
        tensor = tensor.inputs[0].inputs[0]
    if producer(tensor) is None and not isinstance(tensor, gs.Constant):
        return f"its weight {tensor.name!r} is an input of the model, which a caller may override; take it off the inputs"
    return "its weights are computed, not constant"


def follow_linear(layout: Layout, linear: Linear) -> Layout | None:
    """The layout behind a linear operator, given the one before it; None if it mixes other axes."""
    axis, rank = layout.channel_axis, len(layout.axes)
    if axis is None or layout.sizes.get("C") != linear.channels_in:
        return None
    if is_op(linear.node, "Conv"):
        fits = axis == 1 and rank == len(linear.weight.shape)
    elif is_op(linear.node, "Gemm"):
        fits = axis == 1 and rank == 2
    else:
        # A weight of more axes would give the product as many.
        fits = axis == (rank - 1 if linear.stored_in_out else rank - 2) and len(linear.weight.shape) <= rank
    return layout.with_channels(linear.channels_out) if fits else None


def read_affine(node: gs.Node) -> tuple[str, Weight, gs.Tensor] | None:
    """Arithmetic with a constant vector or number: the word for it in `Linear.affine`, the constant, the tensor."""
    if not is_op(node, "Add", "Sub", "Mul", "Div"):
        return None
    for i, (tensor, other) in enumerate((node.inputs, node.inputs[::-1])):
        weight = read_weight(other)
        if weight is None or sum(dim != 1 for dim in weight.shape) > 1 or read_weight(tensor) is not None:
            continue
        if is_op(node, "Div"):
            return (node.op, weight, tensor) if i == 0 and bool(np.all(weight.values() != 0.0)) else None
        return ("From" if is_op(node, "Sub") and i == 1 else node.op), weight, tensor
    return None


def follows_channels(layout: Layout, weight: Weight) -> bool:
    """Whether a broadcast constant varies along the channel axis of `layout` alone, or not at all."""
    axis = layout.channel_axis
    if axis is None or len(weight.shape) > len(layout.axes):
        return False
    padded = (1,) * (len(layout.axes) - len(weight.shape)) + weight.shape
    return all(dim == 1 or (i == axis and dim == layout.sizes.get("C")) for i, dim in enumerate(padded))
