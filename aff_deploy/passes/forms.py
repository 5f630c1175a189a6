"""Sums of branches with factors: what arithmetic with constants makes of them, layout and all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from aff_deploy.passes.algebra import is_spread_like, scalar
from aff_deploy.passes.axes import MOVERS, Layout, broadcast, follow
from aff_deploy.passes.branch import Refused
from aff_deploy.passes.fold_batchnorm import read_batchnorm
from aff_deploy.passes.graph import Array, is_op, producer
from aff_deploy.passes.linear import follows_channels, read_weight

Vector: TypeAlias = "float | Array"
"""A number, or one for each channel, in float64."""


@dataclass(frozen=True)
class Form:
    """``sum of (factors[name] * leaf name) + shift``, laid out as `layout` says."""

    layout: Layout
    factors: Mapping[str, Vector]
    shift: Vector = 0.0

    def times(self, factor: Vector) -> Form:
        return replace(self, factors={name: f * factor for name, f in self.factors.items()}, shift=self.shift * factor)

    def plus(self, other: Form, layout: Layout) -> Form:
        names = [*self.factors, *(name for name in other.factors if name not in self.factors)]
        factors = {name: self.factors.get(name, 0.0) + other.factors.get(name, 0.0) for name in names}
        return Form(layout, factors, self.shift + other.shift)


def combined(tensor: gs.Tensor, known: dict[str, Form]) -> Form:
    """`tensor` as a form of the leaves in `known`, which keeps what has been worked out.

    Raises:
        Refused: a step mixes axes, or a constant broadcasts or follows another axis than the channels.
    """
    if tensor.name not in known:
        node = producer(tensor)
        assert node is not None, "the leaves are what was found before the first node that is no arithmetic"
        known[tensor.name] = _combined(node, known)
    return known[tensor.name]


def _combined(node: gs.Node, known: dict[str, Form]) -> Form:
    if is_op(node, *MOVERS):
        form = combined(node.inputs[0], known)
        layout = follow(form.layout, node)
        if layout is None:
            raise _mixes(node)
        return replace(form, layout=layout)
    norm = read_batchnorm(node)
    if norm is not None:
        form = combined(node.inputs[0], known)
        if form.layout.channel_axis != 1 or norm.scale.size != form.layout.sizes["C"]:
            raise _mixes(node)
        scaled = form.times(norm.scale)
        return replace(scaled, shift=scaled.shift + norm.shift)
    numbers = {i for i, tensor in enumerate(node.inputs) if scalar(tensor) is not None or read_weight(tensor) is not None}
    forms = {i: combined(tensor, known) for i, tensor in enumerate(node.inputs) if i not in numbers}
    layout = next(iter(forms.values())).layout
    for form in forms.values():
        both = broadcast(layout, form.layout)
        if both is None:
            raise _mixes(node)
        layout = both
    if is_op(node, "Mul", "Div"):
        ((i, form),) = forms.items()
        factor = _value(node, 1 - i, layout)
        if is_op(node, "Div") and not np.all(factor):
            raise Refused(f"the logits are divided by {node.inputs[1].name!r}, which holds a zero")
        return replace(form.times(1.0 / factor if is_op(node, "Div") else factor), layout=layout)
    total = Form(layout, {})
    for i, tensor in enumerate(node.inputs):
        sign = -1.0 if is_op(node, "Neg") or (is_op(node, "Sub") and i == 1) else 1.0
        part = forms[i] if i in forms else Form(layout, {}, _value(node, i, layout))
        assert not tensor.is_empty()
        total = total.plus(part.times(sign), layout)
    return total


def _value(node: gs.Node, index: int, layout: Layout) -> Vector:
    """The constant input of a node as a number or a vector over the channels of the tensor beside it."""
    tensor = node.inputs[index]
    number, weight = scalar(tensor), read_weight(tensor)
    if weight is None:
        if number is None or not (is_spread_like(node, tensor) or layout.holds(tensor.shape)):
            raise Refused(f"{tensor.name!r} of shape {tensor.shape} may broadcast the logits")
        return number
    if number is not None and not layout.holds(tensor.shape):
        raise Refused(f"the constant {tensor.name!r} of shape {list(tensor.shape)} broadcasts the logits")
    if number is not None:
        return number
    if not follows_channels(layout, weight):
        raise Refused(f"{tensor.name!r} of shape {list(weight.shape)} does not follow the channels of the logits alone")
    values = weight.values().reshape(-1)
    return float(values[0]) if values.size == 1 else values


def _mixes(node: gs.Node) -> Refused:
    name = node.outputs[0].name
    return Refused(f"a branch that ends in {name!r} mixes axes as no 1x1 convolution does", near=False)
