"""The family as people write it, through both exporters: members fuse, relatives do not, all stay what they were."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from aff_deploy.export import EXPORTERS, export_onnx
from aff_deploy.passes import Optimized, optimize
from aff_deploy.spec import TensorSpec
from tests.passes import forks, gatings
from tests.passes.forks import FORKS
from tests.passes.gatings import GATINGS
from tests.passes.spellings import MEMBERS, SHAPES
from tests.support import assert_exact_as, randomise_batchnorm

ALL_MEMBERS = {**MEMBERS, **FORKS, **GATINGS}
NEAR_MISSES = {**forks.NEAR_MISSES, **gatings.NEAR_MISSES}
# Those that the two exporters write most differently; the others take the new exporter's two seconds each in the long run.
REPRESENTATIVE = (
    "plain", "lerp", "ones_like", "mean twice", "view and mean", "linear, flatten", "token linear", "GELU",
    "hard sigmoid", "iaff, shared global", "eres2net", "iaff by lerp",
)  # fmt: skip


# It wants the size of a pooling window as a number.
UNEXPORTABLE = {("avg_pool2d of full size", "torchscript")}


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
    rng = np.random.default_rng(2)
    feeds = {spec.name: rng.normal(0, 1, spec.concrete(batch=3)).astype(np.float32) for spec in inputs}
    assert_exact_as(network, inputs, result.model, feeds)
    return result


def cases(names: object) -> list[object]:
    assert isinstance(names, dict)
    quick = {(name, "torchscript") for name in names} | {(name, "dynamo") for name in REPRESENTATIVE}
    every = [(name, exporter) for name in names for exporter in EXPORTERS if (name, exporter) not in UNEXPORTABLE]
    return [pytest.param(*case, id=" - ".join(case), marks=[] if case in quick else pytest.mark.slow) for case in every]


@pytest.mark.parametrize(("name", "exporter"), cases(ALL_MEMBERS))
def test_members_fuse(name: str, exporter: str) -> None:
    factory, kind = ALL_MEMBERS[name]
    result = optimised(name, factory, exporter)
    assert [fusion.kind for fusion in result.fusions] == [kind], result.rejected


@pytest.mark.parametrize(("name", "exporter"), cases(NEAR_MISSES))
def test_relatives_are_left_alone(name: str, exporter: str) -> None:
    factory, reason = NEAR_MISSES[name]
    result = optimised(name, factory, exporter)
    assert result.fusions == ()
    assert not reason or any(reason in rejection.reason for rejection in result.rejected), result.rejected
