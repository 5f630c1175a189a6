"""What may be the gate w: a sigmoid, a tanh read as one, a hard sigmoid, a clip read as one.

tanh(t) = 2 sigmoid(2 t) - 1
clip(alpha t + beta, 0, 1) = hardsigmoid(6 alpha t + 6 beta - 3),  hardsigmoid(z) = clip(z / 6 + 1 / 2, 0, 1)
clip(t, low, high) = low + (high - low) hardsigmoid(6 (t - low) / (high - low) - 3)
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from aff_deploy.ops.operator import Gate as GateName
from aff_deploy.passes.algebra import ONE, Polynomial, add, constant
from aff_deploy.passes.graph import is_absent, is_op, uniform_value


@dataclass(frozen=True)
class Gate:
    """A node that makes w, up to an affine map before and behind.

    Attributes:
        node: the operator.
        name: which function w is of its logits.
        factor, shift: the logits are ``factor * t + shift`` of the operator's input t.
        value: the operator's output as a polynomial in w, which goes by the output's name.
    """

    node: gs.Node
    name: GateName
    factor: float
    shift: float
    value: Polynomial

    @property
    def output(self) -> gs.Tensor:
        return self.node.outputs[0]


def read_gate(node: gs.Node) -> Gate | None:
    """The gate that `node` is, or None."""
    if not is_op(node, "Sigmoid", "Tanh", "HardSigmoid", "Clip"):
        return None
    w = (node.outputs[0].name,)
    if node.op == "Clip":
        return _read_clip(node)
    if node.op == "Sigmoid":
        return Gate(node, "Sigmoid", 1.0, 0.0, {w: 1.0})
    if node.op == "Tanh":
        return Gate(node, "Sigmoid", 2.0, 0.0, {w: 2.0, ONE: -1.0})
    alpha, beta = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
    # 1/6 as a float32 is not quite 1/6; a factor that is one up to that is one.
    factor = 6.0 * alpha
    return Gate(node, "HardSigmoid", 1.0 if abs(factor - 1.0) < 1e-6 else factor, 6.0 * beta - 3.0, {w: 1.0})


def clip_bounds(node: gs.Node) -> tuple[float, float] | None:
    """The bounds of a Clip, if it has two and they are numbers."""
    bounds = [None if is_absent(node.inputs, i) else uniform_value(node.inputs[i]) for i in (1, 2)]
    return None if bounds[0] is None or bounds[1] is None else (bounds[0], bounds[1])


def _read_clip(node: gs.Node) -> Gate | None:
    low, high = clip_bounds(node) or (0.0, 0.0)
    if not low < high:
        return None
    span = high - low
    value = add({(node.outputs[0].name,): span}, constant(low))
    return Gate(node, "HardSigmoid", 6.0 / span, -6.0 * low / span - 3.0, value)
