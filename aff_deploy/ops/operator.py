"""The operator's signature.

    z   = sum of branches(a)               attention logits, N x C x spatial
    w   = sigmoid(z), or hardsigmoid(z) = clip(z / 6 + 1 / 2, 0, 1)
    out = scale * (x * w + y * (1 - w))    or, without y, scale * x * w
                                           or, split, the two shares scale * x * w and scale * y * (1 - w)

A branch is ``W2 . act(W1 . a + b1) + b2`` at every position (local) or on the global average of
`a` over the spatial axes, broadcast back (global).

A call node's inputs are ``x, [y], [a]`` and then, for each branch, ``w1, b1, w2, b2`` as 1x1
convolutions: w1 is inter x C_a x 1..., w2 is C x inter x 1...; with PRelu, slope inter x 1... follows.
Its attributes repeat in words what
the operator type says, so that a reader (a plugin, a report) needs no naming convention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DOMAIN = "aff_deploy"
DOMAIN_VERSION = 1

Context = Literal["sum", "self", "explicit"]
Branch = Literal["local", "global"]
Gate = Literal["Sigmoid", "HardSigmoid"]

ACTIVATIONS = ("Relu", "Relu6", "LeakyRelu", "PRelu", "Elu", "Silu", "HardSwish", "Gelu", "Mish", "Tanh", "Sigmoid")
"""Functions that may stand between a branch's convolutions. Gelu is the exact one, by erf."""
TAKES_ALPHA = ("LeakyRelu", "Elu")
"""Those with a parameter, the call node's attribute ``alpha``; PRelu's slopes are an input per branch."""

WEIGHTS = ("w1", "b1", "w2", "b2", "slope")
"""A branch's inputs, named after the branch: ``local_w1``; slope with PRelu alone."""


@dataclass(frozen=True)
class Variant:
    """What distinguishes one function body from another; everything else is an input or an attribute.

    Attributes:
        context: what the attention looks at: ``x + y``, ``x`` itself, or a tensor of its own.
        blend: whether there is a second input y; without, the operator is a gate on x.
        branches: which branches make up the logits, local first.
        activation: between a branch's two convolutions.
        gate: which function of the logits w is.
        split: whether the shares of x and y are outputs of their own, not added.
    """

    context: Context = "sum"
    blend: bool = True
    branches: tuple[Branch, ...] = ("local", "global")
    activation: str = "Relu"
    gate: Gate = "Sigmoid"
    split: bool = False

    @property
    def op_type(self) -> str:
        """The operator type: ``AttentionalFusion`` for the plain case, with what differs appended.

        TensorRT finds a local function by its name alone, so every body needs a name of its own.
        """
        name = "AttentionalSplit" if self.split else "AttentionalFusion" if self.blend else "AttentionalGate"
        if self.context == "explicit":
            name += "Context"
        if self.branches != ("local", "global"):
            name += "".join(branch.capitalize() for branch in self.branches)
        name += self.activation if self.activation != "Relu" else ""
        return name + (self.gate if self.gate != "Sigmoid" else "")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the operator's outputs, in order."""
        return ("out_x", "out_y") if self.split else ("out",)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the operator's inputs, in order."""
        tensors = ["x"] + ["y"] * self.blend + ["a"] * (self.context == "explicit")
        parts = WEIGHTS if self.activation == "PRelu" else WEIGHTS[:-1]
        return (*tensors, *(f"{branch}_{part}" for branch in self.branches for part in parts))


def is_fusion(domain: str, op_type: str) -> bool:
    """Whether a node of this type is a call of the fused operator."""
    return domain == DOMAIN and op_type.startswith(("AttentionalFusion", "AttentionalSplit", "AttentionalGate"))


def count_features(op_type: str) -> int:
    """How many of a call's inputs, from the first on, are feature maps (x, y and a); the others are weights."""
    return 1 + (not op_type.startswith("AttentionalGate")) + ("Context" in op_type)
