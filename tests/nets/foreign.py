"""Networks of other people: the authors', with recorded outputs, and one of someone's own around a fusion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aff_deploy.nets import AFF, blocks, cifar, iAFF, load_weights
from aff_deploy.nets.checkpoints import LoadedWeights

DATA = Path(__file__).parent.parent / "data"
AUTHORS = DATA / "openaff"


def cifar_resnet(fuse: blocks.FuseFactory) -> nn.Module:
    return cifar.preactivation_resnet(fuse, (1, 1, 1), 10, 1, width=16)


def cifar_resnext(fuse: blocks.FuseFactory) -> nn.Module:
    return cifar.cifar_resnext(fuse, (1, 1, 1), 10, 1, width=16, groups=4, group_width=16)


# The .params file: the network that it is of, and the .npz with what the authors' code computed.
RECORDED: dict[str, tuple[Callable[[], nn.Module], Path]] = {
    "cifar_aff_resnet_b1_c1": (lambda: cifar_resnet(blocks.aff(4, 2.0)), AUTHORS / "cifar_aff_resnet_b1_c1.npz"),
    "cifar_iaff_resnet_b1_c1": (lambda: cifar_resnet(blocks.iaff(4, False)), DATA / "recorded/cifar_iaff_resnet.npz"),
    "cifar_aff_resnext_b1_c1_4x16": (lambda: cifar_resnext(blocks.aff(16, 2.0)), DATA / "recorded/cifar_aff_resnext.npz"),
    "cifar_iaff_resnext_b1_c1_4x16": (
        lambda: cifar_resnext(blocks.iaff(16, False)),
        AUTHORS / "cifar_iaff_resnext_b1_c1_4x16.npz",
    ),
}


def error_of(network: nn.Module, recorded: Path) -> float:
    """The largest difference from a recorded output, in units of its scale."""
    with np.load(recorded, allow_pickle=False) as data:
        images, expected = torch.from_numpy(data["input"]), data["output"]
    with torch.inference_mode():
        found = network.eval()(images).numpy()
    return float(np.abs(found - expected).max() / np.abs(expected).max())


class Fused(nn.Module):
    """A network of someone's own around one fusion, which is the attribute `place` of its only block."""

    def __init__(self, place: str = "fusion", share_global: bool = False, seed: int = 0, kind: str = "iaff") -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.place = place
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        block = nn.Module()
        block.add_module(place, iAFF(8, share_global=share_global) if kind == "iaff" else AFF(8))
        self.layer1 = nn.Sequential(block)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        fused: Tensor = self.layer1[0].get_submodule(self.place)(x, x.flip(3))
        return fused

    @property
    def fusion_module(self) -> Any:
        return self.layer1[0].get_submodule(self.place)


def trained(place: str, share_global: bool) -> Fused:
    network = Fused(place, share_global, seed=1).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(3):
        optimiser.zero_grad()
        network(torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimiser.step()
    return network.eval()


def load(network: nn.Module, state: Any, folder: Path, **options: Any) -> LoadedWeights:
    torch.save(state, folder / "w.pth")
    return load_weights(network, folder / "w.pth", **options)


@torch.no_grad()
def same(one: nn.Module, other: nn.Module) -> bool:
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(9))
    return torch.equal(one.eval()(images), other.eval()(images))
