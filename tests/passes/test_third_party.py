"""Networks that others wrote and use: the ERes2Net family of 3D-Speaker, local attention on a concatenation, gated by tanh.

The package requires more than these classes do; ``pip install --no-deps speakerlab-slim==0.1.0`` leaves torch alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from aff_deploy.export import export_onnx
from aff_deploy.passes import optimize
from aff_deploy.spec import TensorSpec
from tests.support import assert_exact_as, randomise_batchnorm

INPUT = TensorSpec("features", ("batch", "frames", 80), example=(2, 120, 80))
MODULE = "speakerlab.models.eres2net"
MISSING = importlib.util.find_spec("speakerlab") is None

slow = pytest.mark.slow
NETWORKS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "ERes2Net": ("ERes2Net", "ERes2Net", {}, 12),
    "ERes2Net, 64 channels": ("ERes2Net", "ERes2Net", {"m_channels": 64}, 12),
    "ERes2NetV2": ("ERes2NetV2", "ERes2NetV2", {}, 10),
    "ERes2NetV2, scale 4": ("ERes2NetV2", "ERes2NetV2", {"baseWidth": 24, "scale": 4, "expansion": 4}, 28),
    "ERes2Net_huge": ("ERes2Net_huge", "ERes2Net", {}, 21),
}
CASES = [
    pytest.param(name, exporter, id=f"{name}, {exporter}", marks=[] if i == 0 and exporter == "torchscript" else slow)
    for i, name in enumerate(NETWORKS)
    for exporter in ("torchscript", "dynamo")
]


@pytest.mark.skipif(MISSING, reason="speakerlab-slim is not installed: pip install --no-deps speakerlab-slim==0.1.0")
@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_every_fusion_of_a_speaker_network(name: str, exporter: str) -> None:
    module, cls, options, count = NETWORKS[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of a docstring in the package
        network = getattr(importlib.import_module(f"{MODULE}.{module}"), cls)(**options).eval()
    randomise_batchnorm(network, 1)
    result = optimize(export_onnx(network, [INPUT], exporter=exporter))
    assert len(result.fusions) == count, result.rejected
    assert {(f.scale, f.context, f.branches, f.activation) for f in result.fusions} == {(2.0, "concat", ("local",), "silu")}
    for frames in (90, 250):
        features = np.random.default_rng(frames).normal(0, 1, (3, frames, 80)).astype(np.float32)
        assert_exact_as(network, [INPUT], result.model, {"features": features})
