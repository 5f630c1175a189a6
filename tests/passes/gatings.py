"""Gates in other words, sums and stacks of weights, and what looks like them: spellings that the family shares with others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.passes.spellings import Base, C, ChannelsLastLocal, with_blend, with_gate, with_pool


class ChannelsLastGate(ChannelsLastLocal):
    """The whole gate on the last axis, and moved back only at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.fg = nn.Sequential(nn.Linear(C, 4), nn.ReLU(), nn.Linear(4, C))

    def logits(self, a: Tensor) -> Tensor:
        a = a.permute(0, 2, 3, 1)
        return self.fc(a) + self.fg(a.mean((1, 2), keepdim=True))

    def gate(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z).permute(0, 3, 1, 2)


class NormedLogits(Base):
    """BatchNorm, or a factor and a shift for each channel, behind the sum of the branches."""

    def __init__(self, vectors: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(C)
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, C).view(1, C, 1, 1))
        self.vectors = vectors

    def logits(self, a: Tensor) -> Tensor:
        z = super().logits(a)
        return self.factor * (z - 0.3 * self.factor) if self.vectors else self.norm(z)


class TwoWeights(Base):
    """A softmax over the logits of x and those of y, stacked; `how` they are is what a subclass says."""

    how = "zeros"

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(C, 4), nn.ReLU())
        self.fcs = nn.ModuleList([nn.Linear(4, C) for _ in range(2)])

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        x, y = self.stem_x(p), self.stem_y(q)
        a = x + y
        if self.how == "zeros":
            z = self.logits(a)
            w = torch.softmax(torch.stack([z, torch.zeros_like(z)], 1), 1)
            return x * w[:, 0] + y * w[:, 1]
        if self.how == "branches":
            w = torch.softmax(torch.stack([self.local(a), self.glob(a).expand_as(a)], 0), 0)
            return x * w[0] + y * w[1]
        h = self.fc(a.mean((2, 3)))
        if self.how == "vectors":
            w = torch.softmax(torch.stack([fc(h) for fc in self.fcs], 1), 1)[..., None, None]
            return x * w[:, 0] + y * w[:, 1]
        n = x.size(0)
        w = torch.softmax(torch.stack([fc(h).view(n, C, 1, 1) for fc in self.fcs], 0), 0)
        return (w * torch.stack([x, y], 0)).sum(0)


def two_weights(how: str) -> Callable[[], Base]:
    return lambda: type("Weighed", (TwoWeights,), {"how": how})()


class OppositeGates(Base):
    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        x, y = self.stem_x(p), self.stem_y(q)
        z = self.logits(x + y)
        return x * torch.sigmoid(z) + y * torch.sigmoid(-z)


def _stacked(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return (torch.stack([x, y], 1) * torch.stack([w, 1 - w], 1)).sum(1)


class ThreeWeights(Base):
    """Selective kernels over three: a softmax of three logits."""

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        x, y = self.stem_x(p), self.stem_y(q)
        z = self.logits(x + y)
        w = torch.softmax(torch.stack([z, torch.zeros_like(z), -z]), 0)
        return x * w[0] + y * w[1] + (x - y) * w[2]


class OverTheBatch(Base):
    """A softmax over stacked logits, along another axis than the stack's."""

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        x, y = self.stem_x(p), self.stem_y(q)
        z = self.logits(x + y)
        w = torch.softmax(torch.stack([z, torch.zeros_like(z)], 1), 2)
        return x * w[:, 0] + y * w[:, 1]


class TransposedGate(Base):
    """Rows and columns change places on the way to the features."""

    def gate(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z).transpose(2, 3)


class PositionsWeighed(Base):
    """A vector on the logits that follows the columns."""

    def logits(self, a: Tensor) -> Tensor:
        return super().logits(a) * torch.arange(8.0)


GATINGS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "sum over positions by their number": (with_pool(lambda a: a.sum((2, 3), keepdim=True) / (a.size(2) * a.size(3))), "aff"),
    "sigmoid of -z for y": (OppositeGates, "aff"),
    "1 / (1 + exp(-z))": (with_gate(lambda z: 1 / (1 + torch.exp(-z))), "aff"),
    "stack of weights": (with_blend(_stacked), "aff"),
    "BatchNorm on the logits": (NormedLogits, "aff"),
    "vectors on the logits": (lambda: NormedLogits(vectors=True), "aff"),
    "channels-last gate": (ChannelsLastGate, "aff"),
    **{f"softmax of two, {how}": (two_weights(how), "aff") for how in ("zeros", "branches", "vectors", "maps")},
}

NEAR_MISSES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "softmax of three": (ThreeWeights, ""),
    "softmax over channels of a stack": (OverTheBatch, ""),
    "gate transposed": (TransposedGate, "mixes axes"),
    "stack of equal weights": (with_blend(lambda x, y, w: (torch.stack([x, y], 1) * torch.stack([w, w], 1)).sum(1)), ""),
    "sum over positions, halved": (
        with_pool(lambda a: a.sum((2, 3), keepdim=True) / (2 * a.size(2) * a.size(3))),
        "same tensor",
    ),
    "a vector of positions on the logits": (
        PositionsWeighed,
        "channels",
    ),
    "1 / (2 + exp(-z))": (with_gate(lambda z: 1 / (2 + torch.exp(-z))), ""),
}
