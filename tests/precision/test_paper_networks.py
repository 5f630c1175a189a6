"""The ImageNet networks of the paper at full size in half precision, against eager PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aff_deploy import nets
from aff_deploy.export import export_onnx
from aff_deploy.passes import optimize
from aff_deploy.runtimes import Array
from aff_deploy.spec import TOLERANCES, Precision, TensorSpec
from tests.precision.typed import computed, typed
from tests.support import randomise_batchnorm

INPUTS = (TensorSpec("image", ("batch", 3, 224, 224), example=(2, 3, 224, 224)),)


def error(expected: Array, actual: Array) -> float:
    """The largest difference, relative to the scale of the expected."""
    return float(np.max(np.abs(expected - actual)) / np.max(np.abs(expected)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aff_resnet50", "iaff_resnext50_32x4d"])
def test_half_precision_errs_little_more_than_its_weights(name: str) -> None:
    torch.manual_seed(0)
    module = getattr(nets, name)().eval()
    randomise_batchnorm(module, seed=0)
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = module(image).numpy()
    model = optimize(export_onnx(module, INPUTS, exporter="torchscript", verify=False)).model
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half().float())
        weights_alone = error(expected, module(image).numpy())
    feeds = {"image": image.numpy()}
    for precision in (Precision.FP16, Precision.BF16):
        result = typed(model, feeds, precision=str(precision))
        assert len(result.kept_wide) == 1
        (actual,) = computed(result, feeds).values()
        found = error(expected, actual)
        assert found <= TOLERANCES[precision].rtol
        if precision is Precision.FP16:
            # No way of computing can bring back what the weights lost.
            assert found <= 2e-3 + weights_alone
