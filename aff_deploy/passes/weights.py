"""The fused operator's weights: those of a site's linear maps, with the factors and shifts around them.

Factors that stand before the branches or the context, and constants added to the logits, go into the
weights, in float64 and rounded once; a weight that needs no change stays the constant it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from aff_deploy.passes.activations import Activation
from aff_deploy.passes.branch import Refused
from aff_deploy.passes.forms import Vector
from aff_deploy.passes.graph import Array
from aff_deploy.passes.linear import Linear
from aff_deploy.passes.logits import Term
from aff_deploy.passes.rounding import merge_bias, merge_weights

# Linear maps of the same values, each with its factor.
_Parts: TypeAlias = "tuple[tuple[Linear, Vector], ...]"


@dataclass(frozen=True)
class NewWeight:
    """A weight that the graph does not have: equal ones have one key. What the key is made of is kept with it."""

    key: tuple[object, ...]
    name: str
    values: Array
    source: object


Weight: TypeAlias = "gs.Constant | NewWeight"


@dataclass(frozen=True)
class WeightMaker:
    """Makes the weights of the sites of one graph; `made` holds what was made, by key."""

    made: dict[tuple[object, ...], NewWeight]

    def of(self, terms: tuple[Term, ...], context_factor: float, x: gs.Tensor) -> tuple[Weight, ...]:
        """w1, b1, w2, b2 and, for PRelu, the slopes of each branch, in the type of `x`.

        Raises:
            Refused: a product does not fit that type.
        """
        found: list[Weight] = []
        for term in terms:
            branch = term.branch
            second = ((branch.second, term.factor), *term.more)
            found += [self._matrix(((branch.first, context_factor),), x), self._bias(((branch.first, 1.0),), x, 0.0)]
            found += [self._matrix(second, x), self._bias(second, x, term.shift)]
            if branch.activation.slope is not None:
                found.append(self._slope(branch.activation, branch.first.channels_out, x))
        return tuple(found)

    def _matrix(self, parts: _Parts, x: gs.Tensor) -> Weight:
        """The sum of the parts' matrices with their factors, as a convolution has it."""
        ((linear, factor), *more) = parts
        matrix, dtype = linear.constant_weight, x.dtype
        shape = (linear.channels_out, linear.channels_in, *[1] * (len(x.shape) - 2))
        kept = matrix is not None and matrix.dtype == dtype and tuple(matrix.shape) == shape
        if matrix is not None and kept and not more and np.all(factor == 1.0):
            return matrix

        def values() -> Array:
            matrices = [part.matrix_and_bias()[0] * np.reshape(by, (-1, 1)) for part, by in parts]
            return np.asarray(np.sum(matrices, axis=0).reshape(shape))

        key = (_key(parts), "w", len(shape), str(dtype))
        return self._make(key, linear.weight.constant.name, parts, lambda: merge_weights(values, dtype), dtype)

    def _bias(self, parts: _Parts, x: gs.Tensor, shift: Vector) -> Weight:
        """Likewise the biases, and the shift."""
        ((linear, factor), *more) = parts
        bias, dtype = linear.constant_bias, x.dtype
        if bias is not None and bias.dtype == dtype and not more and np.all(factor == 1.0) and not np.any(shift):
            return bias

        def values() -> Array:
            return np.asarray(np.sum([part.matrix_and_bias()[1] * by for part, by in parts], axis=0) + shift)

        name = f"{linear.weight.constant.name}_bias" if linear.bias is None else linear.bias.constant.name
        key = (_key(parts), "b", np.asarray(shift).tobytes(), str(dtype))
        return self._make(key, name, parts, lambda: merge_bias(values, dtype), dtype)

    def _slope(self, activation: Activation, channels: int, x: gs.Tensor) -> Weight:
        slope, dtype = activation.slope, x.dtype
        assert slope is not None
        shape = (channels, *[1] * (len(x.shape) - 2))
        constant = slope.constant
        if not slope.steps and constant.dtype == dtype and tuple(constant.shape) == shape:
            return constant

        def values() -> Array:
            return np.broadcast_to(slope.values().reshape(-1), shape[:1]).reshape(shape)

        key = (slope.key, "slope", shape, str(dtype))
        return self._make(key, constant.name, slope, lambda: merge_weights(values, dtype), dtype)

    def _make(
        self, key: tuple[object, ...], name: str, source: object, values: Callable[[], Array | None], dtype: np.dtype[Any]
    ) -> NewWeight:
        if key not in self.made:
            merged = values()
            if merged is None:
                raise Refused(f"{name!r} with the factors around it overflows {dtype}, or is too small to keep its precision")
            self.made[key] = NewWeight(key, name, merged, source)
        return self.made[key]


def _key(parts: _Parts) -> tuple[object, ...]:
    return tuple((linear.key, np.asarray(factor, dtype=np.float64).tobytes()) for linear, factor in parts)
