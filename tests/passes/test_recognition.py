"""What random graphs and other people's models have taught the recogniser, each in its smallest form."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from aff_deploy.onnx_file import check_onnx
from aff_deploy.passes import Optimized, optimize
from tests.passes.attention import AFF, GLOBAL, INTER, LERP_BLEND, LOCAL, MSCAM, SUM_BLEND, Attention, C
from tests.passes.graphs import Array, assert_exact

ROOT, SIXTH = "float = 0.70710678", "float = 0.16666667"
NUMBERS = (
    f"root = Constant<value_{ROOT[:5]}: {ROOT}>()\nhalf = Constant<value_float: float = 0.5>()\n"
    "three = Constant<value_float: float = 3.0>()\nsix = Constant<value_float: float = 6.0>()\n"
    "zero = Constant<value_float: float = 0.0>()\n"
)


def both(old: str, new: str) -> dict[str, str]:
    """The same change in both branches; ``$`` is the branch's letter."""
    pieces = {"local": (LOCAL, "l"), "branch": (GLOBAL, "g")}
    return {name: text.replace(old.replace("$", b), new.replace("$", b)) for name, (text, b) in pieces.items()}


GELU = "$_s = Mul($_t, root)\n$_e = Erf($_s)\n$_o = Add($_e, one)\n$_m = Mul($_t, $_o)\n$_h = Mul($_m, half)"
ONE = "one = Constant<value_float: float = 1.0>()\n"
REST_BLEND = SUM_BLEND.removeprefix(ONE)
HARD_SWISH = "$_p = Add($_t, three)\n$_c = Clip($_p, zero, six)\n$_m = Mul($_t, $_c)\n$_h = Div($_m, six)"
TOKENS = (
    "s = Shape(a)\nflat = Constant<value_ints: ints = [0, 0, -1]>()\nl_f = Reshape(a, flat)\nl_t = Conv(l_f, r1, b1)\n"
    "l_h = Relu(l_t)\nl_o = Conv(l_h, r2, b2)\nl = Reshape(l_o, s)"
)

FIRST = "l_t = Conv(a, w1, b1)"
SECOND = "m_t = Conv(u, u1, d1)\nm_h = Relu(m_t)\nm = Conv(m_h, u2, d2)\nw_2 = Sigmoid(m)"

MEMBERS: dict[str, tuple[Attention, int]] = {
    "weights of another rank": (AFF.but(local=TOKENS), 1),
    "a vector subtracted and divided by": (
        AFF.but(
            local=LOCAL.replace(FIRST, "l_1 = Conv(a, w1)\nl_2 = Sub(l_1, vec)\nl_t = Div(l_2, div)"),
        ),
        1,
    ),
    "subtracted from a vector": (AFF.but(local=LOCAL.replace(FIRST, "l_1 = Conv(a, w1)\nl_t = Sub(vec, l_1)")), 1),
    "BatchNorm behind a bias that is added": (
        AFF.but(
            local=LOCAL.replace(
                FIRST,
                "l_1 = Conv(a, w1)\nl_2 = Add(l_1, vec)\nl_t = BatchNormalization(l_2, gamma1, beta1, mean1, var1)",
            ),
        ),
        1,
    ),
    "GELU behind a bias that is added": (
        AFF.but(
            context=NUMBERS + ONE + "a = Add(x, y)",
            blend=REST_BLEND,
            local=both("$_h = Relu($_t)", GELU)["local"].replace(FIRST, "l_1 = Conv(a, w1)\nl_t = Add(l_1, vec)"),
            branch=both("$_h = Relu($_t)", GELU)["branch"],
        ),
        1,
    ),
    "hard swish by clip": (AFF.but(context=NUMBERS + "a = Add(x, y)", **both("$_h = Relu($_t)", HARD_SWISH)), 1),
    "hard sigmoid by clip": (
        AFF.but(context=NUMBERS + "a = Add(x, y)", gate="z3 = Add(z, three)\nz6 = Clip(z3, zero, six)\nw = Div(z6, six)"),
        1,
    ),
    "iaff that shares x - y": (
        AFF.but(blend=LERP_BLEND.replace("out =", "u =") + f"\n{SECOND}\nwd2 = Mul(w_2, d)\nout = Add(y, wd2)"),
        2,
    ),
    "gate expanded": (
        AFF.but(local="", logits="z = Identity(g)", gate="w_s = Sigmoid(z)\ns = Shape(x)\nw = Expand(w_s, s)", dims="N,8,H,W"),
        1,
    ),
    "ones like the gate, sizes unknown": (
        AFF.but(
            blend="s = Shape(w)\nones = ConstantOfShape<value: tensor = float[1] {1.0}>(s)\nrest = Sub(ones, w)\n"
            "xw = Mul(x, w)\nyw = Mul(y, rest)\nout = Add(xw, yw)",
            dims="N,8,H,W",
        ),
        1,
    ),
    "computed Reshape in opset 13": (AFF.but(local=TOKENS, opset=13), 1),
    "averaged by rows, then by columns": (
        AFF.but(pool="p_r = AveragePool<kernel_shape: ints = [1, 6]>(a)\np = AveragePool<kernel_shape: ints = [5, 1]>(p_r)"),
        1,
    ),
    "opset 12": (AFF.but(opset=12), 1),
}

