"""What the networks share: the choice of a fusion, the residual block, the trunk of stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from aff_deploy.errors import NetworkError
from aff_deploy.nets.fusion import AFF, Add, iAFF

FuseFactory: TypeAlias = "Callable[[int], nn.Module]"
"""From a channel count to a module of two inputs."""

BlockFactory: TypeAlias = "Callable[[int, int, int, FuseFactory], nn.Module]"
"""From input channels, output channels, stride and fusion to a module of one input."""


def add(channels: int) -> nn.Module:
    """Plain addition, whatever the channels."""
    return Add()


def aff(r: float, scale: float) -> FuseFactory:
    """AFF of any channels."""
    return lambda channels: AFF(channels, r=r, scale=scale)


def iaff(r: float, share_global: bool) -> FuseFactory:
    """Iterative AFF of any channels."""
    return lambda channels: iAFF(channels, r=r, share_global=share_global)


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias, padded to keep the size at stride 1, and its BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def shortcut(inputs: int, outputs: int, stride: int, *, norm: bool = True) -> nn.Module:
    """Average pooling, 1x1 convolution and (with `norm`) BatchNorm; nothing where the shape stays.

    Pooled sizes are rounded up and padding is not counted.
    """
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    pool = nn.Identity() if stride == 1 else nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
    conv, bn = conv_bn(inputs, outputs, 1)
    return nn.Sequential(pool, conv, bn) if norm else nn.Sequential(pool, conv)


class ResidualBlock(nn.Module):
    """`body` fused with the shortcut (x is the body's output, y the shortcut's), then `activation`.

    N x C x H x W becomes N x C' x ceil(H / stride) x ceil(W / stride).
    """

    def __init__(self, body: nn.Sequential, downsample: nn.Module, fusion: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.downsample = downsample
        self.fusion = fusion
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        fused: Tensor = self.activation(self.fusion(self.body(x), self.downsample(x)))
        return fused


def basic(inputs: int, outputs: int, stride: int, fuse: FuseFactory) -> ResidualBlock:
    """Two 3x3 convolutions, the first strided."""
    body = nn.Sequential(*conv_bn(inputs, outputs, 3, stride), nn.ReLU(inplace=True), *conv_bn(outputs, outputs, 3))
    return ResidualBlock(body, shortcut(inputs, outputs, stride), fuse(outputs), nn.ReLU(inplace=True))


def bottleneck(groups: int = 1, group_width: int = 64) -> BlockFactory:
    """Blocks of 1x1, 3x3 (strided, grouped), 1x1 convolutions.

    `group_width` is the inner channels of one group in a block of 256 output channels.
    """

    def block(inputs: int, outputs: int, stride: int, fuse: FuseFactory) -> ResidualBlock:
        width = groups * group_width * outputs // 256
        body = nn.Sequential(
            *conv_bn(inputs, width, 1),
            nn.ReLU(inplace=True),
            *conv_bn(width, width, 3, stride, groups),
            nn.ReLU(inplace=True),
            *conv_bn(width, outputs, 1),
        )
        return ResidualBlock(body, shortcut(inputs, outputs, stride), fuse(outputs), nn.ReLU(inplace=True))

    return block


def preactivation(inputs: int, outputs: int, stride: int, fuse: FuseFactory) -> ResidualBlock:
    """BN, ReLU, 3x3 (strided), BN, ReLU, 3x3, fused with the raw input; nothing follows the fusion."""
    body = nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        *conv_bn(inputs, outputs, 3, stride),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
    )
    return ResidualBlock(body, shortcut(inputs, outputs, stride, norm=False), fuse(outputs), nn.Identity())


class StagedNetwork(nn.Module):
    """Stem, stages of blocks (each halves the size but the first), head, global pooling, classifier.

    Args:
        stem: what comes before the first stage.
        stem_channels: channels that the stem puts out.
        channels: output channels of each stage.
        layers: blocks of each stage.
        block: makes a block.
        fuse: makes the fusion of a block from its channels.
        start_layer: the first stage (from 1) whose blocks use `fuse`; earlier ones add. Above the
            last stage it means: nowhere.
        num_classes: outputs of the classifier; None leaves it out (see `features`).
        head: what comes between the last stage and the pooling.

    Raises:
        NetworkError: block counts, `start_layer` or `num_classes` that make no network.
    """

    def __init__(
        self,
        stem: nn.Module,
        stem_channels: int,
        channels: Sequence[int],
        layers: Sequence[int],
        block: BlockFactory,
        fuse: FuseFactory,
        start_layer: int,
        num_classes: int | None,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if len(layers) != len(channels) or any(count < 1 for count in layers):
            raise NetworkError(f"layers={tuple(layers)}", fix=f"give {len(channels)} block counts, each at least 1")
        if start_layer < 1:
            raise NetworkError(f"start_layer={start_layer}", fix=f"stages are counted from 1 to {len(channels)}")
        if num_classes is not None and num_classes < 1:
            raise NetworkError(f"num_classes={num_classes}", fix="give at least 1")
        self.stem = stem
        self.stages = nn.ModuleList()
        inputs = stem_channels
        for stage, outputs in enumerate(channels, start=1):
            fuse_here = fuse if stage >= start_layer else add
            blocks = []
            for position in range(layers[stage - 1]):
                stride = 2 if stage > 1 and position == 0 else 1
                blocks.append(block(inputs, outputs, stride, fuse_here))
                inputs = outputs
            self.stages.append(nn.Sequential(*blocks))
        self.head = head or nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Identity() if num_classes is None else nn.Linear(inputs, num_classes)
        initialise(self)

    def features(self, x: Tensor) -> list[Tensor]:
        """The output of every stage, finest first."""
        x = self.stem(x)
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.features(x)[-1])
        logits: Tensor = self.fc(torch.flatten(self.pool(x), 1))
        return logits


def initialise(network: nn.Module) -> None:
    """Kaiming-normal weights for the convolutions of the trunk, residual bodies ending at a gain of 1/4 or 7/4.

    Convolutions with a bias belong to attention branches and keep PyTorch's own, smaller,
    initialisation: with Kaiming weights their sigmoids would start saturated. The gain keeps the
    variance of the signal from doubling in each block where body and shortcut are summed (1/4, for
    addition and AFF with scale 2), and from halving where they are averaged (7/4, for iAFF and AFF
    with scale 1).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, ResidualBlock):
                averages = not isinstance(module.fusion, Add) and getattr(module.fusion, "scale", 1.0) <= 1.0
                module.body[-1].get_parameter("weight").mul_(1.75 if averages else 0.25)
