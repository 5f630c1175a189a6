"""The networks: sizes from the paper's code, shapes, and agreement with what that code computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from aff_deploy import nets
from aff_deploy.errors import NetworkError
from aff_deploy.nets import AFF, blocks, cifar, iAFF
from aff_deploy.nets.checkpoints import load_weights
from tests.support import randomise_batchnorm

RECORDED = Path(__file__).parent.parent / "data" / "recorded"

PARAMETERS = {
    "aff_resnet50": 30_373_192,
    "aff_resnext50_32x4d": 29_953_704,
    "iaff_resnet50": 35_170_120,
    "iaff_resnext50_32x4d": 34_750_632,
    "add_resnet50": 25_576_264,
    "add_resnext50_32x4d": 25_156_776,
}
CIFAR_MILLIONS = {"aff_resnet32": 7.90, "aff_resnext38_32x4d": 7.77, "aff_resnext47_32x4d": 9.61}
GMACS = {
    "aff_resnet50": (224, 4.56),
    "aff_resnext50_32x4d": (224, 5.83),
    "iaff_resnet50": (224, 4.80),
    "iaff_resnext50_32x4d": (224, 6.07),
    "add_resnet50": (224, 4.33),
    "add_resnext50_32x4d": (224, 5.60),
    "aff_resnet32": (32, 1.13),
    "aff_resnext38_32x4d": (32, 1.09),
    "aff_resnext47_32x4d": (32, 1.33),
}
FUSIONS = {
    "aff_resnet50": (AFF, 9),
    "iaff_resnet50": (iAFF, 9),
    "aff_resnext50_32x4d": (AFF, 9),
    "iaff_resnext50_32x4d": (iAFF, 9),
    "add_resnet50": (AFF, 0),
    "add_resnext50_32x4d": (AFF, 0),
    "aff_resnet32": (AFF, 15),
    "iaff_resnet32": (iAFF, 15),
    "aff_resnext38_32x4d": (AFF, 12),
    "iaff_resnext38_32x4d": (iAFF, 12),
    "aff_resnext47_32x4d": (AFF, 15),
    "aff_fpn_resnet50": (AFF, 3),
    "aff_inception": (AFF, 6),
    "aff_resnet_digits": (AFF, 6),
    "iaff_resnet_digits": (iAFF, 6),
}


def build(name: str, **arguments: object) -> nn.Module:
    network: nn.Module = getattr(nets, name)(**arguments)
    return network


def on_meta(name: str, **arguments: object) -> nn.Module:
    """The network without storage: shapes only."""
    with torch.device("meta"):
        return build(name, **arguments)


def trainable(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def gmacs(network: nn.Module, size: int) -> float:
    """Multiply-accumulates of convolutions and fully connected layers for one image, in 1e9."""
    counted = [0]

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        counted[0] += output.numel() * layer.get_parameter("weight")[0].numel()

    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    network.eval()(torch.empty(1, 3, size, size, device="meta"))
    return counted[0] / 1e9


@pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
def test_parameters(name: str, expected: int) -> None:
    assert trainable(on_meta(name)) == expected


@pytest.mark.parametrize(("name", "millions"), CIFAR_MILLIONS.items())
def test_cifar_parameters(name: str, millions: float) -> None:
    assert round(trainable(on_meta(name)) / 1e6, 2) == millions


def test_parameters_with_fusion_in_every_stage() -> None:
    assert trainable(on_meta("aff_resnet50", start_layer=1)) == 30_702_440


@pytest.mark.parametrize("name", GMACS)
def test_multiply_accumulates(name: str) -> None:
    size, expected = GMACS[name]
    assert gmacs(on_meta(name), size) == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("name", FUSIONS)
def test_fusions(name: str) -> None:
    kind, expected = FUSIONS[name]
    found = [module for module in on_meta(name).modules() if isinstance(module, (AFF, iAFF))]
    assert len(found) == expected
    assert all(type(module) is kind for module in found)


def test_every_factory_is_listed_here() -> None:
    assert set(FUSIONS) == {name for name in nets.__all__ if name.islower()}


@pytest.mark.parametrize("name", sorted(set(FUSIONS) - {"aff_fpn_resnet50"}))
def test_forward_of_small_inputs(name: str) -> None:
    channels, size = (1, 8) if "digits" in name else (3, 33)
    arguments = {} if "add" in name else {"start_layer": 2, "r": 8}
    layers = (1, 1, 1, 1) if "50" in name else (1, 1, 1)
    network = build(name, layers=layers, num_classes=7, **arguments).eval()
    randomise_batchnorm(network, 0)
    with torch.inference_mode():
        logits = network(torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    assert (logits[0] - logits[1]).abs().max() > 1e-4


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 90)])
def test_pyramid(height: int, width: int) -> None:
    network = build("aff_fpn_resnet50", layers=(1, 1, 1, 1), width=32).eval()
    randomise_batchnorm(network, 0)
    with torch.inference_mode():
        levels = network(torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0)))
    expected = [(1, 32, -(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]
    assert [tuple(level.shape) for level in levels] == expected
    assert all(torch.isfinite(level).all() for level in levels)


def test_pyramid_may_fuse_in_its_backbone_too() -> None:
    network = on_meta("aff_fpn_resnet50", start_layer=4)
    assert sum(isinstance(module, AFF) for module in network.modules()) == 3 + 3


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("aff_resnet50", {"layers": (3, 4, 6)}),
        ("aff_resnet50", {"layers": (3, 4, 6, 0)}),
        ("aff_resnet50", {"start_layer": 0}),
        ("aff_resnet32", {"num_classes": 0}),
        ("aff_resnet_digits", {"r": 0}),
        ("aff_fpn_resnet50", {"width": 0}),
    ],
)
def test_impossible_arguments_are_refused(name: str, arguments: dict[str, object]) -> None:
    with pytest.raises(NetworkError):
        on_meta(name, **arguments)


def test_scale_and_shared_global_reach_the_modules() -> None:
    fused = [module for module in on_meta("aff_resnet50").modules() if isinstance(module, AFF)]
    assert {module.scale for module in fused} == {2.0}
    shared = on_meta("iaff_resnet50", share_global=True)
    assert all(module.share_global for module in shared.modules() if isinstance(module, iAFF))


@pytest.mark.parametrize("name", ["aff_resnet_digits", "iaff_resnet_digits", "aff_inception", "aff_resnet32"])
def test_networks_train(name: str) -> None:
    network = build(name, layers=(1, 1, 1)).train()
    channels, size = (1, 8) if "digits" in name else (3, 16)
    network(torch.randn(4, channels, size, size)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def recorded_aff_resnext() -> nn.Module:
    return cifar.cifar_resnext(blocks.aff(16, 2.0), (1, 1, 1), 10, 1, width=16, groups=4, group_width=16)


def recorded_iaff_resnet() -> nn.Module:
    return cifar.preactivation_resnet(blocks.iaff(4, share_global=False), (1, 1, 1), 10, 1, width=16)


@pytest.mark.parametrize(
    ("name", "factory"), [("cifar_aff_resnext", recorded_aff_resnext), ("cifar_iaff_resnet", recorded_iaff_resnet)]
)
def test_agrees_with_the_authors_code(name: str, factory: Callable[[], nn.Module]) -> None:
    network = factory().eval()
    load_weights(network, RECORDED / f"{name}.safetensors")
    with np.load(RECORDED / f"{name}.npz", allow_pickle=False) as recorded:
        images, expected = torch.from_numpy(recorded["input"]), recorded["output"]
    with torch.inference_mode():
        found = network(images).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
