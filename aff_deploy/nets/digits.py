"""Small networks for handwritten digits of 8 x 8 pixels, every block fusing.

Input N x 1 x 8 x 8, output N x `num_classes` logits, float32.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from aff_deploy.nets.blocks import FuseFactory, StagedNetwork, aff, basic, conv_bn, iaff


def _digits(fuse: FuseFactory, layers: Sequence[int], num_classes: int, start_layer: int) -> StagedNetwork:
    stem = nn.Sequential(*conv_bn(1, 16, 3), nn.ReLU(inplace=True))
    return StagedNetwork(stem, 16, (16, 32, 64), layers, basic, fuse, start_layer, num_classes)


def aff_resnet_digits(
    *,
    layers: Sequence[int] = (2, 2, 2),
    num_classes: int = 10,
    start_layer: int = 1,
    r: float = 4,
    scale: float = 2.0,
) -> StagedNetwork:
    """Stages of 16, 32 and 64 channels, six blocks fused by AFF."""
    return _digits(aff(r, scale), layers, num_classes, start_layer)


def iaff_resnet_digits(
    *,
    layers: Sequence[int] = (2, 2, 2),
    num_classes: int = 10,
    start_layer: int = 1,
    r: float = 4,
    share_global: bool = False,
) -> StagedNetwork:
    """Stages of 16, 32 and 64 channels, six blocks fused by iAFF."""
    return _digits(iaff(r, share_global), layers, num_classes, start_layer)
