"""The ImageNet networks of the paper, end to end: both exporters, static and dynamic batch, against eager PyTorch."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from aff_deploy import nets
from aff_deploy.export import export_onnx
from aff_deploy.onnx_file import check_onnx
from aff_deploy.passes import optimize
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from aff_deploy.runtimes.pytorch import PyTorchRunner
from aff_deploy.spec import TensorSpec, Tolerance
from aff_deploy.validate import seeded_feeds, validate
from tests.support import randomise_batchnorm

NETWORKS = ("aff_resnet50", "iaff_resnet50", "aff_resnext50_32x4d", "iaff_resnext50_32x4d")
TOLERANCE = Tolerance(atol=0.0, rtol=1e-4, min_cosine=0.99999)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[str, torch.nn.Module]:
    module = getattr(nets, request.param)().eval()
    randomise_batchnorm(module, seed=3)
    return request.param, module


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("batch", ["batch", 1])
def test_nine_fusions_no_batchnorm_same_outputs(network: tuple[str, torch.nn.Module], exporter: str, batch: str | int) -> None:
    name, module = network
    inputs = (TensorSpec("image", (batch, 3, 64, 64), example=(2 if isinstance(batch, str) else batch, 3, 64, 64)),)
    result = optimize(export_onnx(module, inputs, exporter=exporter, verify=False))
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
