"""Near misses that an outsider's attack once got past the recogniser: each must compute what it computed before."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from aff_deploy.passes import optimize
from aff_deploy.runtimes.double import DoubleRunner
from aff_deploy.validate.exact import Answers, measure_exactness
from aff_deploy.verify import eps_of
from tests.passes.attention import AFF, LERP_BLEND, LOCAL, SUM_BLEND, Attention, C, features, model_of, same
from tests.passes.graphs import Array

NONE: dict[str, Array] = {}


SHAPE = "s = Shape(x)\none = Constant<value_ints: ints = [1]>()\ntwo = Constant<value_ints: ints = [2]>()\nc = Gather(s, one)\n"
TIMES = SHAPE + "f = Cast<to: int = 1>(c)\nk = Constant<value_floats: floats = [%s]>()\np = Mul(f, k)\nt = Cast<to: int = 7>(p)"
FLAT = "flat = Constant<value_ints: ints = [-1]>()\nt = Reshape(r, flat)"
SQUARE = "m = Constant<value_ints: ints = [2, 2]>()\nq = Reshape(s, m)\nr = Gather(q, one)\n"
COLUMNS = "d = Shape<start: int = 2>(x)\nq = Unsqueeze(d, one)\nr = Concat<axis: int = 1>(q, q)\n"
COMPUTED_SHAPES = {
    "times a half": (TIMES % "0.5", "A"),
    "times three halves": (TIMES % "1.5", "A"),
    "through a narrow type": (SHAPE + "n = Cast<to: int = 2>(c)\nt = Cast<to: int = 7>(n)", "A"),
    "through bool": (SHAPE + "n = Cast<to: int = 9>(c)\nt = Cast<to: int = 7>(n)", "A"),
    "a row of a matrix": (SHAPE + SQUARE + FLAT, "A, B"),
    "columns side by side": (SHAPE + COLUMNS + FLAT, "A, B, D, E"),
}


@pytest.mark.parametrize("name", COMPUTED_SHAPES)
def test_a_shape_is_followed_through_exact_arithmetic_only(name: str) -> None:
    text, dims = COMPUTED_SHAPES[name]
    header = (
        f'<ir_version: 8, opset_import: ["" : 18]>\ng (float[N, 300, 4, 2] x) => (float[{dims}] out, float[N, 300, 4, 2] kept)'
    )
    model = parser.parse_model(f"{header} {{\n{text}\nout = ConstantOfShape(t)\nkept = Relu(x)\n}}")
    same(model, {"x": np.ones((2, 300, 4, 2), np.float32)})


def test_a_reshape_by_float_arithmetic_stays() -> None:
    body = (
        SHAPE + "zero = Constant<value_ints: ints = [0]>()\nn = Gather(s, zero)\nf = Cast<to: int = 1>(c)\n"
        "k = Constant<value_floats: floats = [1.5]>()\np = Mul(f, k)\nq = Cast<to: int = 7>(p)\n"
        "last = Constant<value_ints: ints = [12]>()\nt = Concat<axis: int = 0>(n, q, two, two, last)\nout = Reshape(x, t)"
    )
    header = '<ir_version: 8, opset_import: ["" : 18]>\ng (float[N, 8, 6, 12] x) => (float[A, B, D, E, F] out)'
    same(parser.parse_model(f"{header} {{\n{body}\n}}"), {"x": np.ones((2, 8, 6, 12), np.float32)})


SECOND_T = "float[M, 1, 1, 1] t"
PLAIN = AFF.but(out_dims="K,8,5,6")
EMPTY = np.zeros((0,), np.int64)
NO = "no = Constant<value_float: float = 0.0>()\n"
LOGIT_MISSES = {
    "t - t": (PLAIN.but(logits="z_0 = Add(l, g)\nz_1 = Add(z_0, t)\nz = Sub(z_1, t)"), SECOND_T),
    "0 t": (PLAIN.but(logits=f"z_0 = Add(l, g)\n{NO}t_0 = Mul(t, no)\nz = Add(z_0, t_0)"), SECOND_T),
    "where in the logits": (
        PLAIN.but(logits="z_1 = Add(l, g)\nz_2 = Add(g, l)\nz = Where(t, z_1, z_2)"),
        "bool[M, 1, 1, 1] t",
    ),
    "where in the context": (PLAIN.but(context="x_1 = Where(t, x, x)\na = Add(x_1, y)"), "bool[M, 1, 1, 1] t"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOGIT_MISSES)
def test_what_cancels_may_broadcast_all_the_same(name: str) -> None:
    attention, more = LOGIT_MISSES[name]
    model = model_of(attention, more)
    dtype: type = bool if more.startswith("bool") else np.float32
    same(model, {**features(1), "t": np.ones((3, 1, 1, 1), dtype)})
    if dtype is not bool:
        with np.errstate(all="ignore"):
            same(model, {**features(2), "t": np.full((1, 1, 1, 1), np.inf, np.float32)})


def test_the_condition_of_a_where_may_be_larger_than_its_sides() -> None:
    blend = (
        SUM_BLEND.replace("out =", "near =") + "\nhalf = Constant<value_float: float = 0.5>()\nlow = Less(w, half)\n"
        "lows = Concat<axis: int = 0>(low, low, low)\n"
        + LERP_BLEND.replace("out =", "far =")
        + "\nout = Where(lows, near, far)"
    )
    result = same(PLAIN.but(blend=blend).build(), features(1))
    assert any("Concat" in rejection.reason for rejection in result.rejected)


TINY = "half = Constant<value_float: float = 0.5>()\ntiny = Constant<value_float: float = 0.0000009>()\n"


def test_a_small_factor_of_a_large_tensor_counts() -> None:
    blend = SUM_BLEND.replace("out =", "near =") + f"\n{TINY}low = Less(w, half)\nxx = Mul(x, x)\nmore = Mul(tiny, xx)\n"
    same(AFF.but(blend=f"{blend}far = Add(near, more)\nout = Where(low, near, far)").build(), features(scale=1e4))
    silu = f"{TINY}l_s = Sigmoid(l_t)\nl_1 = Mul(l_t, l_s)\nl_2 = Mul(l_t, l_t)\nl_3 = Mul(l_2, tiny)\nl_h = Add(l_1, l_3)"
    local = LOCAL.replace("l_h = Relu(l_t)", silu)
    result = same(AFF.but(local=local, branch="", pool="", logits="z = Identity(l)").build(), features(scale=1e4))
    assert result.fusions == ()


def test_naming_no_axis_averages_all_of_them() -> None:
    pool = "p_0 = GlobalAveragePool(a)\np_1 = ReduceMean(p_0, none)\nsize = Constant<value_ints: ints = [1, 8, 1, 1]>()\n"
    model = model_of(AFF.but(pool=f"{pool}p = Expand(p_1, size)"), none=EMPTY)
    assert same(model, features()).fusions == ()
    none = "p_0 = GlobalAveragePool(a)\np = ReduceMean<noop_with_empty_axes: int = 1>(p_0, none)"
    assert len(same(model_of(AFF.but(pool=none), none=EMPTY), features()).fusions) == 1


def test_an_expansion_to_another_size_is_none_of_the_operators() -> None:
    model = model_of(PLAIN.but(pool="p_0 = GlobalAveragePool(a)\np = Expand(p_0, size)"), "int64[4] size")
    result = same(model, {**features(1), "size": np.asarray([3, 1, 1, 1])})
    assert result.fusions == ()


@pytest.mark.parametrize("tensor", ["w", "a"])
def test_the_shape_of_an_inner_tensor_is_read_off_an_input_that_has_it(tensor: str) -> None:
    model = AFF.but(blend=f"{SUM_BLEND}\nsize = Shape({tensor})", dims="N,8,H,W").build()
    x = model.graph.input[0]
    x.CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", C, "H1", "W1"]))
    model.graph.output.append(helper.make_tensor_value_info("size", onnx.TensorProto.INT64, [4]))
    model.graph.value_info.append(helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, ["N", C, "H", "W"]))
    same(model, {**features(), "x": features(3, (1, 1))["x"]})
    model.graph.input[1].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", C, "H2", "W2"]))
    assert same(model, {**features(), "x": features(3, (1, 1))["x"]}).fusions == ()


def test_a_shape_that_an_input_is_made_with_is_not_read_off_that_input() -> None:
    """Local attention on y, whose size decides x's: x would depend on itself."""
    numbers = "".join(f"i{i} = Constant<value_ints: ints = [{i}]>()\n" for i in (0, 1, 8))
    made = "size = Shape(l_t)\nno = ConstantOfShape(size)\nx_0 = Concat<axis: int = 1>(x, no)\nx_1 = Slice(x_0, i0, i8, i1)\n"
    attention = AFF.but(
        context=numbers,
        local=LOCAL.replace("(a,", "(y,"),
        branch="",
        pool="",
        logits="z = Identity(l)",
        blend=made + SUM_BLEND.replace("Mul(x, w)", "Mul(x_1, w)"),
    )
    same(attention.build(), features())


