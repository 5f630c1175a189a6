"""A small network, weights for it, and how a file that does not fit is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aff_deploy.errors import WeightsError
from aff_deploy.nets.checkpoints import load_weights
from tests.support import randomise_batchnorm


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(5, 2))
    randomise_batchnorm(net, seed)
    return net


def weights() -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network(seed=1).state_dict().items()}


def equal(net: nn.Module, expected: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, expected[name]) for name, value in net.state_dict().items() if name in expected)


def unchanged(net: nn.Module) -> bool:
    return equal(net, network().state_dict())


def refusal(path: Path, **options: Any) -> str:
    """The message with which loading `path` fails; the network must be as it was."""
    net = network()
    with pytest.raises(WeightsError) as caught:
        load_weights(net, path, **options)
    assert unchanged(net)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    return str(caught.value)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (os.fspath(self.target),)
