"""One fusion of a random graph: how it is spelled, and how it may go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from onnx import helper

from tests.passes.random_pieces import ACTIVATIONS, Builder

MISSES = (
    "branches multiplied", "global of local", "third branch", "not pooled", "local pooled too", "maximum instead of average",
    "averaged over one axis", "no activation", "different activations", "unknown activation", "weights not complementary",
    "plus instead of minus", "second input not weighted", "logits are an output", "gate is an output", "gate is read elsewhere",
    "wide kernel", "softmax for a gate", "branches read different tensors", "residual logits", "weights are computed",
    "a map over space in the logits", "biased along another axis", "LayerNorm in a branch", "gate transposed",
)  # fmt: skip
# Those that need the same width everywhere, a number for every size, or a branch that convolves.
NEEDS_SQUARE = {"biased along another axis", "gate transposed", "a map over space in the logits"}
_CONVOLVES = {"wide kernel", "weights are computed", "LayerNorm in a branch", "biased along another axis"}


@dataclass
class Site:
    """How one fusion is spelled."""

    builder: Builder
    channels: int
    miss: str = ""
    context: str = "sum"
    branches: tuple[str, ...] = ("local", "global")
    extra_outputs: list[str] = field(default_factory=list)

    def write(self, x: str, y: str, a: str | None = None) -> str:
        """The nodes from x and y to the fusion's output; `a` is the context if it is given."""
        b = self.builder
        a, channels = (a, self.channels) if a is not None else self._context(x, y)
        z = self._logits(b.noise(a), channels, x)
        u, top = self._gate(z)
        if self.miss == "logits are an output":
            self.extra_outputs.append(z)
        if self.miss == "gate is an output":
            self.extra_outputs.append(u)
        if self.miss == "gate is read elsewhere":
            self.extra_outputs.append(b.op("Relu", b.op("Sub", u, b.number(0.5))))
        if self.context == "self":
            return self._scaled(b.either("Mul", x, u))
        if self.miss == "gate transposed":
            u = b.op("Transpose", u, perm=[0, 1, *reversed(b.spatial)])
        if b.maybe(0.5):
            x, y = y, x
        before = b.rng.choice([2.0, 0.5, 0.3]) if b.maybe(0.2) else None
        if before is not None:
            x, y = self._times(x, before), self._times(y, before)
        return self._scaled(self._blend(x, y, u, top))

    # ---- what the attention looks at

    def _context(self, x: str, y: str) -> tuple[str, int]:
        b, c = self.builder, self.channels
        if self.context == "self":
            return x, c
        if self.context == "sum":
            total = b.op("Sum", x, y) if b.maybe(0.15) else b.either("Add", x, y)
            return (self._times(total, b.rng.choice([0.5, 2.0])) if b.maybe(0.15) else total), c
        if self.context == "concat":
            return b.op("Concat", *b.rng.sample([x, y], 2), axis=1), 2 * c
        if self.context == "product":
            return b.either("Mul", x, y), c
        return b.rng.choice([x, y]), c

    # ---- the logits

    def _logits(self, a: str, channels: int, x: str) -> str:
        b = self.builder
        inter = b.rng.choice([1, 2, 3, 5, 7, 4 * self.channels])
        act, alpha = b.rng.choice(ACTIVATIONS), b.rng.choice([0.01, 0.2])
        found: dict[str, str] = {}
        for branch in self.branches:
            source, name, pooled = a, act, branch == "global"
            if branch == "global" and self.miss == "branches read different tensors":
                source = b.op("Relu", a)
            if branch == "global" and self.miss == "global of local":
                source = found["local"]
            if branch == "global" and self.miss == "different activations":
                name = "Tanh" if act != "Tanh" else "Relu"
            if self.miss == "unknown activation":
                name = "Selu"
            if branch == "local" and self.miss == "local pooled too":
                pooled = True
            found[branch] = self._branch(source, channels, inter, name, alpha, pooled=pooled)
        if self.miss == "third branch":
            found["third"] = self._branch(a, channels, inter, act, alpha, pooled=b.maybe(0.5))
        if self.miss == "residual logits":
            found["third"] = x
        if self.miss == "a map over space in the logits":
            found["third"] = b.constant(b.random(*[int(dim) for dim in b.dims[2:]]))
        return self._summed(list(found.values()))

    def _summed(self, terms: list[str]) -> str:
        b = self.builder
        b.rng.shuffle(terms)
        if self.miss == "branches multiplied":
            return b.op("Mul", *terms)
        z = terms[0]
        for term in terms[1:]:
            if b.maybe(0.15):
                term = self._times(term, b.rng.choice([0.5, 2.0, -1.0]))
            kind = b.rng.choice(["Add", "Add", "Add", "Sum", "Sub"])
            z = b.op("Sub", z, b.op("Neg", term)) if kind == "Sub" else b.op(kind, z, term)
        z = self._times(z, b.rng.choice([2.0, 0.7])) if b.maybe(0.15) else z
        return b.either("Add", z, b.number(0.3)) if b.maybe(0.1) else b.noise(z)

    def _branch(self, a: str, channels: int, inter: int, act: str, alpha: float, *, pooled: bool) -> str:
        b, c = self.builder, self.channels
        if not pooled:
            layout = "nchw" if self.miss in _CONVOLVES else b.rng.choice(["nchw", "nchw", "nchw", "nhwc", "nct", "ntc"])
            return self._layers(b.enter(a, layout), layout, channels, inter, act, alpha, lambda t: b.leave(t, layout, a, c))
        p, kept = self._pool(a, channels)
        layout = "nchw" if self.miss else b.rng.choice(["nchw", "nc"])
        if layout == "nc" and kept:
            p = b.squeeze(p, channels)
        elif layout == "nchw" and not kept:
            p = b.unsqueeze(p, channels)
        back: Callable[[str], str] = (lambda t: b.unsqueeze(t, c)) if layout == "nc" else (lambda t: t)
        g = self._layers(p, layout, channels, inter, act, alpha, back)
        if self.miss or channels != c or b.maybe(0.9):
            return g
        return b.op("Expand", g, b.op("Shape", a))

    def _pool(self, a: str, channels: int) -> tuple[str, bool]:
        b = self.builder
        if self.miss == "not pooled":
            return a, True
        if self.miss == "maximum instead of average":
            return b.op("GlobalMaxPool", a), True
        if self.miss == "averaged over one axis":
            return b.mean(a, [2], b.rank, keep=True), True
        return b.pool(a)

    def _layers(
        self, t: str, layout: str, channels: int, inter: int, act: str, alpha: float, back: Callable[[str], str]
    ) -> str:
        b = self.builder
        h = b.linear(t, layout, channels, inter)
        if self.miss == "biased along another axis" and layout == "nchw":
            h = b.either("Add", h, b.constant(b.random(int(b.dims[-1]))))
        if self.miss == "LayerNorm in a branch" and layout == "nchw":
            gain = b.constant(b.random(inter, *[1] * len(b.spatial)))
            mean = b.op("ReduceMean", h, axes=[1]) if b.opset < 18 else b.op("ReduceMean", h, b.ints([1]))
            h = b.op("Mul", b.op("Sub", h, mean), gain)
        if self.miss != "no activation":
            h = b.activation(b.noise(h), act, layout, inter, alpha)
        if self.miss == "weights are computed" and layout == "nchw":
            matrix = b.matrix(self.channels, inter).reshape(-1, inter, *[1] * len(b.spatial))
            return back(b.op("Conv", h, b.op("Add", b.constant(matrix), "k")))
        if self.miss == "wide kernel" and layout == "nchw":
            sizes = [3] * len(b.spatial)
            weight = b.constant(b.random(self.channels, inter, *sizes, spread=0.3))
            return back(b.op("Conv", h, weight, pads=[1] * (2 * len(sizes))))
        return b.noise(back(b.linear(h, layout, inter, self.channels)))

    # ---- the gate and the blend

    def _gate(self, z: str) -> tuple[str, float]:
        """The gate u, and the number that u and its complement add up to."""
        b = self.builder
        if self.miss == "softmax for a gate":
            return b.op("Softmax", z, axis=1), 1.0
        style = b.rng.choice(["Sigmoid", "Sigmoid", "Sigmoid", "Sigmoid", "twice", "HardSigmoid", "tanh", "half tanh"])
        if style == "HardSigmoid":
            slope = b.rng.choice([{}, {"alpha": 1 / 6, "beta": 0.5}])
            return b.op(style, z, **slope), 1.0
        if style == "tanh":
            return b.either("Add", b.op("Tanh", z), b.number(1.0)), 2.0
        if style == "half tanh":
            t = b.op("Tanh", self._times(z, 0.5))
            if b.maybe(0.5):
                return self._times(b.either("Add", t, b.number(1.0)), 0.5), 1.0
            return b.either("Add", self._times(t, 0.5), b.number(0.5)), 1.0
        w = b.noise(b.op("Sigmoid", z))
        if style == "twice":
            return (b.op("Add", w, w) if b.maybe(0.3) else self._times(w, 2.0)), 2.0
        return w, 1.0

    def _times(self, t: str, factor: float) -> str:
        b = self.builder
        if factor == -1.0 and b.maybe(0.5):
            return b.op("Neg", t)
        if b.maybe(0.3):
            return b.op("Div", t, b.number(1.0 / factor))
        return b.either("Mul", t, b.number(factor))

    def _scaled(self, out: str) -> str:
        b = self.builder
        return b.noise(self._times(out, b.rng.choice([2.0, 0.3, -1.0])) if b.maybe(0.25) else out)

    def _rest(self, u: str, top: float) -> str:
        b = self.builder
        if self.miss == "weights not complementary":
            return b.op("Sub", b.number(1.5 * top), u)
        if self.miss == "plus instead of minus":
            return b.either("Add", b.number(top), u)
        style = b.rng.choice(["number", "number", "Neg", "spread", "Expand"])
        if style == "Neg":
            return b.either("Add", b.op("Neg", u), b.number(top))
        if style == "spread":
            fill = helper.make_tensor("", b.elem_type, [1], np.asarray([top], b.dtype))
            return b.op("Sub", b.op("ConstantOfShape", b.op("Shape", u), value=fill), u)
        one = b.op("Expand", b.number(top), b.op("Shape", u)) if style == "Expand" else b.number(top)
        return b.op("Sub", one, u)

    def _blend(self, x: str, y: str, u: str, top: float) -> str:
        """``x u + y (top - u)``."""
        b = self.builder
        style = b.rng.choice(["plain", "plain", "Sum", "Neg", "lerp", "back", "expanded", "Where"])
        if self.miss == "second input not weighted":
            return b.either("Add", b.either("Mul", x, u), y)
        if self.miss in ("weights not complementary", "plus instead of minus"):
            style = "plain"
        if style == "lerp":
            return self._lerp(x, y, u, top)
        if style == "back":
            return b.op("Sub", self._of(x, top), b.either("Mul", self._rest(u, top), b.op("Sub", x, y)))
        if style == "Where":
            back = b.op("Sub", self._of(x, top), b.either("Mul", self._rest(u, top), b.op("Sub", x, y)))
            return b.op("Where", b.op("Less", u, b.number(top / 2)), self._lerp(x, y, u, top), back)
        xu = b.either("Mul", x, u)
        if style == "expanded":
            return b.op("Sub", b.either("Add", xu, self._of(y, top)), b.either("Mul", y, u))
        yr = b.either("Mul", y, self._rest(u, top))
        if style == "Neg":
            return b.op("Sub", yr, b.op("Neg", xu))
        return b.op("Sum", xu, yr) if style == "Sum" else b.either("Add", xu, yr)

    def _lerp(self, x: str, y: str, u: str, top: float) -> str:
        b = self.builder
        return b.either("Add", self._of(y, top), b.either("Mul", u, b.op("Sub", x, y)))

    def _of(self, t: str, top: float) -> str:
        return t if top == 1.0 else self._times(t, top)
