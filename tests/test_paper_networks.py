"""The ImageNet networks of the paper, end to end: both exporters, static and dynamic batch, against eager PyTorch."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch

from aff_deploy import nets
from aff_deploy.export import EXPORTERS, export_onnx
from aff_deploy.onnx_file import check_onnx
from aff_deploy.passes import optimize
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from aff_deploy.runtimes.pytorch import PyTorchRunner
from aff_deploy.spec import TensorSpec, Tolerance
from aff_deploy.validate import seeded_feeds, validate
from tests.passes.graphs import assert_settled
from tests.support import randomise_batchnorm

NETWORKS = ("aff_resnet50", "iaff_resnet50", "aff_resnext50_32x4d", "iaff_resnext50_32x4d")
TOLERANCE = Tolerance(atol=0.0, rtol=1e-4, min_cosine=0.99999)


# Every two of network, exporter and kind of batch together; all three in the long run.
CASES = [
    pytest.param(name, exporter, batch, marks=[pytest.mark.slow] * ((i + j + k) % 2))
    for i, name in enumerate(NETWORKS)
    for j, exporter in enumerate(EXPORTERS)
    for k, batch in enumerate(("batch", 1))
]


@cache
def network(name: str) -> torch.nn.Module:
    module: torch.nn.Module = getattr(nets, name)().eval()
    randomise_batchnorm(module, seed=3)
    return module


@pytest.mark.parametrize(("name", "exporter", "batch"), CASES)
def test_nine_fusions_no_batchnorm_same_outputs(name: str, exporter: str, batch: str | int) -> None:
    module = network(name)
    inputs = (TensorSpec("image", (batch, 3, 64, 64), example=(2 if isinstance(batch, str) else batch, 3, 64, 64)),)
    result = optimize(export_onnx(module, inputs, exporter=exporter, verify=False))
    assert_settled(result.model)
    check_onnx(result.model)
    kind = "iaff" if name.startswith("iaff") else "aff"
    assert Counter(fusion.kind for fusion in result.fusions) == {kind: 9}
    assert result.rejected == ()
    assert all(node.op_type != "BatchNormalization" for node in result.model.graph.node)
    with OnnxRuntimeRunner(result.model, threads=1) as candidate:
        reference = PyTorchRunner(module, inputs)
        # A dynamic batch is tried as 1 and as 3.
        report = validate(reference, candidate, seeded_feeds(inputs, samples=4), TOLERANCE, metamorphic=False)
    assert report.passed, report.failures
