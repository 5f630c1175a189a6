"""Gates and sums in other words, operator by operator, and what differs from them in one place."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.passes.attention import AFF, INTER, LERP_BLEND, LOCAL, SUM_BLEND, Attention, C, features, model_of, same
from tests.passes.graphs import Array

AXES = {
    "i0": [0],
    "i1": [1],
    "i23": [2, 3],
    "im": [-1],
    "s0": 0,
    "s1": 1,
    "flat": [0, 0, -1],
    "tokens": [0, 30, C],
    "whole": [1, C, 5, 6],
}
INDICES: dict[str, Array] = {name: np.asarray(value, np.int64) for name, value in AXES.items()}
NUMBERS: dict[str, Array] = {
    "one": np.float32(1.0),
    "two": np.float32(2.0),
    "ones3": np.ones((3, 1, 1, 1), np.float32),
    "row": np.full((6,), 0.5, np.float32),
    "thirty": np.float32(30.0),
    "part": np.float32(1 / 30),
    "channels": np.linspace(0.5, 1.5, C, dtype=np.float32).reshape(1, C, 1, 1),
    "last": np.linspace(0.5, 1.5, C, dtype=np.float32),
    "half": np.float32(0.5),
    "matrix1": np.random.default_rng(5).normal(0, 0.7, (C, INTER)).astype(np.float32),
    "matrix2": np.random.default_rng(6).normal(0, 0.7, (INTER, C)).astype(np.float32),
}
PLAIN = AFF.but(blend=SUM_BLEND.removeprefix("one = Constant<value_float: float = 1.0>()\n"))
EXP = "n = Neg(z)\ne = Exp(n)\n"
ONE = "one = Constant<value_float: float = 1.0>()\n"
REST = SUM_BLEND.removeprefix(ONE)
STACKS = "x_s = Unsqueeze(x, i1)\ny_s = Unsqueeze(y, i1)\nxy = Concat<axis: int = 1>(x_s, y_s)\n"
WEIGHTS = "rest = Sub(one, w)\nw_s = Unsqueeze(w, i1)\nr_s = Unsqueeze(rest, i1)\nwr = Concat<axis: int = 1>(w_s, r_s)\n"
WEIGHED = "p_s = Mul(xy, wr)\n"
SOFTMAX = "n = Neg(z_0)\nz_s = Unsqueeze(z_0, i1)\nn_s = Unsqueeze(n, i1)\nz = Concat<axis: int = 1>(z_s, n_s)"
PAIR = "w = Gather<axis: int = 1>(ww, s0)\nv = Gather<axis: int = 1>(ww, s1)"
PAIR_BLEND = "xw = Mul(x, w)\nyv = Mul(y, v)\nout = Add(xw, yv)"
TOKENS = (
    "c_l = Transpose<perm: ints = [0, 2, 3, 1]>(a)\nt_0 = Reshape(c_l, tokens)\nt_1 = MatMul(t_0, matrix1)\n"
    "t_2 = Relu(t_1)\nl = MatMul(t_2, matrix2)"
)
BACK = "m_1 = Transpose<perm: ints = [0, 2, 1]>(w_0)\nxs = Shape(x)\nw = Reshape(m_1, xs)"
MOVED_GATE = "w_0 = Sigmoid(z)\nw_1 = Transpose<perm: ints = [0, 2, 3, 1]>(w_0)\nw = Transpose<perm: ints = [0, 3, 1, 2]>(w_1)"
NEAR = LERP_BLEND.replace("out =", "near =") + "\nlow = Less(w, half)\n"


def of_tokens(logits: str) -> Attention:
    return PLAIN.but(local=TOKENS, pool="", branch="", logits=logits, gate="w_0 = Sigmoid(z)\n" + BACK)


def softmaxed(gate: str, blend: str = PAIR_BLEND) -> Attention:
    return PLAIN.but(logits="z_0 = Add(l, g)\n" + SOFTMAX, gate=gate, blend=blend)


MEMBERS = {
    "opposite": PLAIN.but(gate="w = Sigmoid(z)\nn = Neg(z)\nv = Sigmoid(n)", blend=PAIR_BLEND),
    "opposite, the negated first": PLAIN.but(gate="n = Neg(z)\nv = Sigmoid(n)\nw = Sigmoid(z)", blend=PAIR_BLEND),
    "by exp": PLAIN.but(gate=EXP + "t = Add(one, e)\nw = Reciprocal(t)"),
    "stacks": PLAIN.but(blend=STACKS + WEIGHTS + WEIGHED + "out = ReduceSum<keepdims: int = 0>(p_s, i1)"),
    "softmax": softmaxed("ww = Softmax<axis: int = 1>(z)\n" + PAIR),
    "softmax, stack": softmaxed(
        "ww = Softmax<axis: int = 1>(z)", STACKS + "p_s = Mul(ww, xy)\nout = ReduceSum<keepdims: int = 0>(p_s, i1)"
    ),
    "sum over positions": PLAIN.but(pool="p_0 = ReduceSum(a, i23)\np = Div(p_0, thirty)"),
    "sum over positions times": PLAIN.but(pool="p_0 = ReduceSum(a, i23)\np = Mul(part, p_0)"),
    "vectors": PLAIN.but(logits="z_0 = Add(l, g)\nz_1 = Mul(z_0, channels)\nz = Sub(channels, z_1)"),
    "norm": PLAIN.but(logits="z_0 = Add(l, g)\nz = BatchNormalization(z_0, gamma, beta, mean, var)"),
    "tokens": of_tokens("z = Mul(l, last)"),
    "a batch of one": PLAIN.but(
        local=TOKENS.replace("l = MatMul", "l_0 = MatMul")
        + "\nl_1 = Transpose<perm: ints = [0, 2, 1]>(l_0)\nl = Reshape(l_1, whole)",
        dims="1,8,5,6",
    ),
    "both sides of a Where, of a moved gate": PLAIN.but(
        gate=MOVED_GATE,
        blend=f"{NEAR}rest = Sub(one, w)\nback = Mul(d, rest)\nfar = Sub(x, back)\nout = Where(low, near, far)",
    ),
    "two second maps": PLAIN.but(logits="k = Conv(l_h, u2, d2)\nz_0 = Sub(l, k)\nz = Add(z_0, g)", context="a = Add(x, y)"),
}
NEAR_MISSES = {
    "both sides of a Where, of a moved gate": PLAIN.but(
        gate=MOVED_GATE, blend=f"{NEAR}xw = Mul(x, w)\nfar = Mul(xw, w)\nout = Where(low, near, far)"
    ),
    "opposite of another": PLAIN.but(gate="w = Sigmoid(z)\nn = Neg(g)\nv = Sigmoid(n)", blend=PAIR_BLEND),
    "two plus exp": PLAIN.but(gate=EXP + "t = Add(two, e)\nw = Reciprocal(t)"),
    "ones that broadcast": PLAIN.but(gate=EXP + "t = Add(ones3, e)\nw = Reciprocal(t)", out_dims="K,8,5,6"),
    "two over exp": PLAIN.but(gate=EXP + "t = Add(one, e)\nw = Div(two, t)"),
    "stacks along another axis": PLAIN.but(
        blend=STACKS + WEIGHTS + WEIGHED + "q = ReduceSum<keepdims: int = 0>(p_s, i0)\n"
        "q_0 = Gather<axis: int = 0>(q, s0)\nout = Add(q_0, x)"
    ),
    "a stack that is concatenated": PLAIN.but(
        blend="xy = Concat<axis: int = 0>(x, y)\nrest = Sub(one, w)\nwr = Concat<axis: int = 0>(w, rest)\n"
        "p_s = Mul(xy, wr)\nq = ReduceSum<keepdims: int = 1>(p_s, i0)\nout = Mul(q, one)",
    ),
    "one on a stack": PLAIN.but(
        blend="d_s = Unsqueeze(x, im)\nx_1 = Concat<axis: int = -1>(d_s)\n"
        "w_1 = Unsqueeze(w, im)\nw_2 = Concat<axis: int = -1>(w_1)\n"
        "p_s = Mul(x_1, w_2)\nq_s = Mul(p_s, row)\nq = ReduceSum<keepdims: int = 0>(q_s, im)\n"
        "rest = Sub(one, w)\nyw = Mul(y, rest)\nout = Add(q, yw)",
    ),
    "softmax over the channels": softmaxed("ww = Softmax<axis: int = 2>(z)\n" + PAIR),
    "both weights the same": softmaxed("ww = Softmax<axis: int = 1>(z)\n" + PAIR.replace("ww, s1", "ww, s0")),
    "sum over other positions": PLAIN.but(pool="p_0 = ReduceSum(a, i23)\np = Div(p_0, two)"),
    "sum over everything": PLAIN.but(pool="p_0 = ReduceSum(a)\np_1 = Div(p_0, thirty)\nno = Sub(a, a)\n"
        "p_2 = Add(no, p_1)\np = GlobalAveragePool(p_2)"),
    "a row on the logits": PLAIN.but(logits="z_0 = Add(l, g)\nz = Mul(z_0, last)", dims="N,8,5,8"),
    "rows and columns": PLAIN.but(gate="w_0 = Sigmoid(z)\nw = Transpose<perm: ints = [0, 1, 3, 2]>(w_0)", dims="N,8,5,5"),
    "another first map": PLAIN.but(logits="k_t = Conv(a, u1, d1)\nk_h = Relu(k_t)\n"
        "k = Conv(k_h, u2, d2)\nz_0 = Sub(l, k)\nz = Add(z_0, g)"),
}  # fmt: skip


def check(attention: Attention) -> int:
    text = attention.text
    read = {name: value for name, value in {**INDICES, **NUMBERS}.items() if name in text and f"{name} =" not in text}
    if "one = Constant" in text:
        read.pop("one", None)
    width = int(attention.dims.split(",")[-1])
    model = model_of(attention, **read)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)
    return len(same(model, features(1 if attention.out_dims or attention.dims[0] == "1" else 3, (5, width))).fusions)


@pytest.mark.parametrize("name", MEMBERS)
def test_members(name: str) -> None:
    assert check(MEMBERS[name]) == 1


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str) -> None:
    assert check(NEAR_MISSES[name]) == 0


def test_a_softmax_before_opset_13_is_over_all_that_follows() -> None:
    gate = "ww = Softmax<axis: int = 1>(z)\n" + PAIR
    logits = f"z_0 = Add(l, g)\n{SOFTMAX}".replace("(z_0, i1)", "<axes: ints = [1]>(z_0)").replace(
        "(n, i1)", "<axes: ints = [1]>(n)"
    )
    assert check(PLAIN.but(logits=logits, gate=gate, blend=PAIR_BLEND, opset=12)) == 0


def test_a_moved_gate_that_is_an_output_stays() -> None:
    attention = AFF.but(gate="w = Sigmoid(z)\nmoved = Transpose<perm: ints = [0, 2, 3, 1]>(w)", outputs=("out", "w"))
    result = same(attention.build(), features())
    assert "output of the model" in result.rejected[0].reason


def test_the_complement_of_a_gate_may_be_the_gate() -> None:
    """Both sigmoids are tried: the first feeds nothing but an output."""
    assert check(AFF.but(gate="n = Neg(z)\nv = Sigmoid(n)\nw = Sigmoid(z)", blend=LERP_BLEND)) == 1


def test_reasons_name_what_is_in_the_way() -> None:
    overridable = AFF.build()
    weight = next(tensor for tensor in overridable.graph.initializer if tensor.name == "w1")
    overridable.graph.input.append(helper.make_tensor_value_info(weight.name, TensorProto.FLOAT, list(weight.dims)))
    assert "'w1' is an input of the model" in same(overridable, features()).rejected[0].reason
    training = "l_1 = Conv(a, w1)\nl_t, m_1, m_2 = BatchNormalization<training_mode: int = 1>(l_1, gamma1, beta1, mean1, var1)"
    model = AFF.but(local=LOCAL.replace("l_t = Conv(a, w1, b1)", training)).build()
    assert "training mode" in same(model, features()).rejected[0].reason
    read = AFF.but(blend=SUM_BLEND + "\nseen = Relu(w)", outputs=("out", "seen")).build()
    assert same(read, features()).rejected[0].reason.endswith("read by Relu of 'seen' outside")


def test_sigmoids_of_what_is_no_attention_are_not_reported() -> None:
    steps = "".join(
        f"s_{i} = Sigmoid(m_{i})\nd_{i} = Sub(m_{i}, y)\ne_{i} = Mul(s_{i}, d_{i})\nm_{i + 1} = Add(e_{i}, y)\n"
        for i in range(20)
    )
    attention = Attention("m_0 = Mul(x, y)", "", "", "", "", steps, "out = Relu(m_20)")
    assert same(attention.build(), features()).rejected == ()
