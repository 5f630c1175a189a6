"""A feature pyramid whose lateral connections are attentional fusions (the paper's long skip).

Lin et al., "Feature Pyramid Networks", CVPR 2017, with AFF where that adds: at each level the
lateral 1x1 projection is x, and the coarser level, brought to its size, is y.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from aff_deploy.errors import NetworkError
from aff_deploy.nets.blocks import FuseFactory, StagedNetwork, aff
from aff_deploy.nets.resnet import LAYERS_50, STAGES, resnet


class FPN(nn.Module):
    """Pyramid over a ResNet: N x 3 x H x W to a tuple of N x `width` maps at strides 4, 8, 16, 32, finest first.

    Args:
        backbone: a network with stages of `channels` channels.
        channels: those, finest first.
        width: channels of every level.
        fuse: makes the fusion of a level from its channels.

    Raises:
        NetworkError: `width` below 1.
    """

    def __init__(self, backbone: StagedNetwork, channels: Sequence[int], width: int, fuse: FuseFactory) -> None:
        super().__init__()
        if width < 1:
            raise NetworkError(f"a pyramid of width={width}", fix="width must be at least 1")
        self.backbone = backbone
        self.lateral = nn.ModuleList(nn.Conv2d(stage, width, 1) for stage in channels)
        self.fusions = nn.ModuleList(fuse(width) for _ in channels[1:])
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = self.backbone.features(x)
        levels = [lateral(stage) for lateral, stage in zip(self.lateral, found, strict=True)]
        for finer in range(len(levels) - 2, -1, -1):
            # To the size, not by a factor of 2: odd sizes were rounded up on the way down.
            above = functional.interpolate(levels[finer + 1], size=levels[finer].shape[-2:], mode="nearest")
            levels[finer] = self.fusions[finer](levels[finer], above)
        return tuple(smooth(level) for smooth, level in zip(self.smooth, levels, strict=True))


def aff_fpn_resnet50(
    *,
    layers: Sequence[int] = LAYERS_50,
    start_layer: int = 5,
    r: float = 4,
    scale: float = 2.0,
    width: int = 256,
) -> FPN:
    """AFF pyramid of `width` channels on ResNet-50.

    `start_layer` is the first backbone stage whose short skips fuse too (r = 16 there); 5 means none.
    """
    backbone = resnet(aff(16, scale), layers, None, start_layer)
    return FPN(backbone, STAGES, width, aff(r, scale))
