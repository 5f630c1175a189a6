"""The family as people write it in PyTorch: members in many spellings, and relatives that are none.

Each factory makes a network of two inputs N x 16 x 8 x 8 (or what `SHAPES` says).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

C = 16


def branch(
    pooled: bool = False,
    channels: int = C,
    inter: int = 4,
    act: Callable[[], nn.Module] = nn.ReLU,
    norm: bool = True,
    bias: bool = True,
    out: int = C,
) -> nn.Sequential:
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)] if pooled else []
    for i, o in ((channels, inter), (inter, out)):
        layers += [nn.Conv2d(i, o, 1, bias=bias), *([nn.BatchNorm2d(o)] if norm else []), act()]
    return nn.Sequential(*layers[:-1])


class Base(nn.Module):
    """x and y from a convolution each, attention by `logits`, blended by `blend`."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.stem_x = nn.Conv2d(3, C, 3, padding=1)
        self.stem_y = nn.Conv2d(3, C, 3, padding=1)
        self.local = branch(**options)  # type: ignore[arg-type]
        self.glob = branch(True, **options)  # type: ignore[arg-type]

    def context(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def logits(self, a: Tensor) -> Tensor:
        return self.local(a) + self.glob(a)

    def gate(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    def blend(self, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return x * w + y * (1 - w)

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        x, y = self.stem_x(p), self.stem_y(q)
        return torch.relu(self.blend(x, y, self.gate(self.logits(self.context(x, y)))))


def with_blend(blend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], Base]:
    return lambda: type("Blend", (Base,), {"blend": lambda self, x, y, w: blend(x, y, w)})()


def with_pool(pool: Callable[[Tensor], Tensor]) -> Callable[[], Base]:
    class Pooled(Base):
        def logits(self, a: Tensor) -> Tensor:
            return self.local(a) + self.glob[1:](pool(a))

    return Pooled


def with_act(act: Callable[[], nn.Module]) -> Callable[[], Base]:
    return lambda: Base(act=act)


def with_gate(gate: Callable[[Tensor], Tensor]) -> Callable[[], Base]:
    return lambda: type("Gated", (Base,), {"gate": lambda self, z: gate(z)})()


class LinearGlobal(Base):
    """The global branch as Linear layers, flattened by `style`."""

    style = "flatten"

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(C, 4), nn.ReLU(), nn.Linear(4, C))

    def logits(self, a: Tensor) -> Tensor:
        n, c = a.shape[:2]
        if self.style == "flatten":
            g = self.fc(F.adaptive_avg_pool2d(a, 1).flatten(1)).unsqueeze(-1).unsqueeze(-1)
        elif self.style == "view":
            g = self.fc(F.adaptive_avg_pool2d(a, 1).view(n, c)).view(n, c, 1, 1)
        elif self.style == "mean":
            g = self.fc(a.mean((2, 3)))[:, :, None, None]
        elif self.style == "reshape":
            g = self.fc(a.mean((2, 3))).reshape(-1, c, 1, 1)
        elif self.style == "expand":
            g = self.fc(a.mean((2, 3))).view(n, c, 1, 1).expand_as(a)
        else:
            g = self.fc(a.flatten(2).mean(2)).view(n, c, 1, 1)
        return self.local(a) + g


def linear_global(style: str) -> Callable[[], Base]:
    return lambda: type("Styled", (LinearGlobal,), {"style": style})()


class ChannelsLastLocal(Base):
    """The local branch as Linear layers on the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(C, 4), nn.ReLU(), nn.Linear(4, C))

    def logits(self, a: Tensor) -> Tensor:
        return self.fc(a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + self.glob(a)


class TokensLocal(ChannelsLastLocal):
    def logits(self, a: Tensor) -> Tensor:
        n, c, h, w = a.shape
        tokens = a.flatten(2).transpose(1, 2)
        return self.fc(tokens).transpose(1, 2).reshape(n, c, h, w) + self.glob(a)


class Shared(Base):
    """Both branches use the same weights."""

    def logits(self, a: Tensor) -> Tensor:
        return self.glob[1:](a) + self.glob(a)


class IAFF(Base):
    share = False

    def __init__(self) -> None:
        super().__init__()
        self.local2, self.glob2 = branch(), branch(True)

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        x, y = self.stem_x(p), self.stem_y(q)
        a = x + y
        w = torch.sigmoid(self.local(a) + self.glob(a))
        u = x * w + y * (1 - w)
        w2 = torch.sigmoid(self.local2(u) + (self.glob if self.share else self.glob2)(u))
        return torch.relu(x * w2 + y * (1 - w2))


class IAFFShared(IAFF):
    share = True


class MSCAM(Base):
    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        x = self.stem_x(p) + self.stem_y(q)
        x = torch.relu(x)
        return x * torch.sigmoid(self.logits(x))


class ERes2Net(Base):
    """Local attention on the concatenation, blended by 1 + tanh and 1 - tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.local = branch(channels=2 * C, act=nn.SiLU)

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        x, y = self.stem_x(p), self.stem_y(q)
        w = 1.0 + torch.tanh(self.local(torch.cat((x, y), dim=1)))
        return x * w + y * (2.0 - w)


class Projected(Base):
    """The second input comes in another size and number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem_y = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.project = nn.Conv2d(24, C, 1)

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        x = self.stem_x(p)
        y = F.interpolate(self.project(self.stem_y(q)), scale_factor=2.0, mode="nearest")
        return self.blend(x, y, self.gate(self.logits(x + y)))


class GlobalOnly(Base):
    def logits(self, a: Tensor) -> Tensor:
        return self.glob(a)


class LocalOnly(Base):
    def logits(self, a: Tensor) -> Tensor:
        return self.local(a)


class Doubled(Base):
    def blend(self, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return 2 * x * w + 2 * y * (1 - w)


class OneDimensional(Base):
    def __init__(self) -> None:
        super().__init__()
        self.stem_x, self.stem_y = nn.Conv1d(3, C, 3, padding=1), nn.Conv1d(3, C, 3, padding=1)
        self.local = nn.Sequential(nn.Conv1d(C, 4, 1), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, C, 1), nn.BatchNorm1d(C))
        self.glob = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Conv1d(C, 4, 1), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, C, 1))


class ThreeDimensional(Base):
    def __init__(self) -> None:
        super().__init__()
        self.stem_x, self.stem_y = nn.Conv3d(3, C, 3, padding=1), nn.Conv3d(3, C, 3, padding=1)
        self.local = nn.Sequential(nn.Conv3d(C, 4, 1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, C, 1))
        self.glob = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Conv3d(C, 4, 1), nn.ReLU(), nn.Conv3d(4, C, 1))


SHAPES: dict[str, tuple[int, ...]] = {"1-D": (2, 3, 10), "3-D": (2, 3, 4, 6, 5)}

MEMBERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "plain": (Base, "aff"),
    "times two": (Doubled, "aff"),
    "times two outside": (with_blend(lambda x, y, w: 2 * (x * w + y * (1 - w))), "aff"),
    "y + w(x-y)": (with_blend(lambda x, y, w: y + w * (x - y)), "aff"),
    "x - (1-w)(x-y)": (with_blend(lambda x, y, w: x - (1 - w) * (x - y)), "aff"),
    "lerp": (with_blend(lambda x, y, w: torch.lerp(y, x, w)), "aff"),
    "ones_like": (with_blend(lambda x, y, w: x * w + y * (torch.ones_like(w) - w)), "aff"),
    "full_like": (with_blend(lambda x, y, w: x * w + y * (torch.full_like(w, 1.0) - w)), "aff"),
    "1 - w first": (with_blend(lambda x, y, w: (1 - w) * y + w * x), "aff"),
    "rsub": (with_blend(lambda x, y, w: x * w + y * torch.rsub(w, 1)), "aff"),
    "addcmul": (with_blend(lambda x, y, w: torch.addcmul(y, w, x - y)), "aff"),
    "x*w + y - y*w": (with_blend(lambda x, y, w: x * w + y - y * w), "aff"),
    "sum of a list": (with_blend(lambda x, y, w: sum([x * w, y * (1 - w)])), "aff"),
    "mean (2, 3)": (with_pool(lambda a: a.mean((2, 3), keepdim=True)), "aff"),
    "mean twice": (with_pool(lambda a: a.mean(3, keepdim=True).mean(2, keepdim=True)), "aff"),
    "mean twice, no keepdim": (with_pool(lambda a: a.mean(3).mean(2)[:, :, None, None]), "aff"),
    "view and mean": (with_pool(lambda a: a.view(a.size(0), a.size(1), -1).mean(2).view(a.size(0), a.size(1), 1, 1)), "aff"),
    "avg_pool2d of full size": (with_pool(lambda a: F.avg_pool2d(a, a.shape[2:])), "aff"),
    "adaptive_avg_pool2d": (with_pool(lambda a: F.adaptive_avg_pool2d(a, (1, 1))), "aff"),
    **{
        f"linear, {style}": (linear_global(style), "aff")
        for style in ("flatten", "view", "mean", "reshape", "expand", "tokens")
    },
    "channels-last linear": (ChannelsLastLocal, "aff"),
    "token linear": (TokensLocal, "aff"),
    "shared branches": (Shared, "aff"),
    "no norm": (lambda: Base(norm=False), "aff"),
    "no bias": (lambda: Base(bias=False), "aff"),
    "no norm, no bias": (lambda: Base(norm=False, bias=False), "aff"),
    "inter 7": (lambda: Base(inter=7), "aff"),
    "inter 26": (lambda: Base(inter=26), "aff"),
    "inter 1": (lambda: Base(inter=1), "aff"),
    **{
        act.__name__: (with_act(act), "aff")
        for act in (nn.SiLU, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.Mish, nn.Hardswish, nn.ReLU6, nn.ELU, nn.Tanh)
    },
    "PReLU per channel": (with_act(lambda: nn.PReLU(4)), "aff"),
    "hard sigmoid": (with_gate(F.hardsigmoid), "aff"),
    "tanh gate": (with_gate(lambda z: 0.5 * (1 + torch.tanh(z / 2))), "aff"),
    "nn.Sigmoid of twice": (with_gate(lambda z: torch.sigmoid(2 * z)), "aff"),
    "local only": (LocalOnly, "aff"),
    "global only": (GlobalOnly, "aff"),
    "iaff": (IAFF, "iaff"),
    "iaff, shared global": (IAFFShared, "iaff"),
    "ms-cam": (MSCAM, "mscam"),
    "eres2net": (ERes2Net, "aff"),
    "projected and resized": (Projected, "aff"),
    "1-D": (OneDimensional, "aff"),
    "3-D": (ThreeDimensional, "aff"),
}
