"""What fits neither its operator nor its type: misshapen weights, products that overflow or fade, constants that broadcast."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from aff_deploy.onnx_file import check_onnx
from aff_deploy.passes import optimize
from aff_deploy.passes.fold_batchnorm import fold_batchnorm
from aff_deploy.passes.rounding import merge_bias, merge_weights
from tests.passes.attention import AFF, GLOBAL, LOCAL, SUM_BLEND, Attention, features, same
from tests.passes.attention import model_of as with_constants
from tests.passes.graphs import Array, apply_passes, assert_parity, feeds_of, model_of, op_types, run_ort

# ---- misshapen weights: the checker lets them pass, no runtime does


SHAPES: dict[str, Callable[[Array], Array]] = {
    "a number": lambda value: np.asarray(value.flat[0]),
    "nothing": lambda value: value[:0],
    "one": lambda value: value[:1],
    "flat": lambda value: value.reshape(-1),
    "an axis more": lambda value: value[..., None],
    "an axis before": lambda value: value[None],
    "turned": lambda value: value.T,
}
NORMED = "l_0 = Conv(a, w1)\nl_t = BatchNormalization(l_0, gamma1, beta1, mean1, var1)"
BN = AFF.but(local=LOCAL.replace("l_t = Conv(a, w1, b1)", NORMED))
GEMM = AFF.but(
    branch="f = Flatten(p)\ng_t = Gemm<transB: int = 1>(f, m1, c1)\ng_h = Relu(g_t)\ng_m = Gemm<transB: int = 1>(g_h, m2, c2)\n"
    "g = Unsqueeze(g_m, i23)"
)
MATRICES = {"m1": np.ones((3, 8), np.float32), "m2": np.ones((8, 3), np.float32)}
AXES = {"i23": np.array([2, 3])}


@pytest.mark.parametrize("how", SHAPES)
@pytest.mark.parametrize("name", ["w1", "b1", "w2", "c2", "gamma1", "var1", "m1", "m2"])
def test_misshapen_weights_are_left_alone(name: str, how: str) -> None:
    attention = GEMM if name in MATRICES else BN if name in ("gamma1", "var1") else AFF
    model = with_constants(attention, **({**MATRICES, **AXES} if attention is GEMM else {}))
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    value = numpy_helper.to_array(tensor)
    changed = SHAPES[how](value)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed).reshape(changed.shape), name))
    check_onnx(model, full=False)
    usual = changed.shape == value.shape or (attention is GEMM and changed.size == value.size)
    assert usual or optimize(model).fusions == ()


POOLED = "p = GlobalAveragePool(p_1)"
AXES_THAT_ARE_NONE = {
    "a permutation too short": f"p_1 = Transpose<perm: ints = [0, 1, 2]>(a)\n{POOLED}",
    "an axis twice in a permutation": f"p_1 = Transpose<perm: ints = [0, 1, 2, 2]>(a)\n{POOLED}",
    "an axis twice": f"p_0 = Unsqueeze<axes: ints = [0, 0]>(a)\np_1 = Squeeze<axes: ints = [0]>(p_0)\n{POOLED}",
    "an axis that is not there": "p = ReduceMean<axes: ints = [2, 7]>(a)",
}


@pytest.mark.parametrize("pool", AXES_THAT_ARE_NONE.values(), ids=AXES_THAT_ARE_NONE.keys())
def test_axes_that_are_none_are_left_alone(pool: str) -> None:
    assert optimize(AFF.but(pool=pool, opset=12).build()).fusions == ()


def test_the_same_weight_by_two_zero_points_is_two_weights() -> None:
    local = "w1_d = DequantizeLinear(q, s, zero1)\n" + LOCAL.replace("w1", "w1_d")
    branch = "v1_d = DequantizeLinear(q, s, zero2)\n" + GLOBAL.replace("v1", "v1_d")
    q = np.random.default_rng(2).integers(-99, 99, (3, 8, 1, 1)).astype(np.int8)
    constants = {"q": q, "s": np.array(0.02, np.float32), "zero1": np.array(3, np.int8), "zero2": np.array(-40, np.int8)}
    model = with_constants(AFF.but(local=local, branch=branch), **constants)
    assert len(same(model, features()).fusions) == 1


# ---- products that overflow their type, or fade in it


TINY = {np.float16: 2.0**-14, np.float32: 2.0**-126}


@pytest.mark.parametrize("kind", TINY)
def test_what_fits_a_type(kind: type) -> None:
    rng, tiny, dtype = np.random.default_rng(0), TINY[kind], np.dtype(kind)
    normal = rng.normal(size=(4, 64))

    def fits(values: Array) -> bool:
        return merge_weights(lambda: values, dtype) is not None

    assert fits(normal)
    assert fits(normal * tiny), "about the smallest normal number: as precise as any"
    assert not fits(normal * tiny / 64)
    assert not fits(np.where(np.arange(4)[:, None] == 2, tiny / 64, 1.0) * normal), "one channel that fades"
    assert fits(np.where(np.arange(64) == 2, tiny / 64, 1.0) * normal), "one number in each channel: not seen beside the others"
    assert fits(np.zeros((4, 64)))
    assert not fits(normal * float(np.finfo(dtype).max))
    assert merge_bias(lambda: np.array([tiny / 64]), dtype) is not None
    assert merge_bias(lambda: np.array([2.0 * float(np.finfo(dtype).max)]), dtype) is None


def test_float64_has_its_own_ends() -> None:
    dtype = np.dtype(np.float64)
    for factor in (1e-300, 1e300):
        assert merge_weights(lambda factor=factor: np.full((2, 3), factor) * factor, dtype) is None
        assert merge_weights(lambda factor=factor: np.full((2, 3), factor), dtype) is not None


def norm_of(kind: str, gamma: float, variance: float, weight: float) -> onnx.ModelProto:
    body = (
        "g (float[N, 8, 6, 5] x) => (float[N, 8, 6, 5] y) "
        "<float[8, 8, 1, 1] k, float[8] g, float[8] b, float[8] m, float[8] v> "
        "{ c = Conv(x, k)\ny = BatchNormalization(c, g, b, m, v) }"
    ).replace("float[", f"{kind}[")
    rng, full = np.random.default_rng(0), np.ones(8)
    values = {"g": gamma * full, "b": 0 * full, "m": 0 * full, "v": variance * full}
    return model_of(body, k=weight * rng.normal(size=(8, 8, 1, 1)), **values)


@pytest.mark.parametrize(
    ("kind", "gamma", "variance", "weight", "folds"),
    [
        ("float16", 1.0, 1.0, 1e-2, 1),
        ("float16", 0.1, 3e4, 1e-2, 0),
        ("float16", 1e-3, 3e4, 1e-2, 0),
        ("float", 1e-3, 3e4, 1e-2, 1),
        ("float", 1e-20, 1.0, 1e-20, 0),
    ],
)
def test_batchnorm_is_folded_where_its_weights_keep_their_precision(
    kind: str, gamma: float, variance: float, weight: float, folds: int
) -> None:
    before = norm_of(kind, gamma, variance, weight)
    count, after = apply_passes(before, fold_batchnorm)
    assert (count, op_types(after)) == (folds, ["Conv"] if folds else ["Conv", "BatchNormalization"])
    feeds = {"x": 1e3 * feeds_of(before)["x"]}
    (want,), (got,) = run_ort(before, feeds), run_ort(after, feeds)
    lost = np.linalg.norm(got.astype(np.float64) - want.astype(np.float64))
    # Two roundings of each number, of the weights and of the result.
    assert lost <= 4 * np.finfo(want.dtype).eps * np.linalg.norm(want.astype(np.float64))


FACTORS = {
    "fit": ("float16", 2.0, 1.0, 1),
    "overflow float16": ("float16", 1000.0, 300.0, 0),
    "fade in float16": ("float16", 1e-3, 1e-4, 0),
    "overflow float32": ("float", 1e30, 1e10, 0),
    "fade in float32": ("float", 1e-30, 1e-15, 0),
}


@pytest.mark.parametrize("name", FACTORS)
def test_factors_are_merged_where_their_product_fits(name: str) -> None:
    kind, factor, weight, fusions = FACTORS[name]
    attention = Attention(local=LOCAL, pool="", branch="", logits="z = Mul(l, factor)", dtype=kind)
    attention = attention.but(blend=SUM_BLEND.removeprefix("one = Constant<value_float: float = 1.0>()\n"))
    dtype = np.float16 if kind == "float16" else np.float32
    model = with_constants(attention, factor=np.asarray(factor, dtype), one=np.asarray(1.0, dtype))
    for tensor in model.graph.initializer:
        if tensor.name in ("w2", "b2"):
            tensor.CopyFrom(numpy_helper.from_array((weight * numpy_helper.to_array(tensor)).astype(dtype), tensor.name))
        if tensor.name in ("w1", "b1"):
            tensor.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensor) * 1e-4).astype(dtype), tensor.name))
    result = optimize(model)
    assert len(result.fusions) == fusions
    assert fusions or "keep its precision" in result.rejected[0].reason
    feeds = {name: value.astype(dtype) for name, value in features().items()}
    (want,), (got,) = run_ort(model, feeds), run_ort(result.model, feeds)
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=0, atol=20 * np.finfo(dtype).eps)


def test_a_mean_is_not_summed_first_where_the_sum_may_overflow() -> None:
    half = "half_f = Constant<value_float: float = 0.5>()\nhalf = Cast<to: int = 10>(half_f)\n"
    apart = half + "x_h = Mul(x, half)\ny_h = Mul(y, half)\na = Add(x_h, y_h)"
    together = half + "s = Add(x, y)\na = Mul(s, half)"
    blend = "one_f = Constant<value_float: float = 1.0>()\none = Cast<to: int = 10>(one_f)\n" + SUM_BLEND.split("\n", 1)[1]
    for context, word in ((apart, "explicit"), (together, "sum")):
        (fusion,) = optimize(AFF.but(context=context, blend=blend, dtype="float16").build()).fusions
        assert fusion.context == word
    model = AFF.but(context=apart, blend=blend, dtype="float16", branch="", pool="", logits="z = Identity(l)").build()
    feeds = {name: np.full((1, 8, 5, 6), 4e4, np.float16) for name in "xy"}
    assert np.all(np.isfinite(run_ort(model, feeds)[0]))
    assert np.all(np.isfinite(run_ort(optimize(model).model, feeds)[0]))


# ---- constants of one number that are larger than what they meet


HARDSWISH = "l_s = Add(l_t, k3)\nl_c = Clip(l_s, k0, k6)\nl_m = Mul(l_t, l_c)\nl_h = Mul(l_m, sixth)"
GELU = "l_d = Div(l_t, root)\nl_e = Erf(l_d)\nl_1 = Add(l_e, k7)\nl_2 = Mul(l_t, k5)\nl_h = Mul(l_2, l_1)"
SWISHED, ERFED = (LOCAL.replace("l_h = Relu(l_t)", lines) for lines in (HARDSWISH, GELU))
ONE_BRANCH = AFF.but(pool="", branch="", logits="z = Identity(l)", dims="N,8,H,W")
SWISH = {"k3": 3.0, "k0": 0.0, "k6": 6.0, "sixth": 1 / 6}
ERF = {"root": 2**0.5, "k7": 1.0, "k5": 0.5}
SUMMED = AFF.but(pool="p_0 = ReduceSum(a, i23)\np = Div(p_0, count)", dims="N,8,6,5")


BROADCAST: dict[str, tuple[Attention, dict[str, float], str, tuple[int, ...], tuple[int, ...]]] = {
    "an addend, over the batch": (ONE_BRANCH.but(local=SWISHED), SWISH, "k3", (4, 1, 1, 1), (1, 6, 5)),
    "a factor, over rows": (ONE_BRANCH.but(local=SWISHED), SWISH, "sixth", (1, 1, 4, 1), (2, 1, 5)),
    "a factor, over positions": (ONE_BRANCH.but(local=ERFED), ERF, "k5", (5, 5), (2, 1, 1)),
    "a divisor, over the batch": (ONE_BRANCH.but(local=ERFED), ERF, "root", (2, 1, 1, 1), (1, 6, 5)),
    "a count, over the batch": (SUMMED, {"count": 30.0}, "count", (4, 1, 1, 1), (1, 6, 5)),
}


@pytest.mark.parametrize("name", BROADCAST)
def test_a_number_that_broadcasts_is_none(name: str) -> None:
    attention, numbers, which, shape, (batch, *spatial) = BROADCAST[name]
    feeds = features(batch, (spatial[0], spatial[1]))
    for size, fusions in (((), 1), ((1,), 1), ((1, 1, 1, 1), 1), (shape, 0)):
        values = {key: np.full(size if key == which else (), number, np.float32) for key, number in numbers.items()}
        model = with_constants(attention, **values, **(AXES if "i23" in attention.text else {}))
        if size == shape:
            model.graph.output[0].type.tensor_type.ClearField("shape")
        result = optimize(model)
        assert len(result.fusions) == fusions, size
        (want,), (got,) = run_ort(model, feeds), run_ort(result.model, feeds)
        assert want.shape == got.shape
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_float64_graph_of_matrix_products_runs_as_before() -> None:
    perm, back = "perm: ints = [0, 2, 3, 1]", "perm: ints = [0, 3, 1, 2]"
    branch = (
        "{0}_c = Transpose<{1}>({2})\n{0}_1 = MatMul({0}_c, m1)\n{0}_2 = Relu({0}_1)\n{0}_3 = MatMul({0}_2, m2)\n"
        "{0} = Transpose<{3}>({0}_3)"
    )
    attention = AFF.but(
        local=branch.format("l", perm, "a", back),
        pool="p = ReduceMean(a, i23)",
        branch=branch.format("g", perm, "p", back),
        blend=SUM_BLEND.split("\n", 1)[1],
        dtype="double",
    )
    rng = np.random.default_rng(4)
    weights = {"m1": rng.normal(size=(8, 3)), "m2": rng.normal(size=(3, 8)), "one": np.float64(1.0), **AXES}
    model = with_constants(attention, **{name: np.asarray(value) for name, value in weights.items()})
    result = optimize(model)
    assert "float64" in result.rejected[0].reason
    assert_parity(model, result.model)
