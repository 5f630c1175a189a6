"""The nonlinearity inside a branch, as one operator or spelled out in several."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from aff_deploy.passes.algebra import ONE, agree, combine, leaf, polynomial_in, precision
from aff_deploy.passes.gates import clip_bounds
from aff_deploy.passes.graph import is_op, producer
from aff_deploy.passes.linear import Weight, read_weight


@dataclass(frozen=True)
class Activation:
    """Which function, its parameter, the nodes that compute it, and the tensor it is of.

    Attributes:
        name: a name of `aff_deploy.ops.operator.ACTIVATIONS`.
        alpha: the slope of LeakyRelu or Elu; 0 for the others.
        slope: the learned slopes of PRelu, or None.
    """

    name: str
    before: gs.Tensor
    nodes: tuple[gs.Node, ...]
    alpha: float = 0.0
    slope: Weight | None = None


_RELATIVE = {"float16": 2**-10, "bfloat16": 2**-7}
"""Twice the rounding error of a number in a narrow type."""
_SIMPLE = ("Relu", "Tanh", "Sigmoid", "HardSwish", "Mish")


def read_activation(tensor: gs.Tensor) -> Activation | None:
    """The activation whose output is `tensor`, or None."""
    node = producer(tensor)
    if node is None:
        return None
    if is_op(node, *_SIMPLE):
        return Activation(node.op, node.inputs[0], (node,))
    if is_op(node, "LeakyRelu", "Elu"):
        default = {"LeakyRelu": 0.01, "Elu": 1.0}[node.op]
        return Activation(node.op, node.inputs[0], (node,), float(node.attrs.get("alpha", default)))
    if is_op(node, "Gelu"):
        exact = node.attrs.get("approximate", "none") == "none"
        return Activation("Gelu", node.inputs[0], (node,)) if exact else None
    if is_op(node, "PRelu"):
        slope = read_weight(node.inputs[1])
        return None if slope is None else Activation("PRelu", node.inputs[0], (node,), slope=slope)
    if is_op(node, "Clip") and clip_bounds(node) == (0.0, 6.0):
        return Activation("Relu6", node.inputs[0], (node,))
    return _read_product(tensor)


def _read_product(tensor: gs.Tensor) -> Activation | None:
    """``t * f(t)`` or ``t * (1 + f(t)) / 2``, in whatever order and grouping it is written."""
    for gate in _gates_behind(tensor):
        nodes: list[gs.Node] = []
        polynomial = polynomial_in(tensor, {gate.of.name, gate.value.name}, nodes)
        product = tuple(sorted((gate.of.name, gate.value.name)))
        want = {product: gate.share} if gate.name != "Gelu" else {(gate.of.name,): 0.5, product: 0.5}
        if polynomial is not None and agree(polynomial, want, precision(tensor)):
            return Activation(gate.name, gate.of, (*nodes, *gate.nodes))
    return None


@dataclass(frozen=True)
class _Gate:
    """f(t): the activation it is part of, t, f(t), the nodes that compute f, and the factor of ``t f(t)`` in the activation."""

    name: str
    of: gs.Tensor
    value: gs.Tensor
    nodes: tuple[gs.Node, ...]
    share: float = 1.0


def _gates_behind(tensor: gs.Tensor) -> Iterator[_Gate]:
    """The nonlinear factors of a product of few operators."""
    frontier = [tensor]
    for _ in range(16):
        if not frontier:
            return
        node = producer(frontier.pop(0))
        gate = None if node is None else _gate(node)
        if gate is not None:
            yield gate
        elif node is not None and is_op(node, "Mul", "Add", "Div"):
            frontier.extend(tensor for tensor in node.inputs if tensor.inputs)


def _gate(node: gs.Node) -> _Gate | None:
    if is_op(node, "Sigmoid"):
        return _Gate("Silu", node.inputs[0], node.outputs[0], (node,))
    if is_op(node, "HardSigmoid"):
        slopes = (node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5))
        fits = math.isclose(slopes[0], 1 / 6, rel_tol=precision(node.inputs[0])) and slopes[1] == 0.5
        return _Gate("HardSwish", node.inputs[0], node.outputs[0], (node,)) if fits else None
    inner = producer(node.inputs[0]) if is_op(node, "Tanh", "Erf", "Clip") else None
    if inner is None:
        return None
    if is_op(node, "Clip") and clip_bounds(node) == (0.0, 6.0):
        # t * relu6(t + 3) / 6
        shifted = combine(inner, leaf) or {}
        t = next((t for t in inner.inputs if agree(shifted, {(t.name,): 1.0, ONE: 3.0}, precision(t))), None)
        return None if t is None else _Gate("HardSwish", t, node.outputs[0], (node, inner), 1.0 / 6.0)
    if is_op(node, "Tanh") and is_op(inner, "Softplus"):
        return _Gate("Mish", inner.inputs[0], node.outputs[0], (node, inner))
    if is_op(node, "Erf") and is_op(inner, "Mul", "Div"):
        for t in inner.inputs:
            factor = combine(inner, leaf)
            # In half precision the constant is as coarse as that.
            coarse = _RELATIVE.get(str(t.dtype), precision(t))
            if factor is not None and math.isclose(factor.get((t.name,), 0.0), math.sqrt(0.5), rel_tol=coarse):
                return _Gate("Gelu", t, node.outputs[0], (node, inner))
    return None
