"""An Inception-style network whose two kernel branches are fused by attention (the paper's same layer)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from aff_deploy.nets.blocks import FuseFactory, StagedNetwork, aff, conv_bn


class InceptionBlock(nn.Module):
    """A 1x1 reduction, seen through a 5x5 kernel (x) and a 3x3 kernel (y), fused.

    N x `inputs` x H x W becomes N x `outputs` x ceil(H / stride) x ceil(W / stride).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, fuse: FuseFactory) -> None:
        super().__init__()
        inner = outputs // 2
        self.reduce = nn.Sequential(*conv_bn(inputs, inner, 1), nn.ReLU(inplace=True))
        self.wide = nn.Sequential(*conv_bn(inner, outputs, 5, stride), nn.ReLU(inplace=True))
        self.narrow = nn.Sequential(*conv_bn(inner, outputs, 3, stride), nn.ReLU(inplace=True))
        self.fusion = fuse(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        fused: Tensor = self.fusion(self.wide(x), self.narrow(x))
        return fused


def aff_inception(
    *,
    layers: Sequence[int] = (2, 2, 2),
    num_classes: int = 100,
    start_layer: int = 1,
    r: float = 4,
    scale: float = 1.0,
) -> StagedNetwork:
    """Three stages of 64, 128 and 256 channels for N x 3 x 32 x 32, branches fused by AFF in every block.

    The scale is the paper's 1: without a shortcut, a factor of 2 a block would only grow.
    """
    stem = nn.Sequential(*conv_bn(3, 64, 3), nn.ReLU(inplace=True))
    return StagedNetwork(stem, 64, (64, 128, 256), layers, InceptionBlock, aff(r, scale), start_layer, num_classes)
