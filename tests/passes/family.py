"""All spellings and relatives together, and what becomes of one of them through an exporter and the passes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from aff_deploy.export import export_onnx
from aff_deploy.passes import Optimized, optimize
from aff_deploy.spec import TensorSpec
from tests.passes import forks, gatings
from tests.passes.forks import FORKS
from tests.passes.gatings import GATINGS
from tests.passes.graphs import assert_settled
from tests.passes.spellings import MEMBERS, SHAPES
from tests.support import assert_exact_as, randomise_batchnorm

ALL_MEMBERS = {**MEMBERS, **FORKS, **GATINGS}
NEAR_MISSES = {**forks.NEAR_MISSES, **gatings.NEAR_MISSES}


def inputs_of(name: str) -> list[TensorSpec]:
    shape = SHAPES.get(name, (2, 3, 8, 8))
    return [TensorSpec(given, ("batch", *shape[1:]), example=shape) for given in ("p", "q")]


def optimised(name: str, factory: Callable[[], nn.Module], exporter: str) -> Optimized:
    """What became of a network, which computes what eager PyTorch does."""
    torch.manual_seed(0)
    network = factory()
    randomise_batchnorm(network, 1)
    inputs = inputs_of(name)
    result = optimize(export_onnx(network, inputs, exporter=exporter, verify=False))
    assert_settled(result.model)
    rng = np.random.default_rng(2)
    feeds = {spec.name: rng.normal(0, 1, spec.concrete(batch=3)).astype(np.float32) for spec in inputs}
    assert_exact_as(network, inputs, result.model, feeds)
    return result
