"""The numpy definition against PyTorch, written down independently."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aff_deploy.ops import Variant
from aff_deploy.ops.operator import ACTIVATIONS
from aff_deploy.ops.reference import attentional_fusion
from tests.ops.fusions import arrays_of

TORCH: dict[str, Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]] = {
    "Relu": lambda t, _: F.relu(t),
    "Relu6": lambda t, _: F.relu6(t),
    "LeakyRelu": lambda t, _: F.leaky_relu(t, 0.3),
    "PRelu": lambda t, slope: F.prelu(t, slope.flatten() if slope is not None else torch.zeros(1)),
    "Elu": lambda t, _: F.elu(t, 0.3),
    "Silu": lambda t, _: F.silu(t),
    "HardSwish": lambda t, _: F.hardswish(t),
    "Gelu": lambda t, _: F.gelu(t),
    "Mish": lambda t, _: F.mish(t),
    "Tanh": lambda t, _: torch.tanh(t),
    "Sigmoid": lambda t, _: torch.sigmoid(t),
}


def in_torch(variant: Variant, arrays: dict[str, np.ndarray], scale: float) -> np.ndarray:
    """Equations 3 to 5 of the paper with torch's own operators, in float64."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    x = tensors["x"]
    context = {"sum": lambda: x + tensors["y"], "self": lambda: x, "explicit": lambda: tensors["a"]}[variant.context]()
    conv = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.ndim]
    pool = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}[x.ndim]
    logits = torch.zeros_like(x)
    for branch in variant.branches:
        t = pool(context, 1) if branch == "global" else context
        t = conv(t, tensors[f"{branch}_w1"], tensors[f"{branch}_b1"])
        t = TORCH[variant.activation](t, tensors.get(f"{branch}_slope"))
        logits = logits + conv(t, tensors[f"{branch}_w2"], tensors[f"{branch}_b2"])
    weight = torch.sigmoid(logits) if variant.gate == "Sigmoid" else F.hardsigmoid(logits)
    out = x * weight + tensors["y"] * (1 - weight) if variant.blend else x * weight
    return (scale * out).numpy()


BASES = [
    Variant(context, blend, branches)  # type: ignore[arg-type]
    for context, blend, branches in product(
        ("sum", "self", "explicit"), (True, False), (("local", "global"), ("local",), ("global",))
    )
    if blend or context != "sum"
]
CASES = [
    *BASES,
    *(Variant(activation=activation) for activation in ACTIVATIONS),
    *(Variant(context="self", blend=False, activation=activation) for activation in ACTIVATIONS),
    *(Variant(context=base.context, blend=base.blend, branches=base.branches, gate="HardSigmoid") for base in BASES),
]


@pytest.mark.parametrize("variant", CASES, ids=lambda variant: f"{variant.op_type}-{variant.context}")
def test_agrees_with_torch(variant: Variant) -> None:
    for spatial, scale in product([(5, 6), (7,), (2, 3, 4), (1, 1)], (1.0, 2.0, 0.7)):
        arrays = arrays_of(variant, spatial=spatial, batch=3, seed=len(spatial))
        ours = attentional_fusion(variant, arrays, scale=scale, alpha=0.3)
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, in_torch(variant, arrays, scale), rtol=1e-9, atol=1e-12)


def test_leaky_slope_by_default_is_that_of_onnx() -> None:
    variant = Variant(activation="LeakyRelu")
    arrays = arrays_of(variant)
    np.testing.assert_array_equal(attentional_fusion(variant, arrays), attentional_fusion(variant, arrays, alpha=0.01))


def test_large_logits_neither_overflow_nor_warn() -> None:
    variant = Variant()
    arrays = arrays_of(variant)
    for bias, winner in ((1e4, "x"), (-1e4, "y")):
        arrays["local_b2"] = np.full_like(arrays["local_b2"], bias)
        np.testing.assert_allclose(attentional_fusion(variant, arrays), arrays[winner], atol=1e-12)


def test_lower_precision_in_is_computed_in_float64() -> None:
    variant = Variant()
    arrays = {name: array.astype(np.float16) for name, array in arrays_of(variant).items()}
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    np.testing.assert_array_equal(attentional_fusion(variant, arrays), attentional_fusion(variant, wide))


def test_a_missing_input_is_named() -> None:
    arrays = arrays_of(Variant())
    del arrays["local_b2"]
    with pytest.raises(KeyError, match="local_b2"):
        attentional_fusion(Variant(), arrays)