BIG = "big = Constant<value: tensor = float[5, 1, 1, 1] {0.5, 0.5, 0.5, 0.5, 0.5}>()\n"
NEAR_MISSES: dict[str, tuple[Attention, dict[str, str]]] = {
    "y of size one": (AFF, {"y": "N,8,1,1"}),
    "y of batch one": (AFF, {"y": "1,8,H,W"}),
    "a condition that broadcasts": (
        AFF.but(
            context=BIG + "a = Add(x, y)",
            blend=LERP_BLEND.replace("out =", "near =") + "\nlow = Less(w, big)\nout = Where(low, near, near)",
            out_dims="B,8,H,W",
        ),
        {},
    ),
    "a bias along the width": (
        AFF.but(
            local=LOCAL.replace("Conv(a, w1, b1)", "Conv(a, w1)").replace(
                "l_h = Relu(l_t)", "l_b = Add(l_t, vec3)\nl_h = Relu(l_b)"
            ),
            dims="N,8,5,3",
        ),
        {},
    ),
    "rows left out": (
        AFF.but(
            pool="p_r = AveragePool<kernel_shape: ints = [1, 6]>(a)\n"
            "p = AveragePool<kernel_shape: ints = [1, 1], strides: ints = [5, 1]>(p_r)"
        ),
        {},
    ),
    "MobileNet's blocks": (
        MSCAM.but(context=NUMBERS + "a = Relu(x)", gate="w = Clip(z, zero, six)", blend="out = Relu(w)"),
        {},
    ),
}
VECTORS = {"vec": (INTER, 1, 1), "div": (INTER, 1, 1), "r1": (INTER, C, 1), "r2": (C, INTER, 1), "vec3": (INTER,)}


def built(attention: Attention, dims: dict[str, str]) -> onnx.ModelProto:
    """The model, with other sizes for some inputs and the constants of this file."""
    model = attention.but(dims=attention.dims if not dims else "N,8,H,W").build()
    for value in model.graph.input:
        if value.name in dims:
            sizes = [int(dim) if dim.isdigit() else dim for dim in dims[value.name].split(",")]
            value.CopyFrom(helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, sizes))
    rng = np.random.default_rng(3)
    read = {name for node in model.graph.node for name in node.input}
    for name, shape in VECTORS.items():
        if name in read:
            values = rng.uniform(0.5, 1.5, shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def checked(model: onnx.ModelProto, batch: int = 3) -> Optimized:
    result = optimize(model)
    check_onnx(result.model)
    rng = np.random.default_rng(1)
    sizes = {"N": batch, "H": 5, "W": 6}
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        shape = [dim.dim_value or sizes[dim.dim_param] for dim in value.type.tensor_type.shape.dim]
        feeds[value.name] = rng.normal(0, 1, shape).astype(np.float32)
    assert_exact(model, result.model, feeds)
    return result


@pytest.mark.parametrize("name", MEMBERS)
def test_members(name: str) -> None:
    attention, count = MEMBERS[name]
    result = checked(built(attention, {}))
    assert len([node for node in result.model.graph.node if node.domain == "aff_deploy"]) == count, result.rejected
    assert result.rejected == ()


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str) -> None:
    attention, dims = NEAR_MISSES[name]
    assert checked(built(attention, dims), batch=1).fusions == ()


def test_global_attention_of_a_dynamic_size_is_called_global() -> None:
    """Not local attention on the pooled tensor, which is another operator with other shapes."""
    result = checked(AFF.but(context="a = Mul(x, y)", local="", logits="z = Identity(g)", dims="N,8,H,W").build())
    assert [(fusion.branches, fusion.context) for fusion in result.fusions] == [(("global",), "explicit")]


def test_no_fusion_reads_what_another_has_swallowed() -> None:
    """``u w + y`` with ``u = t - y`` and ``t = w1 (y - x)`` is a blend of t and y; but t is inside, and what is left a gate."""
    first = "d = Sub(y, x)\nt = Mul(w, d)\nu = Sub(t, y)"
    result = checked(AFF.but(blend=f"{first}\n{SECOND}\nuw = Mul(u, w_2)\nout = Add(uw, y)").build())
    assert [fusion.kind for fusion in result.fusions] == ["aff", "mscam"]
    assert len(result.model.graph.node) == 3


def test_a_weight_made_an_integer_is_not_its_values() -> None:
    """Too large a weight to be folded."""
    local = "w1_i = Cast<to: int = 7>(w1)\nw1_f = Cast<to: int = 1>(w1_i)\n" + LOCAL.replace("a, w1", "a, w1_f")
    result = checked(AFF.but(local=local, dims="N,1408,2,2", channels=1408).build())
    assert result.fusions == ()
