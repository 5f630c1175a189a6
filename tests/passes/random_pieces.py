"""The pieces of random attention graphs: constants, linear maps, pools and activations, each in many spellings."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]

Dims = list["int | str"]

ACTIVATIONS = (
    "Relu", "Relu", "Relu", "LeakyRelu", "PRelu", "Elu", "Silu", "HardSwish", "Gelu", "Mish", "Tanh", "Sigmoid", "Relu6",
)  # fmt: skip


class Builder:
    """Collects nodes and initializers; every choice comes from `rng`."""

    def __init__(self, rng: Random, dims: Dims, opset: int, dtype: type[np.floating[Any]]) -> None:
        self.rng, self.dims, self.opset, self.dtype = rng, dims, opset, np.dtype(dtype)
        self.elem_type = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.numbers = np.random.default_rng(rng.randrange(2**32))
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.count = 0

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def spatial(self) -> list[int]:
        return list(range(2, self.rank))

    @property
    def static(self) -> bool:
        return all(isinstance(dim, int) for dim in self.dims)

    def maybe(self, chance: float) -> bool:
        return self.rng.random() < chance

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = self.name()
        self.nodes.append(helper.make_node(kind, list(inputs), [output], f"n{self.count}", **attributes))
        return output

    def either(self, kind: str, one: str, other: str) -> str:
        """A commutative operator, its operands in either order."""
        return self.op(kind, one, other) if self.maybe(0.5) else self.op(kind, other, one)

    def noise(self, t: str) -> str:
        """`t`, sometimes behind an operator that does nothing."""
        if self.maybe(0.9):
            return t
        kind = self.rng.choice(["Identity", "Dropout", "Cast"])
        return self.op("Cast", t, to=self.elem_type) if kind == "Cast" else self.op(kind, t)

    def constant(self, array: Array) -> str:
        name = self.name()
        tensor = numpy_helper.from_array(np.array(array, order="C"), name)
        if self.maybe(0.3):
            self.nodes.append(helper.make_node("Constant", [], [name], f"n{self.count}", value=tensor))
        else:
            self.initializers.append(tensor)
        # Not integers: onnx's own shape inference mistakes a Slice whose bounds it cannot see for no Slice.
        return self.op("Identity", name) if array.dtype == self.dtype and self.maybe(0.05) else name

    def ints(self, values: Sequence[int]) -> str:
        return self.constant(np.asarray(values, dtype=np.int64))

    def number(self, value: float, rank: int | None = None) -> str:
        """A number, as a scalar or in a shape of at most `rank` ones, perhaps cast from another type."""
        shape = self.rng.choice([(), (), (1,), (1,) * (self.rank if rank is None else rank)])
        if self.maybe(0.1):
            return self.op("Cast", self.constant(np.full(shape, value, np.float64)), to=self.elem_type)
        return self.constant(np.full(shape, value, self.dtype))

    def random(self, *shape: int, spread: float = 1.0) -> Array:
        return self.numbers.normal(0, spread, shape).astype(self.dtype)

    def matrix(self, rows: int, columns: int) -> Array:
        return self.random(rows, columns, spread=1.5 / columns**0.5)

    # ---- linear maps over the channels

    def linear(self, t: str, layout: str, i: int, o: int) -> str:
        """A 1x1 convolution of `t`, which lies as `layout` says: nchw, nct, nhwc, ntc or nc."""
        if layout == "nchw" or (layout == "nct" and self.maybe(0.5)):
            return self._conv(t, i, o, self.rank - 2 if layout == "nchw" else 1)
        if layout == "nc" and self.maybe(0.6):
            return self._gemm(t, i, o)
        if layout == "nct":
            t = self.op("MatMul", self.constant(self.matrix(o, i)), t)
            return self._biased(t, (o, 1))
        t = self.op("MatMul", t, self._matrix_in_out(i, o))
        return self._biased(t, (o,))

    def _matrix_in_out(self, i: int, o: int) -> str:
        if self.maybe(0.3):
            return self.op("Transpose", self.constant(self.matrix(o, i)), perm=[1, 0])
        return self.constant(self.matrix(o, i).T)

    def _biased(self, t: str, shape: tuple[int, ...]) -> str:
        """`t` plus a vector, times one or minus one, or left alone."""
        if self.maybe(0.2):
            t = self.either("Mul", t, self.constant(self.random(*shape)))
        if self.maybe(0.15):
            return self.op("Sub", t, self.constant(self.random(*shape)))
        if self.maybe(0.15):
            t = self.op("Div", t, self.constant(np.abs(self.random(*shape)) + np.ones((), self.dtype)))
        return self.either("Add", t, self.constant(self.random(*shape))) if self.maybe(0.7) else t

    def _conv(self, t: str, i: int, o: int, axes: int) -> str:
        ones = (1,) * axes
        weight = self.constant(self.matrix(o, i).reshape(o, i, *ones))
        attributes = {"kernel_shape": list(ones)} if self.maybe(0.5) else {}
        if self.maybe(0.6):
            t = self.op("Conv", t, weight, self.constant(self.random(o)), **attributes)
        else:
            t = self._biased(self.op("Conv", t, weight, **attributes), (o, *ones))
        return self.norm(t, o) if self.maybe(0.4) else t

    def norm(self, t: str, channels: int) -> str:
        gamma, beta, mean = (self.constant(self.random(channels)) for _ in range(3))
        var = self.constant(self.numbers.uniform(0.3, 3.0, channels).astype(self.dtype))
        return self.op("BatchNormalization", t, gamma, beta, mean, var, epsilon=self.rng.choice([1e-5, 1e-3]))

    def _gemm(self, t: str, i: int, o: int) -> str:
        matrix = self.matrix(o, i)
        transposed = self.maybe(0.6)
        weight = self.constant(matrix if transposed else matrix.T)
        bias = [self.constant(self.random(*self.rng.choice([(o,), (1, o)])))] if self.maybe(0.8) else []
        factors = {"alpha": 0.5, "beta": 2.0} if self.maybe(0.15) else {}
        t = self.op("Gemm", t, weight, *bias, transB=int(transposed), **factors)
        return self.norm(t, o) if self.maybe(0.3) else t

    # ---- pooling, and from one layout to another

    def mean(self, t: str, axes: Sequence[int], rank: int, *, keep: bool) -> str:
        axes = [axis - rank if self.maybe(0.3) else axis for axis in axes]
        if self.opset < 18:
            return self.op("ReduceMean", t, axes=axes, keepdims=int(keep))
        return self.op("ReduceMean", t, self.ints(axes), keepdims=int(keep))

    def pool(self, a: str) -> tuple[str, bool]:
        """The average of `a` over space, and whether its axes are kept as ones."""
        styles = ["GlobalAveragePool", "mean", "mean", "mean twice", "view"]
        if all(isinstance(dim, int) for dim in self.dims[2:]) and self.rank < 5:
            styles.append("AveragePool")
        style = self.rng.choice(styles)
        if style == "GlobalAveragePool":
            return self.op(style, a), True
        if style == "AveragePool":
            return self.op(style, a, kernel_shape=self.dims[2:]), True
        keep = self.maybe(0.5)
        if style == "mean":
            return self.mean(a, self.spatial, self.rank, keep=keep), keep
        if style == "view":
            t = self.op("Reshape", a, self.ints([0, 0, -1]))
            return self.mean(t, [2], 3, keep=False), False
        for i, axis in enumerate(reversed(self.spatial)):
            a = self.mean(a, [axis], self.rank if keep else self.rank - i, keep=keep)
        return a, keep

    def squeeze(self, p: str, channels: int) -> str:
        """N x C x 1 x 1 to N x C."""
        style = self.rng.choice(["Flatten", "Squeeze", "0,-1", "-1,C", "0,0"])
        if style == "Flatten":
            return self.op("Flatten", p, axis=1)
        if style == "Squeeze":
            return self.op("Squeeze", p, self.ints(self.spatial))
        return self.op("Reshape", p, self.ints({"0,-1": [0, -1], "-1,C": [-1, channels], "0,0": [0, channels]}[style]))

    def unsqueeze(self, g: str, channels: int) -> str:
        """N x C to N x C x 1 x 1."""
        style = self.rng.choice(["at once", "one by one", "-1,C", "0,0"])
        if style == "at once":
            return self.op("Unsqueeze", g, self.ints(self.spatial))
        if style == "one by one":
            for _ in self.spatial:
                g = self.op("Unsqueeze", g, self.ints([-1 if self.maybe(0.5) else 2]))
            return g
        return self.op("Reshape", g, self.ints([-1 if style == "-1,C" else 0, channels, *[1] * len(self.spatial)]))

    def enter(self, a: str, layout: str) -> str:
        if layout == "nhwc":
            return self.op("Transpose", a, perm=[0, *self.spatial, 1])
        if layout == "nchw":
            return a
        t = self.op("Reshape", a, self.ints([0, 0, -1]))
        return t if layout == "nct" else self.op("Transpose", t, perm=[0, 2, 1])

    def leave(self, t: str, layout: str, like: str, channels: int) -> str:
        if layout == "nhwc":
            return self.op("Transpose", t, perm=[0, self.rank - 1, *range(1, self.rank - 1)])
        if layout == "nchw":
            return t
        t = t if layout == "nct" else self.op("Transpose", t, perm=[0, 2, 1])
        return self.op("Reshape", t, self.shape_like(like, channels))

    def shape_like(self, like: str, channels: int) -> str:
        """The shape of `like`, with another number of channels."""
        if self.static and self.maybe(0.5):
            return self.ints([int(self.dims[0]), channels, *[int(dim) for dim in self.dims[2:]]])
        shape = self.op("Shape", like)
        if self.maybe(0.5):
            begin = self.op("Slice", shape, self.ints([0]), self.ints([1]), self.ints([0]))
            end = self.op("Slice", shape, self.ints([2]), self.ints([self.rank]), self.ints([0]))
            return self.op("Concat", begin, self.ints([channels]), end, axis=0)
        parts = [self.op("Unsqueeze", self.op("Gather", shape, self.ints(i), axis=0), self.ints([0])) for i in self._but_one()]
        return self.op("Concat", parts[0], self.ints([channels]), *parts[1:], axis=0)

    def _but_one(self) -> list[Any]:
        return [np.asarray(i) for i in range(self.rank) if i != 1]

    # ---- activations

    def activation(self, t: str, name: str, layout: str, channels: int, alpha: float) -> str:
        if name in ("LeakyRelu", "Elu"):
            return self.op(name, t, alpha=alpha)
        if name == "PRelu":
            tail = {"nchw": self.rank - 2, "nct": 1}.get(layout, 0)
            shape = self.rng.choice([(1,), (channels, *[1] * tail)])
            return self.op(name, t, self.constant(np.abs(self.random(*shape))))
        if name == "Relu6":
            return self.op("Clip", t, self.constant(np.asarray(0, self.dtype)), self.constant(np.asarray(6, self.dtype)))
        if name == "Silu":
            return self.either("Mul", t, self.op("Sigmoid", t))
        if name == "HardSwish":
            if self.opset >= 14 and self.maybe(0.5):
                return self.op(name, t)
            return self.either("Mul", t, self.op("HardSigmoid", t, alpha=1 / 6, beta=0.5))
        if name == "Mish":
            return self.either("Mul", t, self.op("Tanh", self.op("Softplus", t)))
        if name == "Gelu":
            one, half = self.number(1.0, 1), self.number(0.5, 1)
            by_two = self.maybe(0.5)
            root = self.op("Div", t, self.number(2**0.5, 1)) if by_two else self.either("Mul", t, self.number(0.5**0.5, 1))
            factor = self.either("Add", self.op("Erf", root), one)
            if self.maybe(0.5):
                return self.either("Mul", self.either("Mul", t, factor), half)
            return self.either("Mul", self.either("Mul", t, half), factor)
        return self.op(name, t)
