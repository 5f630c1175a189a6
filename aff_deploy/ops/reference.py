"""The operator in numpy, in float64: the one definition everything else is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aff_deploy.ops.operator import Variant

Array = NDArray[Any]


def attentional_fusion(variant: Variant, inputs: Mapping[str, Array], *, scale: float = 1.0, alpha: float = 0.01) -> Array:
    """``scale * (x * w + y * (1 - w))``, or ``scale * x * w`` without y (Dai et al., WACV 2021, eq. 3 to 5).

    Args:
        variant: which operator.
        inputs: arrays by the names of ``variant.inputs``: x, y, a are N x C x spatial (any number of
            spatial axes), weights are 1x1 convolutions out x in x 1..., biases are 1-D.
        scale: the factor s.
        alpha: parameter of LeakyRelu or Elu.

    Returns:
        float64, N x C x spatial; split, the shares of x and y stacked: 2 x N x C x spatial.
    """
    arrays = {name: np.asarray(inputs[name], dtype=np.float64) for name in variant.inputs}
    x = arrays["x"]
    a = arrays["a"] if variant.context == "explicit" else x if variant.context == "self" else x + arrays["y"]
    z = np.zeros(())
    for branch in variant.branches:
        source = a if branch == "local" else a.mean(axis=tuple(range(2, a.ndim)), keepdims=True)
        t = _pointwise(source, arrays[f"{branch}_w1"], arrays[f"{branch}_b1"])
        hidden = _activate(t, variant.activation, alpha, arrays.get(f"{branch}_slope"))
        z = z + _pointwise(hidden, arrays[f"{branch}_w2"], arrays[f"{branch}_b2"])
    w = _sigmoid(z) if variant.gate == "Sigmoid" else np.clip(z / 6.0 + 0.5, 0.0, 1.0)
    if variant.split:
        return scale * np.stack((x * w, arrays["y"] * (1.0 - w)))
    out: Array = x * w + arrays["y"] * (1.0 - w) if variant.blend else x * w
    return scale * out


def _pointwise(x: Array, weight: Array, bias: Array) -> Array:
    mixed = np.einsum("oc,nc...->no...", weight.reshape(weight.shape[:2]), x)
    return np.asarray(mixed + bias.reshape(-1, *[1] * (x.ndim - 2)))


def _sigmoid(z: Array) -> Array:
    # Of the two algebraically equal forms, each side takes the one whose exponential cannot overflow.
    decay = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, decay) / (1.0 + decay)


def _activate(t: Array, activation: str, alpha: float, slope: Array | None) -> Array:
    if activation == "Gelu":
        erf: Array = np.vectorize(math.erf, otypes=[np.float64])(t * math.sqrt(0.5))
        return 0.5 * t * (1.0 + erf)
    if activation == "PRelu":
        return np.where(t >= 0, t, t * (np.zeros(1) if slope is None else slope))
    functions: Mapping[str, Callable[[], Array]] = {
        "Relu": lambda: np.maximum(t, 0.0),
        "Relu6": lambda: np.clip(t, 0.0, 6.0),
        "LeakyRelu": lambda: np.where(t >= 0, t, alpha * t),
        "Elu": lambda: np.where(t >= 0, t, alpha * np.expm1(np.minimum(t, 0.0))),
        "Silu": lambda: t * _sigmoid(t),
        "HardSwish": lambda: t * np.clip(t / 6.0 + 0.5, 0.0, 1.0),
        "Mish": lambda: t * np.tanh(np.logaddexp(0.0, t)),
        "Tanh": lambda: np.tanh(t),
        "Sigmoid": lambda: _sigmoid(t),
    }
    return functions[activation]()