@pytest.mark.parametrize(("elem_type", "outlier"), [(10, 1e5), (16, 0.3)])
def test_a_weight_is_rounded_as_its_casts_round_it(elem_type: int, outlier: float) -> None:
    """Too large a weight to be folded."""
    local = f"w1_n = Cast<to: int = {elem_type}>(w1)\nw1_w = Cast<to: int = 1>(w1_n)\n" + LOCAL.replace("a, w1", "a, w1_w")
    model = AFF.but(local=local, dims="N,1408,2,2", channels=1408).build()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w1")
    values = numpy_helper.to_array(weight) * 0.05
    values[0, 0] = outlier
    weight.CopyFrom(numpy_helper.from_array(values.astype(np.float32), "w1"))
    rng = np.random.default_rng(1)
    feeds = {name: rng.normal(0, 1, (1, 1408, 2, 2)).astype(np.float32) for name in "xy"}
    assert len(same(model, feeds).fusions) == 1


def test_a_weight_of_more_axes_makes_a_product_of_as_many() -> None:
    local = (
        "c_l = Transpose<perm: ints = [0, 2, 3, 1]>(a)\n"
        "r_1 = Constant<value_ints: ints = [0, 30, 8]>()\nt_1 = Reshape(c_l, r_1)\n"
        "m_1 = MatMul(t_1, W1)\nm_2 = Relu(m_1)\nm_3 = MatMul(m_2, W2)\nm_4 = Transpose<perm: ints = [0, 1, 3, 2]>(m_3)\n"
        "r_2 = Constant<value_ints: ints = [-1, 8, 5, 6]>()\nl = Reshape(m_4, r_2)"
    )
    rng = np.random.default_rng(0)
    weights = {"W1": rng.normal(size=(1, 1, 8, 3)).astype(np.float32), "W2": rng.normal(size=(3, 8)).astype(np.float32)}
    assert same(model_of(AFF.but(local=local), **weights), features()).fusions == ()


