"""Calls of the kernels for the tests: sizes, seeded inputs, and what the definition makes of them.

Used in a process where Triton interprets (`tests.ops.interpreted`) and in one where it compiles (`tests.plugins.stand_in`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from aff_deploy.ops import Variant
from aff_deploy.ops.launch import Blocks, Call, largest_divisor
from aff_deploy.ops.reference import attentional_fusion

TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
"""The largest error that is allowed, of the largest value of the output."""

PARTS = ("w1", "b1", "w2", "b2")

BOTH = ("local", "global")
WAYS = (("sum", True), ("self", True), ("self", False), ("explicit", True), ("explicit", False), ("concat", True))
# Small enough that several blocks are needed of everything.
SMALL = Blocks(16, 16, 16, 4, 32, 16, 16, 16, 4, logits_c=16, logits_i=16, logits_rows=2)


@dataclass(frozen=True)
class Case:
    """A call; sizes as in `aff_deploy.ops.launch.Call`. `blocks` None takes the table's."""

    channels: int = 16
    inter: int = 4
    spatial: tuple[int, ...] = (5, 6)
    images: int = 2
    context: str = "sum"
    blend: bool = True
    branches: tuple[str, ...] = BOTH
    activation: str = "Relu"
    gate: str = "Sigmoid"
    scale: float = 1.0
    last: bool = False
    blocks: Blocks | None = None
    context_channels: int = 0
    size: float = 1.0

    @property
    def seen(self) -> int:
        """Channels of the context."""
        return self.context_channels or self.channels * (2 if self.context == "concat" else 1)

    def call(self, dtype: str) -> Call:
        """What the kernels are compiled for."""
        return Call(
            channels=self.channels,
            inter=self.inter,
            context_channels=self.seen,
            dtype=dtype,  # type: ignore[arg-type]
            layout="channels_last" if self.last else "linear",
            context=self.context,  # type: ignore[arg-type]
            blend=self.blend,
            branches=self.branches,  # type: ignore[arg-type]
            activation=self.activation,
            gate=self.gate,  # type: ignore[arg-type]
            multiple=largest_divisor(math.prod(self.spatial)),
        )


CASES: tuple[Case, ...] = (
    # Every context, with and without y, by every set of branches.
    *(
        Case(
            context=context,
            blend=blend,
            branches=branches,
            last=(i + j) % 2 == 1,
            context_channels=19 if context == "explicit" else 0,
            images=1,
        )
        for i, branches in enumerate((BOTH, ("local",), ("global",)))
        for j, (context, blend) in enumerate(WAYS)
    ),
    # Tails: nothing is a multiple of anything; one of everything; many blocks of everything.
    Case(channels=35, inter=7, spatial=(5, 7), blocks=SMALL, scale=1.7),
    Case(channels=35, inter=7, spatial=(5, 7), blocks=SMALL, last=True),
    Case(
        channels=40,
        inter=20,
        spatial=(4, 5),
        images=1,
        blocks=SMALL,
        context="concat",
        branches=("local",),
        scale=2.0,
        activation="Silu",
    ),
    Case(channels=21, inter=40, spatial=(1, 17), blocks=SMALL, context="explicit", context_channels=50),
    Case(channels=1, inter=1, spatial=(1, 1), images=1),
    Case(channels=20, inter=33, spatial=(1, 1), images=5, last=True),
    Case(channels=48, inter=26, spatial=(33,), activation="Silu", gate="HardSigmoid"),
    Case(channels=16, inter=20, spatial=(3, 5, 4), gate="HardSigmoid", scale=2.0),
    # The table's blocks at sizes of networks.
    Case(channels=64, inter=16, spatial=(14, 14), images=1),
    Case(channels=520, inter=65, spatial=(3, 3), images=1, last=True),
    Case(channels=40, inter=130, spatial=(9, 9), images=1, last=True, activation="Silu"),
    # Logits far from zero: no overflow where the gate saturates.
    Case(channels=24, inter=8, spatial=(4, 4), size=40.0),
)

SLOW_CASES: tuple[Case, ...] = (
    Case(channels=4096, inter=70, spatial=(2, 2), images=1),
    Case(channels=2048, inter=128, spatial=(7, 7), images=1, last=True),
    Case(channels=600, inter=70, spatial=(9, 8), images=1, gate="HardSigmoid"),
    Case(channels=64, inter=130, spatial=(12, 12), images=3, context="self", blend=False, last=True),
    Case(channels=256, inter=64, spatial=(20, 20), images=2),
)


def inputs_of(case: Case, dtype: str) -> dict[str, torch.Tensor]:
    """Seeded tensors by name: x, y, a, and of each branch ``local_w1`` and so on; x in the case's layout."""
    generator = np.random.default_rng(0)

    def random(*shape: int, fan_in: int = 1) -> torch.Tensor:
        return torch.from_numpy(generator.normal(size=shape) / np.sqrt(fan_in)).to(getattr(torch, dtype))

    seen = case.seen
    full = (case.images, case.channels, *case.spatial)
    made = {"x": random(*full), "y": random(*full), "a": random(case.images, seen, *case.spatial)}
    if case.last:
        made["x"] = made["x"].contiguous(memory_format=torch.channels_last)
    for branch in case.branches:
        made[f"{branch}_w1"], made[f"{branch}_b1"] = random(case.inter, seen, fan_in=seen), random(case.inter)
        made[f"{branch}_w2"] = random(case.channels, case.inter, fan_in=case.inter)
        made[f"{branch}_b2"] = random(case.channels) * case.size
    return made


def arguments_of(case: Case, inputs: dict[str, torch.Tensor]) -> tuple[Any, ...]:
    """`inputs` and the case's words as the operator takes them, in its order."""
    return (
        inputs["x"],
        inputs["y"] if case.blend else None,
        inputs["a"] if case.context == "explicit" else None,
        [inputs[f"{branch}_{part}"] for branch in case.branches for part in PARTS],
        case.context,
        "+".join(case.branches),
        case.activation,
        case.gate,
        case.scale,
    )


def error_of(case: Case, inputs: dict[str, torch.Tensor], out: torch.Tensor) -> float:
    """The largest difference of `out` from the definition, in the definition's largest value."""
    context = "explicit" if case.context in ("explicit", "concat") else case.context
    variant = Variant(context, case.blend, case.branches, case.activation, case.gate)  # type: ignore[arg-type]
    named = dict(inputs)
    if case.context == "concat":
        named["a"] = torch.cat([inputs["x"], inputs["y"]], 1)
    expected = attentional_fusion(variant, {name: tensor.double().numpy() for name, tensor in named.items()}, scale=case.scale)
    return float(np.max(np.abs(out.double().numpy() - expected)) / np.max(np.abs(expected)))
