"""ResNets and ResNeXts with attentional fusion for images of 32 x 32 (CIFAR).

The networks of the authors' code: three stages, every block fuses. Input N x 3 x H x W, usually
32 x 32, output N x `num_classes` logits, float32. `width` is the channels of the stem; a ResNeXt's 3x3
convolutions have `groups` groups, of `group_width` channels for every 256 that its block puts out.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from aff_deploy.errors import NetworkError
from aff_deploy.nets.blocks import FuseFactory, StagedNetwork, aff, bottleneck, conv_bn, iaff, preactivation


def preactivation_resnet(
    fuse: FuseFactory, layers: Sequence[int], num_classes: int, start_layer: int, width: int = 64
) -> StagedNetwork:
    """A pre-activation ResNet on the normalised input; stages of `width`, twice and four times as many channels."""
    _check_sizes(width=width)
    stem = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, width, 3, padding=1, bias=False))
    channels = (width, 2 * width, 4 * width)
    head = nn.Sequential(nn.BatchNorm2d(channels[-1]), nn.ReLU(inplace=True))
    return StagedNetwork(stem, width, channels, layers, preactivation, fuse, start_layer, num_classes, head)


def cifar_resnext(
    fuse: FuseFactory,
    layers: Sequence[int],
    num_classes: int,
    start_layer: int,
    width: int = 64,
    groups: int = 32,
    group_width: int = 4,
) -> StagedNetwork:
    """A ResNeXt of `width` stem channels and stages of 4, 8 and 16 times as many."""
    _check_sizes(width=width, groups=groups, group_width=group_width)
    inner = groups * group_width * width // 64  # of the first stage, see bottleneck
    if not inner or inner % groups:
        said = f"width={width}, groups={groups}, group_width={group_width}"
        raise NetworkError(f"{said}: the groups do not divide the channels", fix="make width * group_width a multiple of 64")
    stem = nn.Sequential(*conv_bn(3, width, 3), nn.ReLU(inplace=True))
    channels = (4 * width, 8 * width, 16 * width)
    return StagedNetwork(stem, width, channels, layers, bottleneck(groups, group_width), fuse, start_layer, num_classes)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise NetworkError(f"{name}={size}", fix="give at least 1")


def aff_resnet32(
    *,
    layers: Sequence[int] = (5, 5, 5),
    num_classes: int = 100,
    start_layer: int = 1,
    r: float = 4,
    scale: float = 2.0,
    width: int = 64,
) -> StagedNetwork:
    """Pre-activation ResNet-32 fused by AFF: 7.90 M parameters, 1.13 GMACs at 32."""
    return preactivation_resnet(aff(r, scale), layers, num_classes, start_layer, width)


def iaff_resnet32(
    *,
    layers: Sequence[int] = (5, 5, 5),
    num_classes: int = 100,
    start_layer: int = 1,
    r: float = 4,
    share_global: bool = False,
    width: int = 64,
) -> StagedNetwork:
    """Pre-activation ResNet-32 fused by iAFF."""
    return preactivation_resnet(iaff(r, share_global), layers, num_classes, start_layer, width)


def aff_resnext38_32x4d(
    *,
    layers: Sequence[int] = (4, 4, 4),
    num_classes: int = 100,
    start_layer: int = 1,
    r: float = 16,
    scale: float = 2.0,
    width: int = 64,
    groups: int = 32,
    group_width: int = 4,
) -> StagedNetwork:
    """ResNeXt-38 32x4d fused by AFF: 7.77 M parameters, 1.09 GMACs at 32."""
    return cifar_resnext(aff(r, scale), layers, num_classes, start_layer, width, groups, group_width)


def iaff_resnext38_32x4d(
    *,
    layers: Sequence[int] = (4, 4, 4),
    num_classes: int = 100,
    start_layer: int = 1,
    r: float = 16,
    share_global: bool = False,
    width: int = 64,
    groups: int = 32,
    group_width: int = 4,
) -> StagedNetwork:
    """ResNeXt-38 32x4d fused by iAFF."""
    return cifar_resnext(iaff(r, share_global), layers, num_classes, start_layer, width, groups, group_width)


def aff_resnext47_32x4d(
    *,
    layers: Sequence[int] = (5, 5, 5),
    num_classes: int = 100,
    start_layer: int = 1,
    r: float = 16,
    scale: float = 2.0,
    width: int = 64,
    groups: int = 32,
    group_width: int = 4,
) -> StagedNetwork:
    """ResNeXt-47 32x4d fused by AFF: 9.61 M parameters, 1.33 GMACs at 32."""
    return cifar_resnext(aff(r, scale), layers, num_classes, start_layer, width, groups, group_width)
