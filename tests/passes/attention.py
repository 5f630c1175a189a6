"""Attention subgraphs as ONNX text: the members of the family in many spellings, and near misses.

A subgraph is put together from pieces (context, branches, logits, gate, blend), each a few lines of
text. Weights are declared by name and filled with seeded random values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import numpy_helper, parser

from aff_deploy.onnx_file import check_onnx
from aff_deploy.passes import Optimized, optimize
from tests.passes.graphs import Array, assert_exact, assert_settled, run_ort

C, INTER = 8, 3

LOCAL = "l_t = Conv(a, w1, b1)\nl_h = Relu(l_t)\nl = Conv(l_h, w2, b2)"
POOL = "p = GlobalAveragePool(a)"
GLOBAL = "g_t = Conv(p, v1, c1)\ng_h = Relu(g_t)\ng = Conv(g_h, v2, c2)"

SUM_BLEND = (
    "one = Constant<value_float: float = 1.0>()\nrest = Sub(one, w)\nxw = Mul(x, w)\nyw = Mul(y, rest)\nout = Add(xw, yw)"
)
LERP_BLEND = "d = Sub(x, y)\nwd = Mul(w, d)\nout = Add(y, wd)"

SHAPES = {
    "w1": (INTER, C), "b1": (INTER,), "w2": (C, INTER), "b2": (C,),
    "v1": (INTER, C), "c1": (INTER,), "v2": (C, INTER), "c2": (C,),
    "u1": (INTER, C), "d1": (INTER,), "u2": (C, INTER), "d2": (C,),
    "t1": (INTER, C), "e1": (INTER,), "t2": (C, INTER), "e2": (C,),
    "k1": (INTER, 2 * C), "w3x3": (INTER, C, 3, 3),
    "gamma": (C,), "beta": (C,), "mean": (C,), "var": (C,),
    "gamma1": (INTER,), "beta1": (INTER,), "mean1": (INTER,), "var1": (INTER,),
}  # fmt: skip
MATRICES = frozenset({"w1", "w2", "v1", "v2", "u1", "u2", "t1", "t2", "k1"})


@dataclass(frozen=True)
class Attention:
    """The pieces of one attention subgraph; `build` makes a model of them."""

    context: str = "a = Add(x, y)"
    local: str = LOCAL
    pool: str = POOL
    branch: str = GLOBAL
    logits: str = "z = Add(l, g)"
    gate: str = "w = Sigmoid(z)"
    blend: str = SUM_BLEND
    outputs: tuple[str, ...] = ("out",)
    dims: str = "N,8,5,6"
    out_dims: str = ""
    channels: int = C
    opset: int = 18
    dtype: str = "float"

    def but(self, **pieces: object) -> Attention:
        return replace(self, **pieces)  # type: ignore[arg-type]

    @property
    def text(self) -> str:
        return "\n".join((self.context, self.local, self.pool, self.branch, self.logits, self.gate, self.blend))

    def build(self, seed: int = 0) -> onnx.ModelProto:
        """The model, its weights random."""
        text = self.text
        inputs = [f"{self.dtype}[{self.dims}] {name}" for name in ("x", "y") if re.search(rf"\b{name}\b", text)]
        outputs = ", ".join(f"{self.dtype}[{self.out_dims or self.dims}] {name}" for name in self.outputs)
        version = 8 if self.opset < 21 else 10
        model: onnx.ModelProto = parser.parse_model(
            f'<ir_version: {version}, opset_import: ["" : {self.opset}]>\n'
            f"attention ({', '.join(inputs)}) => ({outputs}) {{\n{text}\n}}"
        )
        spatial = self.dims.count(",") - 1
        rng = np.random.default_rng(seed)
        for name, shape in SHAPES.items():
            if re.search(rf"\b{name}\b", text):
                kernel = (1,) * spatial if name in MATRICES else ()
                sizes = tuple(size // C * self.channels if size >= C else size for size in shape)
                values = rng.uniform(0.3, 3.0, sizes) if name.startswith("var") else rng.normal(0, 0.7, (*sizes, *kernel))
                dtype = np.float16 if self.dtype == "float16" else np.float32
                model.graph.initializer.append(numpy_helper.from_array(values.astype(dtype), name))
        return model


AFF = Attention()
IAFF_SECOND = "\n".join(
    (
        "m_t = Conv(u, u1, d1)\nm_h = Relu(m_t)\nm = Conv(m_h, u2, d2)",
        "q = GlobalAveragePool(u)\nn_t = Conv(q, {0}1, {1}1)\nn_h = Relu(n_t)\nn = Conv(n_h, {0}2, {1}2)",
        "z2 = Add(m, n)\nw_2 = Sigmoid(z2)\nrest2 = Sub(one, w_2)\nxw2 = Mul(x, w_2)\nyw2 = Mul(y, rest2)\nout = Add(xw2, yw2)",
    )
)


def iaff(*, share_global: bool) -> Attention:
    """Two fusions in a chain; with `share_global` the second uses the first's global branch."""
    first = SUM_BLEND.replace("out =", "u =")
    second = IAFF_SECOND.format(*(("v", "c") if share_global else ("t", "e")))
    return AFF.but(blend=f"{first}\n{second}")


MSCAM = AFF.but(context="a = Relu(x)", blend="out = Mul(a, w)")


def model_of(attention: Attention, more: str = "", **constants: Array) -> onnx.ModelProto:
    """The attention's model with constants and, as ``type[dims] name``, more inputs."""
    model = attention.build()
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    if more:
        source = f'<ir_version: 8, opset_import: ["" : 18]>\ng ({more}) => () {{ }}'
        model.graph.input.extend(parser.parse_model(source).graph.input)
    return model


def same(model: onnx.ModelProto, feeds: dict[str, Array]) -> Optimized:
    """The optimised model, which gives what the model gave; to infinite feeds no other NaN."""
    result = optimize(model)
    check_onnx(result.model)
    assert_settled(result.model)
    if all(np.isfinite(array).all() for array in feeds.values()):
        assert_exact(model, result.model, feeds)
        return result
    for want, got in zip(run_ort(model, feeds), run_ort(result.model, feeds), strict=True):
        assert want.shape == got.shape
        assert np.array_equal(np.isnan(want), np.isnan(got))
    return result


def features(batch: int = 3, spatial: tuple[int, int] = (5, 6), scale: float = 1.0) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    return {name: (scale * rng.normal(0, 1, (batch, C, *spatial))).astype(np.float32) for name in "xy"}
