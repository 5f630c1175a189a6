"""More of the family as public repositories spell it, and relatives that must be left alone, each with its reason."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.passes.spellings import (
    IAFF,
    MSCAM,
    Base,
    C,
    ERes2Net,
    GlobalOnly,
    LinearGlobal,
    LocalOnly,
    branch,
    with_act,
    with_blend,
    with_gate,
    with_pool,
)


class _HardSigmoid(nn.Module):
    """As in the MobileNetV3 and coordinate-attention code."""

    def forward(self, z: Tensor) -> Tensor:
        return F.relu6(z + 3) / 6


class _HardSwish(nn.Module):
    def forward(self, t: Tensor) -> Tensor:
        return t * F.relu6(t + 3) / 6


class _Swish(nn.Module):
    def forward(self, t: Tensor) -> Tensor:
        return t * torch.sigmoid(t)


class ExpandedGate(GlobalOnly):
    """Squeeze-and-excitation habits: the weights are expanded before they are used."""

    def gate(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    def blend(self, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        w = w.expand_as(x)
        return x * w + y * (1 - w)


class ClapAFF(Base):
    """CLAP doubles a batch of one for the sake of BatchNorm in training."""

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        x, residual = self.stem_x(p), self.stem_y(q)
        flag = False
        xa = x + residual
        if xa.size(0) == 1:
            xa, flag = torch.cat([xa, xa], dim=0), True
        wei = torch.sigmoid(self.local(xa) + self.glob(xa))
        xo = 2 * x * wei + 2 * residual * (1 - wei)
        return xo[0].unsqueeze(0) if flag else xo


class EEG(Base):
    """Convolutions over time alone, features N x C x 1 x T."""

    def __init__(self) -> None:
        super().__init__()
        self.stem_x = nn.Conv2d(3, C, (8, 3), padding=(0, 1))
        self.stem_y = nn.Conv2d(3, C, (8, 5), padding=(0, 2))


class UNetSkip(Base):
    """A decoder's upsampled features fused with the encoder's; the sum of both follows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem_y = nn.Conv2d(3, C, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(C, C, 2, stride=2)

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        x, y = self.stem_x(p), self.up(self.stem_y(q))
        return self.blend(x, y, self.gate(self.logits(x + y))) + x


class YoloNeck(Base):
    """Fused features concatenated with one of the inputs and convolved, as a YOLO neck goes on."""

    def __init__(self) -> None:
        super().__init__(act=nn.SiLU, bias=False)
        self.out = nn.Conv2d(2 * C, C, 1, bias=False)

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        x, y = F.silu(self.stem_x(p)), F.silu(self.stem_y(q))
        fused = self.blend(x, y, self.gate(self.logits(x + y)))
        return F.silu(self.out(torch.cat([fused, y], 1)))


class Wespeaker(ERes2Net):
    """The mean of the two gates is a sigmoid of twice the logits."""

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        x, y = self.stem_x(p), self.stem_y(q)
        w = 1.0 + torch.tanh(self.local(torch.cat((x, y), dim=1)))
        return torch.mul(x, w) + torch.mul(y, 2.0 - w)


class LerpIAFF(IAFF):
    """Both fusions share x - y."""

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        x, y = self.stem_x(p), self.stem_y(q)
        d = x - y
        a = x + y
        u = y + torch.sigmoid(self.local(a) + self.glob(a)) * d
        return y + torch.sigmoid(self.local2(u) + self.glob2(u)) * d


class ResidualMSCAM(MSCAM):
    """The gated features are added to the input."""

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        x = torch.relu(self.stem_x(p) + self.stem_y(q))
        return x + x * torch.sigmoid(self.logits(x))


class ConvOnTokens(Base):
    """The local branch as Conv1d on flattened positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Conv1d(C, 4, 1), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, C, 1))

    def logits(self, a: Tensor) -> Tensor:
        n, c, h, w = a.size()
        return self.tokens(a.view(n, c, h * w)).view(n, c, h, w) + self.glob(a)


class Weighed(Base):
    """A factor of its own for each branch."""

    def logits(self, a: Tensor) -> Tensor:
        return 0.7 * self.local(a) + 0.3 * self.glob(a)


class Twin(Base):
    """Two modules one after the other on the same pair."""

    def __init__(self) -> None:
        super().__init__()
        self.second = branch()

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        x, y = self.stem_x(p), self.stem_y(q)
        u = self.blend(x, y, self.gate(self.logits(x + y)))
        return self.blend(u, x, torch.sigmoid(self.second(u + x)))


def _parts_of_shares() -> type[Base]:
    return type("Parts", (LocalOnly,), {"blend": lambda self, x, y, w: torch.cat([(x * w)[:, :8], (y * (1 - w))[:, 8:]], 1)})


FORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "clap": (ClapAFF, "aff"),
    "eeg": (EEG, "aff"),
    "u-net skip": (UNetSkip, "aff"),
    "yolo neck": (YoloNeck, "aff"),
    "wespeaker": (Wespeaker, "aff"),
    "iaff by lerp": (LerpIAFF, "iaff"),
    "ms-cam with residual": (ResidualMSCAM, "mscam"),
    "conv1d on positions": (ConvOnTokens, "aff"),
    "weighed branches": (Weighed, "aff"),
    "expanded gate": (ExpandedGate, "aff"),
    "relu6(z + 3) / 6": (with_gate(_HardSigmoid()), "aff"),
    "clamp": (with_gate(lambda z: torch.clamp(0.2 * z + 0.5, 0.0, 1.0)), "aff"),
    "t * relu6(t + 3) / 6": (with_act(_HardSwish), "aff"),
    "t * sigmoid(t)": (with_act(_Swish), "aff"),
    "2x*w + 2y*(1-w)": (with_blend(lambda x, y, w: 2 * (x * w) + 2 * (y * (1 - w))), "aff"),
    "-(w-1)": (with_blend(lambda x, y, w: x * w - y * (w - 1)), "aff"),
    "(x-y)*w + y": (with_blend(lambda x, y, w: torch.add(torch.mul(torch.sub(x, y), w), y)), "aff"),
    "half the sum": (type("Half", (Base,), {"context": lambda self, x, y: (x + y) / 2}), "aff"),
    "product for context": (type("Product", (Base,), {"context": lambda self, x, y: x * y}), "aff"),
    "one input for context": (type("One", (Base,), {"context": lambda self, x, y: y}), "aff"),
    "pooled by rows, then columns": (with_pool(lambda a: F.avg_pool2d(F.avg_pool2d(a, (1, 8)), (8, 1))), "aff"),
    "parts of both shares": (_parts_of_shares(), "aff"),
    "linear, no bias": (lambda: _without_bias(LinearGlobal()), "aff"),
}


def _without_bias(network: LinearGlobal) -> nn.Module:
    network.fc = nn.Sequential(nn.Linear(C, 4, bias=False), nn.GELU(), nn.Linear(4, C, bias=False))
    network.local = branch(act=nn.GELU)
    return network


class GroupNormed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.Conv2d(C, 4, 1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, C, 1))


class SpatialGate(Base):
    """CBAM's map of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def logits(self, a: Tensor) -> Tensor:
        return self.conv(torch.cat([a.mean(1, keepdim=True), a.amax(1, keepdim=True)], 1))


class OneChannel(Base):
    def __init__(self) -> None:
        super().__init__()
        self.local, self.glob = branch(out=1), branch(True, out=1)


def _logits(logits: Callable[[Base, Tensor], Tensor]) -> Callable[[], Base]:
    return lambda: type("Logits", (Base,), {"logits": lambda self, a: logits(self, a)})()


def _returning(*names: str) -> Callable[[], nn.Module]:
    class Returning(Base):
        def forward(self, p: Tensor, q: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
            x, y = self.stem_x(p), self.stem_y(q)
            a = x + y
            z = self.logits(a)
            w = self.gate(z)
            values = {"a": a, "z": z, "w": w, "out": self.blend(x, y, w)}
            return tuple(values[name] for name in names)

    return Returning


NEAR_MISSES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "branches multiplied": (_logits(lambda net, a: net.local(a) * net.glob(a)), "multiplied"),
    "global of local": (_logits(lambda net, a: (lambda t: t + net.glob(t))(net.local(a))), "same tensor"),
    "global not pooled": (_logits(lambda net, a: net.local(a) + net.glob[1:](a)), "neither is pooled"),
    "max pooling": (with_pool(lambda a: F.adaptive_max_pool2d(a, 1)), "same tensor"),
    "pooled to 2 x 2": (with_pool(lambda a: F.interpolate(F.adaptive_avg_pool2d(a, 2), a.shape[2:])), ""),
    "three branches": (_logits(lambda net, a: net.local(a) + net.glob(a) + net.local(a.flip(1))), "3 branches"),
    "residual in the logits": (_logits(lambda net, a: net.local(a) + net.glob(a) + a), ""),
    "weights add up to 1.5": (with_blend(lambda x, y, w: x * w + y * (1.5 - w)), "neither"),
    "only one input weighted": (with_blend(lambda x, y, w: x * w + y), "neither"),
    "gate squared": (with_blend(lambda x, y, w: x * w * w + y * (1 - w * w)), "neither"),
    "softmax over channels": (with_gate(lambda z: torch.softmax(z, 1)), ""),
    "group norm": (GroupNormed, "branch"),
    "spatial gate": (SpatialGate, "7x7"),
    "one channel for all": (OneChannel, "channels"),
    "squared relu": (with_act(lambda: _Squared()), "activation"),
    "gelu by tanh": (with_act(lambda: nn.GELU(approximate="tanh")), "activation"),
    "dropout of the gate's scale": (with_gate(lambda z: torch.sigmoid(z) ** 0.5), ""),
    "gate returned": (_returning("out", "w"), "output of the model"),
    "logits returned": (_returning("out", "z"), "output of the model"),
    "sum returned": (_returning("out", "a"), "output of the model"),
}


class _Squared(nn.Module):
    def forward(self, t: Tensor) -> Tensor:
        return torch.relu(t) ** 2
