"""Attentional feature fusion: MS-CAM, AFF and iAFF.

Dai et al., "Attentional Feature Fusion", WACV 2021 (arXiv 2009.14082), equations 1 to 6. With ``L``
two 1x1 convolutions at every position and ``G`` two 1x1 convolutions on the global average:

    MS-CAM(x)    = x * sigmoid(L(x) + G(x))
    AFF(x, y)    = s * (x * w + y * (1 - w)),    w = sigmoid(L(x + y) + G(x + y))
    iAFF(x, y)   = x * w2 + y * (1 - w2),        w2 = sigmoid(L2(u) + G2(u)),  u = AFF(x, y) with s = 1

Every tensor is N x C x H x W, floating point. ``x`` is the processed (residual) branch, ``y`` the
shortcut. In training mode a global branch normalises over N positions only, so N must be above 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aff_deploy.errors import NetworkError

CONTEXTS = ("local", "global")


def inner_channels(channels: int, r: float, inter: int | None) -> int:
    """Channels between the two convolutions of a branch: `inter`, else ``int(channels // r)``, at least 1.

    Raises:
        NetworkError: a count below 1, or `r` not above 0.
    """
    if channels < 1:
        raise NetworkError(f"a fusion of {channels} channels", fix="channels must be at least 1")
    if inter is not None:
        if inter < 1:
            raise NetworkError(f"a fusion with inter={inter}", fix="inter must be at least 1")
        return inter
    if not r > 0:
        raise NetworkError(f"a fusion with r={r}", fix="the reduction r must be above 0")
    return max(int(channels // r), 1)


def _branch(kind: str, channels: int, inter: int) -> nn.Sequential:
    pool = [nn.AdaptiveAvgPool2d(1)] if kind == "global" else []
    return nn.Sequential(
        *pool,
        nn.Conv2d(channels, inter, kernel_size=1),
        nn.BatchNorm2d(inter),
        nn.ReLU(inplace=True),
        nn.Conv2d(inter, channels, kernel_size=1),
        nn.BatchNorm2d(channels),
    )


class Add(nn.Module):
    """``x + y``: the fusion of the plain baselines."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class MSCAM(nn.Module):
    """``x * sigmoid(A(x) + B(x))``, a gate of one input.

    Args:
        channels: C of the input.
        r: reduction; the branches have ``int(channels // r)`` inner channels.
        inter: the inner channels themselves, instead of `r`.
        context: which two branches attend, each ``"local"`` or ``"global"`` (the paper's ablation).
    """

    def __init__(
        self, channels: int, r: float = 4, inter: int | None = None, context: tuple[str, str] = ("local", "global")
    ) -> None:
        super().__init__()
        inner = inner_channels(channels, r, inter)
        if len(context) != 2 or any(kind not in CONTEXTS for kind in context):
            raise NetworkError(f"an MS-CAM with context={context!r}", fix="context is a pair of 'local' and 'global'")
        first, second = context
        self.branches = (f"{first}_att", f"{second}_att2" if first == second else f"{second}_att")
        for name, kind in zip(self.branches, context, strict=True):
            self.add_module(name, _branch(kind, channels, inner))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.get_submodule(name) for name in self.branches)
        return x * torch.sigmoid(first(x) + second(x))


class AFF(nn.Module):
    """``scale * (x * w + y * (1 - w))`` with ``w = sigmoid(L(x + y) + G(x + y))``.

    Args:
        channels: C of both inputs.
        r: reduction; the branches have ``int(channels // r)`` inner channels.
        inter: the inner channels themselves, instead of `r`.
        scale: ``s``; 1 in the paper, 2 in the authors' code.
    """

    def __init__(self, channels: int, r: float = 4, inter: int | None = None, scale: float = 1.0) -> None:
        super().__init__()
        inner = inner_channels(channels, r, inter)
        self.scale = float(scale)
        self.local_att = _branch("local", channels, inner)
        self.global_att = _branch("global", channels, inner)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        both = x + y
        weight = torch.sigmoid(self.local_att(both) + self.global_att(both))
        fused = x * weight + y * (1 - weight)
        return fused if self.scale == 1.0 else self.scale * fused

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"


class iAFF(nn.Module):
    """Two attentional fusions in a chain, the second attending to the result of the first.

    Args:
        channels: C of both inputs.
        r: reduction; the branches have ``int(channels // r)`` inner channels.
        inter: the inner channels themselves, instead of `r`.
        share_global: compute the second global context with the first ``global_att``. Checkpoints of
            the PyTorch port were trained so and are right only so; their ``global_att2`` takes part
            in nothing, yet stays in the state dict.
    """

    def __init__(self, channels: int, r: float = 4, inter: int | None = None, share_global: bool = False) -> None:
        super().__init__()
        inner = inner_channels(channels, r, inter)
        self.share_global = share_global
        self.local_att = _branch("local", channels, inner)
        self.global_att = _branch("global", channels, inner)
        self.local_att2 = _branch("local", channels, inner)
        self.global_att2 = _branch("global", channels, inner)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        both = x + y
        weight = torch.sigmoid(self.local_att(both) + self.global_att(both))
        first = x * weight + y * (1 - weight)
        second_global = self.global_att if self.share_global else self.global_att2
        weight2 = torch.sigmoid(self.local_att2(first) + second_global(first))
        return x * weight2 + y * (1 - weight2)

    def extra_repr(self) -> str:
        return f"share_global={self.share_global}"