ONE = "one = Constant<value_float: float = 1.0>()\n"
DOUBLES: dict[str, tuple[Attention, dict[str, float], str]] = {
    "plain": (AFF, {"one": 1.0}, ""),
    "scale": (AFF.but(blend=SUM_BLEND.replace("out =", "o =") + "\nout = Mul(o, s)"), {"one": 1.0, "s": 1.1}, ""),
    "gelu": (AFF.but(local=LOCAL.replace("Relu", "Gelu"), branch="", pool="", logits="z = Identity(l)"), {"one": 1.0}, "Gelu"),
    "hard sigmoid": (AFF.but(gate="w = HardSigmoid<alpha: float = 0.16666667>(z)"), {"one": 1.0}, "HardSigmoid"),
    "nearly one": (AFF, {"one": 1 + 5e-7}, "neither"),
    "nearly a silu": (
        AFF.but(
            local=LOCAL.replace("l_h = Relu(l_t)", "l_s = Sigmoid(l_t)\nl_m = Mul(l_t, l_s)\nl_h = Mul(l_m, k)"),
            branch="", pool="", logits="z = Identity(l)",
        ),
        {"one": 1.0, "k": 1 + 5e-7}, "activation",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DOUBLES)
def test_a_double_model_stays_as_exact_as_it_was(name: str) -> None:
    attention, numbers, reason = DOUBLES[name]
    model = attention.but(blend=attention.blend.replace(ONE, ""), dtype="double", opset=20).build()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    model.graph.initializer.extend(numpy_helper.from_array(np.float64(value), key) for key, value in numbers.items())
    result = optimize(model)
    feeds = {key: value.astype(np.float64) for key, value in features(2).items()}
    # ONNX Runtime has no double kernels for the fused form; what rounding alone can do is 8 eps of the largest.
    want, got = (DoubleRunner(each).infer(feeds) for each in (model, result.model))
    (found,) = measure_exactness(
        [Answers(want, want, got)], eps_of(model), max(np.abs(array).max() for array in feeds.values())
    )
    assert found.holds, found.detail
    assert [reason in rejection.reason for rejection in result.rejected] == [True] * bool(reason), result.rejected
