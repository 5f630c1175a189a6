"""What several tests need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from aff_deploy.runtimes.pytorch import PyTorchRunner
from aff_deploy.spec import TOLERANCES, Precision, TensorSpec
from aff_deploy.validate import truth_of, validate
from aff_deploy.validate.truth import Exact
from aff_deploy.verify import eps_of, largest_at_sites


def randomise_batchnorm(module: nn.Module, seed: int) -> None:
    """Give every BatchNorm of `module` random statistics and affine parameters, the same for the same seed.

    Fresh ones (mean 0, variance 1, scale 1, shift 0) make BatchNorm the identity and hide every
    mistake in folding it. The ranges keep the signal of a hundred layers alive and within bounds.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.empty(like.shape).uniform_(low, high, generator=generator).to(like)

    with torch.no_grad():
        for layer in module.modules():
            if not isinstance(layer, _BatchNorm):
                continue
            spread = torch.ones(layer.num_features)
            if layer.running_mean is not None and layer.running_var is not None:
                layer.running_mean.copy_(uniform(layer.running_mean, -0.2, 0.2))
                layer.running_var.copy_(uniform(layer.running_var, 0.3, 3.0))
                spread = layer.running_var.sqrt()
            if layer.affine:
                layer.weight.mul_(spread * uniform(layer.weight, 0.7, 1.3))
                layer.bias.copy_(uniform(layer.bias, -0.2, 0.2))


def exactness_of(network: nn.Module, inputs: Sequence[TensorSpec], model: onnx.ModelProto, feeds: Mapping[str, Any]) -> Exact:
    """How exactly ONNX Runtime computes with `model` what the network computes in PyTorch."""
    reference = PyTorchRunner(network, inputs)
    magnitude = largest_at_sites(model, [feeds])
    truth = truth_of(reference, eps_of(model), magnitude)
    with OnnxRuntimeRunner(model) as candidate:
        report = validate(reference, candidate, [feeds], TOLERANCES[Precision.FP32], metamorphic=False, truth=truth)
    assert report.exact is not None
    return report.exact


def assert_exact_as(network: nn.Module, inputs: Sequence[TensorSpec], model: onnx.ModelProto, feeds: Mapping[str, Any]) -> None:
    """`model` computes what the network does, by the one definition of exact."""
    exact = exactness_of(network, inputs, model, feeds)
    assert exact.holds, exact.why_not or [output.detail for output in exact.outputs]
