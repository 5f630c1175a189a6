"""ResNets and ResNeXts with attentional fusion at the short skip, at ImageNet's size.

The networks of the authors' code: deep stem, average pooling in the shortcuts, r = 16, fusion in
the last two stages only. Input N x 3 x H x W, output N x `num_classes` logits, float32.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from aff_deploy.nets.blocks import FuseFactory, StagedNetwork, add, aff, bottleneck, conv_bn, iaff

STAGES = (256, 512, 1024, 2048)
LAYERS_50 = (3, 4, 6, 3)


def deep_stem(width: int) -> nn.Sequential:
    """Three 3x3 convolutions (the first of stride 2) to ``2 * width`` channels, then max pooling."""
    return nn.Sequential(
        *conv_bn(3, width, 3, stride=2),
        nn.ReLU(inplace=True),
        *conv_bn(width, width, 3),
        nn.ReLU(inplace=True),
        *conv_bn(width, 2 * width, 3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1),
    )


def resnet(fuse: FuseFactory, layers: Sequence[int], num_classes: int | None, start_layer: int) -> StagedNetwork:
    """A bottleneck ResNet of any depth; `num_classes` None leaves the classifier out."""
    return StagedNetwork(deep_stem(32), 64, STAGES, layers, bottleneck(), fuse, start_layer, num_classes)


def resnext_32x4d(fuse: FuseFactory, layers: Sequence[int], num_classes: int | None, start_layer: int) -> StagedNetwork:
    """A ResNeXt of 32 groups of 4 channels; `num_classes` None leaves the classifier out."""
    return StagedNetwork(deep_stem(64), 128, STAGES, layers, bottleneck(32, 4), fuse, start_layer, num_classes)


def aff_resnet50(
    *,
    layers: Sequence[int] = LAYERS_50,
    num_classes: int = 1000,
    start_layer: int = 3,
    r: float = 16,
    scale: float = 2.0,
) -> StagedNetwork:
    """ResNet-50 fused by AFF: 30,373,192 parameters, 4.56 GMACs at 224."""
    return resnet(aff(r, scale), layers, num_classes, start_layer)


def iaff_resnet50(
    *,
    layers: Sequence[int] = LAYERS_50,
    num_classes: int = 1000,
    start_layer: int = 3,
    r: float = 16,
    share_global: bool = False,
) -> StagedNetwork:
    """ResNet-50 fused by iAFF: 35,170,120 parameters, 4.80 GMACs at 224."""
    return resnet(iaff(r, share_global), layers, num_classes, start_layer)


def add_resnet50(*, layers: Sequence[int] = LAYERS_50, num_classes: int = 1000) -> StagedNetwork:
    """The same ResNet-50 with plain addition: 25,576,264 parameters, 4.33 GMACs at 224."""
    return resnet(add, layers, num_classes, 1)


def aff_resnext50_32x4d(
    *,
    layers: Sequence[int] = LAYERS_50,
    num_classes: int = 1000,
    start_layer: int = 3,
    r: float = 16,
    scale: float = 2.0,
) -> StagedNetwork:
    """ResNeXt-50 32x4d fused by AFF: 29,953,704 parameters, 5.83 GMACs at 224."""
    return resnext_32x4d(aff(r, scale), layers, num_classes, start_layer)


def iaff_resnext50_32x4d(
    *,
    layers: Sequence[int] = LAYERS_50,
    num_classes: int = 1000,
    start_layer: int = 3,
    r: float = 16,
    share_global: bool = False,
) -> StagedNetwork:
    """ResNeXt-50 32x4d fused by iAFF: 34,750,632 parameters, 6.07 GMACs at 224."""
    return resnext_32x4d(iaff(r, share_global), layers, num_classes, start_layer)


def add_resnext50_32x4d(*, layers: Sequence[int] = LAYERS_50, num_classes: int = 1000) -> StagedNetwork:
    """The same ResNeXt-50 32x4d with plain addition: 25,156,776 parameters, 5.60 GMACs at 224."""
    return resnext_32x4d(add, layers, num_classes, 1)
