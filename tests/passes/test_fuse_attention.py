"""Recognition: members fuse and stay the same function; near misses are left alone, with a reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from aff_deploy.onnx_file import check_onnx
from aff_deploy.passes import Optimized, optimize
from tests.passes.attention import AFF, GLOBAL, LERP_BLEND, LOCAL, MSCAM, SUM_BLEND, Attention, iaff
from tests.passes.graphs import assert_exact, run_ort

TWO = "two = Constant<value_float: float = 2.0>()"

SHARES = SUM_BLEND.removesuffix("\nout = Add(xw, yw)")

MEMBERS: dict[str, tuple[Attention, str]] = {
    "aff": (AFF, "aff"),
    "operands swapped": (
        AFF.but(
            context="a = Add(y, x)",
            logits="z = Add(g, l)",
            blend=SUM_BLEND.replace("Mul(x, w)", "Mul(w, x)").replace("Add(xw, yw)", "Add(yw, xw)"),
        ),
        "aff",
    ),
    "lerp form": (AFF.but(blend=LERP_BLEND), "aff"),
    "lerp form, gate on y": (AFF.but(blend="d = Sub(y, x)\nwd = Mul(d, w)\nout = Add(wd, x)"), "aff"),
    "weight on the other input": (
        AFF.but(blend=SUM_BLEND.replace("Mul(x, w)", "Mul(x, rest)").replace("Mul(y, rest)", "Mul(y, w)")),
        "aff",
    ),
    "scale before": (
        AFF.but(
            blend=TWO + "\none = Constant<value_float: float = 1.0>()\n"
            "x2 = Mul(x, two)\nxw = Mul(x2, w)\ny2 = Mul(y, two)\nrest = Sub(one, w)\nyw = Mul(y2, rest)\nout = Add(xw, yw)"
        ),
        "aff",
    ),
    "scale after": (
        AFF.but(blend=SUM_BLEND.replace("out =", "o =") + "\nout = Mul(o, two)").but(
            pool="p = GlobalAveragePool(a)\ntwo = Constant<value_float: float = 2.0>()"
        ),
        "aff",
    ),
    "scale on the gate": (
        AFF.but(
            gate="s = Sigmoid(z)\ntwo = Constant<value_float: float = 2.0>()\nw = Mul(s, two)",
            blend="rest = Sub(two, w)\nxw = Mul(x, w)\nyw = Mul(y, rest)\nout = Add(xw, yw)",
        ),
        "aff",
    ),
    "odd scale": (
        AFF.but(blend=SUM_BLEND.replace("out =", "o =") + "\nk = Constant<value_float: float = 0.3>()\nout = Mul(k, o)"),
        "aff",
    ),
    "negated twice": (AFF.but(blend=SUM_BLEND.replace("out = Add(xw, yw)", "m = Neg(xw)\nout = Sub(yw, m)")), "aff"),
    "both sides of a Where": (
        AFF.but(
            blend=LERP_BLEND.replace("out =", "near =")
            + "\nhalf = Constant<value_float: float = 0.5>()\none = Constant<value_float: float = 1.0>()\n"
            "low = Less(w, half)\nrest = Sub(one, w)\nback = Mul(d, rest)\nfar = Sub(x, back)\nout = Where(low, near, far)"
        ),
        "aff",
    ),
    "ReduceMean, axes as input": (AFF.but(pool="axes = Constant<value_ints: ints = [2, 3]>()\np = ReduceMean(a, axes)"), "aff"),
    "ReduceMean, negative axes": (
        AFF.but(pool="axes = Constant<value_ints: ints = [-1, -2]>()\np = ReduceMean(a, axes)"),
        "aff",
    ),
    "ReduceMean, axes as attribute": (AFF.but(opset=13, pool="p = ReduceMean<axes: ints = [2, 3]>(a)"), "aff"),
    "full-size AveragePool": (AFF.but(pool="p = AveragePool<kernel_shape: ints = [5, 6]>(a)"), "aff"),
    "two outputs": (AFF.but(blend=SHARES, outputs=("xw", "yw")), "aff"),
    "two outputs, scaled": (
        AFF.but(blend=SHARES + "\n" + TWO + "\nxs = Mul(two, xw)\nys = Mul(yw, two)", outputs=("xs", "ys")),
        "aff",
    ),
    "concatenated": (AFF.but(blend=SHARES + "\nout = Concat<axis: int = 1>(xw, yw)", out_dims="N,16,5,6"), "aff"),
    "shares, y the other way": (
        AFF.but(blend="xw = Mul(w, x)\ny_w = Mul(w, y)\nyw = Sub(y, y_w)", outputs=("yw", "xw")),
        "aff",
    ),
    "no biases": (AFF.but(local=LOCAL.replace(", b1", "").replace(", b2", ""), branch=GLOBAL.replace(", c2", "")), "aff"),
    "factor before the branches": (AFF.but(logits=TWO + "\ns = Add(l, g)\nz = Mul(s, two)"), "aff"),
    "difference of branches": (AFF.but(logits="z = Sub(l, g)"), "aff"),
    "mean of the inputs": (
        AFF.but(context="half = Constant<value_float: float = 0.5>()\nt = Add(x, y)\na = Mul(t, half)"),
        "aff",
    ),
    "constant in the logits": (AFF.but(logits="k = Constant<value_float: float = 0.7>()\ns = Add(l, g)\nz = Add(s, k)"), "aff"),
    "BatchNorm behind the branches": (
        AFF.but(
            local=LOCAL.replace("l = Conv", "l_c = Conv") + "\nl = BatchNormalization(l_c, gamma, beta, mean, var)",
            branch=GLOBAL.replace(
                "g_t = Conv(p, v1, c1)", "g_c = Conv(p, v1, c1)\ng_t = BatchNormalization(g_c, gamma1, beta1, mean1, var1)"
            ),
        ),
        "aff",
    ),
    "LeakyRelu": (
        AFF.but(
            local=LOCAL.replace("Relu", "LeakyRelu<alpha: float = 0.2>"),
            branch=GLOBAL.replace("Relu", "LeakyRelu<alpha: float = 0.2>"),
        ),
        "aff",
    ),
    "SiLU": (
        AFF.but(
            local=LOCAL.replace("l_h = Relu(l_t)", "l_s = Sigmoid(l_t)\nl_h = Mul(l_t, l_s)"),
            branch=GLOBAL.replace("g_h = Relu(g_t)", "g_s = Sigmoid(g_t)\ng_h = Mul(g_s, g_t)"),
        ),
        "aff",
    ),
    "local only": (AFF.but(pool="", branch="", logits="z = Identity(l)"), "aff"),
    "global only": (AFF.but(local="", logits="z = Identity(g)"), "aff"),
    "context of its own": (AFF.but(context="a = Mul(x, y)"), "aff"),
    "one input doubled outside": (
        AFF.but(blend=LERP_BLEND.replace("(x, y)", "(x2, y)"), context="a = Add(x, y)\nx2 = Add(x, x)"),
        "aff",
    ),
    "context is one of the inputs": (AFF.but(context="a = Identity(x)"), "aff"),
    "iaff": (iaff(share_global=False), "iaff"),
    "iaff with the shared branch": (iaff(share_global=True), "iaff"),
    "ms-cam": (MSCAM, "mscam"),
    "ms-cam of a sum": (AFF.but(blend="out = Mul(w, a)"), "mscam"),
    "ms-cam, local only": (MSCAM.but(pool="", branch="", logits="z = Identity(l)"), "mscam"),
    "dynamic size": (AFF.but(dims="N,8,H,W"), "aff"),
    "1-D": (AFF.but(dims="N,8,T"), "aff"),
    "3-D": (AFF.but(dims="2,8,3,4,5"), "aff"),
    **{f"opset {version}": (iaff(share_global=False).but(opset=version), "iaff") for version in range(13, 21)},
    "opset 13, scale 2": (
        AFF.but(
            opset=13,
            blend=SUM_BLEND.replace("out =", "o =") + "\ntwo = Constant<value_float: float = 2.0>()\nout = Mul(o, two)",
        ),
        "aff",
    ),
    "Relu behind": (AFF.but(blend=SUM_BLEND.replace("out =", "o =") + "\nout = Relu(o)"), "aff"),
    "inputs from convolutions, and shared with others": (
        AFF.but(blend=LERP_BLEND.replace("out =", "o =") + "\nrx = Relu(x)\nout = Add(o, rx)"),
        "aff",
    ),
}

NEAR_MISSES: dict[str, tuple[Attention, str]] = {
    "branches multiplied": (AFF.but(logits="z = Mul(l, g)"), "multiplied"),
    "global of local": (AFF.but(pool="p = GlobalAveragePool(l)"), "same tensor"),
    "global not pooled": (AFF.but(pool="p = Identity(a)"), "neither is pooled"),
    "both pooled": (AFF.but(local="pl = GlobalAveragePool(a)\n" + LOCAL.replace("Conv(a", "Conv(pl")), "both are pooled"),
    "third branch": (
        AFF.but(logits="e_t = Conv(a, u1, d1)\ne_h = Relu(e_t)\ne = Conv(e_h, u2, d2)\ns = Add(l, g)\nz = Add(s, e)"),
        "sum of 3 branches",
    ),
    "pooled over one axis only": (AFF.but(pool="axes = Constant<value_ints: ints = [2]>()\np = ReduceMean(a, axes)"), ""),
    "maximum instead of average": (AFF.but(pool="p = GlobalMaxPool(a)"), "same tensor"),
    "no activation": (AFF.but(local="l_t = Conv(a, w1, b1)\nl = Conv(l_t, w2, b2)"), "no activation"),
    "different activations": (AFF.but(branch=GLOBAL.replace("Relu", "LeakyRelu")), "different activations"),
    "unknown activation": (AFF.but(local=LOCAL.replace("Relu", "Selu"), branch=GLOBAL.replace("Relu", "Selu")), "Selu"),
    "weights not complementary": (
        AFF.but(blend=SUM_BLEND.replace("float = 1.0", "float = 1.5")),
        "neither",
    ),
    "plus instead of minus": (AFF.but(blend=SUM_BLEND.replace("Sub(one, w)", "Add(one, w)")), "neither"),
    "both weighted alike": (AFF.but(blend="xw = Mul(x, w)\nyw = Mul(y, w)\nout = Add(xw, yw)"), ""),
    "second not weighted": (AFF.but(blend="xw = Mul(x, w)\nout = Add(xw, y)"), "neither"),
    "shares, and the gate itself": (AFF.but(blend=SHARES, outputs=("xw", "yw", "w")), "output of the model"),
    "gate used twice": (AFF.but(outputs=("out", "w")), "output of the model"),
    "logits are an output": (AFF.but(outputs=("out", "z")), "output of the model"),
    "sum is an output": (AFF.but(outputs=("out", "a")), "output of the model"),
    "inner tensor read outside": (AFF.but(outputs=("out", "extra"), blend=SUM_BLEND + "\nextra = Relu(xw)"), "read by Relu"),
    "3x3 convolution": (
        AFF.but(local=LOCAL.replace("Conv(a, w1, b1)", "Conv<pads: ints = [1, 1, 1, 1]>(a, w3x3, b1)")),
        "3x3 kernel",
    ),
    "strided": (
        AFF.but(
            local="a_s = Conv<strides: ints = [2, 2]>(a, w1, b1)\nl_h = Relu(a_s)\nl_o = Conv(l_h, w2, b2)\n"
            "scales = Constant<value_floats: floats = [1.0, 1.0, 2.0, 2.0]>()\n"
            'l = Resize<mode: string = "nearest">(l_o, , scales)',
            dims="N,8,6,6",
        ),
        "",
    ),
    "grouped gate": (AFF.but(gate="w = Softmax<axis: int = 1>(z)"), ""),
    "training-mode BatchNorm": (
        AFF.but(
            local=LOCAL.replace("l = Conv", "l_c = Conv")
            + "\nl, rm, rv = BatchNormalization<training_mode: int = 1>(l_c, gamma, beta, mean, var)"
        ),
        "training mode",
    ),
}


def feeds_for(model: onnx.ModelProto, spread: float = 1.5, seed: int = 1) -> dict[str, np.ndarray]:
    sizes = {"N": 3, "H": 5, "W": 7, "T": 9}
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.input:
        shape = [d.dim_value or sizes[d.dim_param] for d in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = rng.normal(0, spread, shape).astype(dtype)
    return feeds


def assert_same_function(before: onnx.ModelProto, after: onnx.ModelProto, spread: float = 1.5) -> None:
    assert_exact(before, after, feeds_for(before, spread))


def optimised(attention: Attention) -> tuple[onnx.ModelProto, Optimized]:
    before = attention.build()
    result = optimize(before)
    check_onnx(result.model)
    return before, result


@pytest.mark.parametrize("name", MEMBERS)
def test_members_fuse_and_compute_the_same(name: str) -> None:
    attention, kind = MEMBERS[name]
    before, result = optimised(attention)
    assert [fusion.kind for fusion in result.fusions] == [kind], result.rejected
    assert result.rejected == ()
    fusion = result.fusions[0]
    assert (fusion.channels, fusion.inter_channels) == (8, 3)
    left = {node.op_type for node in result.model.graph.node if node.domain == ""}
    assert not left & {"Conv", "Sigmoid", "GlobalAveragePool", "ReduceMean", "BatchNormalization"}
    assert_same_function(before, result.model)


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_are_left_alone_with_a_reason(name: str) -> None:
    attention, reason = NEAR_MISSES[name]
    before, result = optimised(attention)
    assert result.fusions == ()
    if reason:
        assert len(result.rejected) == 1
        assert reason in result.rejected[0].reason
    assert_same_function(before, result.model)


def test_half_precision_fuses() -> None:
    attention = iaff(share_global=False).but(
        dtype="float16",
        blend=iaff(share_global=False).blend.replace(
            "one = Constant<value_float: float = 1.0>()",
            "one_f = Constant<value_float: float = 1.0>()\none = Cast<to: int = 10>(one_f)",
        ),
    )
    before, result = optimised(attention)
    assert [fusion.kind for fusion in result.fusions] == ["iaff"]
    assert_same_function(before, result.model, spread=0.2)


@pytest.mark.parametrize("shared", [False, True])
def test_the_shared_branch_shows(shared: bool) -> None:
    _, result = optimised(iaff(share_global=shared))
    assert result.fusions[0].share_global is shared


def test_scale_and_context_are_read_from_the_graph() -> None:
    said = {
        name: optimised(MEMBERS[name][0])[1].fusions[0]
        for name in ("aff", "scale before", "odd scale", "context of its own", "ms-cam")
    }
    assert [round(fusion.scale, 6) for fusion in said.values()] == [1.0, 2.0, 0.3, 1.0, 1.0]
    assert [fusion.context for fusion in said.values()] == ["sum", "sum", "sum", "explicit", "self"]


def test_without_fuse_the_attention_stays() -> None:
    result = optimize(AFF.build(), fuse=False)
    assert result.fusions == ()
    assert not result.model.functions


@pytest.mark.parametrize(
    ("dims", "attributes"),
    [("2,16,6,6", ["channels", "upsample"]), ("N,16,6,6", ["channels"]), ("N,16,H,W", []), ("N,12,6,6", []), ("2,16,6", [])],
)
def test_the_body_suits_the_shapes(dims: str, attributes: list[str]) -> None:
    """Blocked channels and static sizes each allow a faster body."""
    attention = AFF.but(dims=dims, channels=int(dims.split(",")[1]))
    before, result = optimised(attention)
    assert list(result.model.functions[0].attribute) == attributes
    assert_same_function(before, result.model)


def test_half_precision_does_not_overflow_where_the_original_did_not() -> None:
    one = "one_f = Constant<value_float: float = 1.0>()\none = Cast<to: int = 10>(one_f)"
    blend = SUM_BLEND.replace("one = Constant<value_float: float = 1.0>()", one)
    before, result = optimised(AFF.but(dtype="float16", blend=blend))
    assert len(result.fusions) == 1
    x = np.full((1, 8, 5, 6), 4e4, np.float16)
    assert all(np.isfinite(output).all() for output in run_ort(before, {"x": x, "y": -x}))
    assert_exact(before, result.model, {"x": x, "y": -x})


def test_quantised_weights_are_read_as_what_they_stand_for() -> None:
    quantised = (
        "w1_q = Constant<value: tensor = int8[3, 8, 1, 1] {QS}>()\ns1 = Constant<value_floats: floats = [0.01, 0.02, 0.03]>()\n"
        "w1 = DequantizeLinear<axis: int = 0>(w1_q, s1)\n"
    ).replace("QS", ", ".join(str(value % 255 - 127) for value in range(0, 24 * 37, 37)))
    attention = AFF.but(context=quantised + AFF.context)
    before = attention.build()
    kept = [tensor for tensor in before.graph.initializer if tensor.name != "w1"]
    del before.graph.initializer[:]
    before.graph.initializer.extend(kept)
    result = optimize(before)
    assert [fusion.kind for fusion in result.fusions] == ["aff"]
    assert_same_function(before, result.model)


def test_a_chain_of_doublings_costs_no_more_than_it_is_long() -> None:
    """Taken apart naively, a tensor added to itself forty times has 2**40 ways back to its beginning."""
    chain = "\n".join(f"sum_{i + 1} = Add(sum_{i}, sum_{i})" for i in range(40))
    before = AFF.but(logits=f"sum_0 = Add(l, g)\n{chain}\nz = Identity(sum_40)").build()
    result = optimize(before)
    assert [fusion.kind for fusion in result.fusions] == ["aff"]
    assert_same_function(before, result.model)
