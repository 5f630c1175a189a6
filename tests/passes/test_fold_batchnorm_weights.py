"""The weights that BatchNormalization is folded into: shared, named, out of range, or not constant at all."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from aff_deploy.passes.cleanup import cleanup
from aff_deploy.passes.fold_batchnorm import fold_batchnorm
from tests.passes.batchnorms import BEHIND, BN, NORM, X, graph, values
from tests.passes.graphs import apply_passes, assert_parity, check_rewrite, model_of, op_types

# ---- sharing

TWICE = (
    "c = Conv(x, k, b)\nd = Conv(x2, k, b)\ny = BatchNormalization(c, gamma, beta, mean, var)\nz = BatchNormalization(d, {0})"
)
PAIR = {"x": f"{X}, float[N, 4, 6, 6] x2", "out": "float[N, 8, H, W] y, float[N, 8, H, W] z"}


def test_shared_weights_behind_the_same_statistics_stay_shared() -> None:
    body = graph(TWICE.format("gamma, beta, mean, var"), f"float[8, 4, 3, 3] k, float[8] b, {BN}", **PAIR)
    after = check_rewrite(body, 2, fold_batchnorm)
    first, second = after.graph.node
    assert first.input[1:] == second.input[1:]
    assert len(after.graph.initializer) == 2


def test_shared_weights_behind_different_statistics_part() -> None:
    other = "float[8] gamma2, float[8] beta2, float[8] mean2, float[8] var2"
    body = graph(TWICE.format("gamma2, beta2, mean2, var2"), f"float[8, 4, 3, 3] k, float[8] b, {BN}, {other}", **PAIR)
    after = check_rewrite(body, 2, fold_batchnorm)
    first, second = after.graph.node
    assert not set(first.input[1:]) & set(second.input[1:])


def test_shared_weights_of_which_one_use_has_no_batchnorm() -> None:
    lines = f"c = Conv(x, k, b)\nz = Conv(x2, k, b)\n{NORM}"
    after = check_rewrite(graph(lines, f"float[8, 4, 3, 3] k, float[8] b, {BN}", **PAIR), 1, fold_batchnorm)
    assert len(after.graph.initializer) == 4


def test_shared_weights_and_statistics_with_another_epsilon_part() -> None:
    lines = TWICE.format("gamma, beta, mean, var").replace(
        "z = BatchNormalization", "z = BatchNormalization<epsilon: float = 0.7>"
    )
    check_rewrite(graph(lines, f"float[8, 4, 3, 3] k, float[8] b, {BN}", **PAIR), 2, fold_batchnorm)


def test_a_bias_shared_by_gemms_that_weight_it_differently() -> None:
    lines = (
        "c = Gemm(x, k, b)\nd = Gemm<beta: float = 3.0>(x, l, b)\n"
        "y = BatchNormalization(c, gamma, beta, mean, var)\nz = BatchNormalization(d, gamma, beta, mean, var)"
    )
    weights = f"float[4, 8] k, float[4, 8] l, float[8] b, {BN}"
    check_rewrite(graph(lines, weights, x="float[N, 4] x", out="float[N, 8] y, float[N, 8] z"), 2, fold_batchnorm)


def test_a_chain_of_the_same_batchnorm_folds_link_by_link() -> None:
    links = [f"t{i + 1} = BatchNormalization(t{i}, gamma, beta, mean, var)" for i in range(5)]
    body = graph("\n".join(["t0 = Conv(x, k, b)", *links, "y = Relu(t5)"]), f"float[8, 4, 1, 1] k, float[8] b, {BN}")
    assert op_types(check_rewrite(body, 5, fold_batchnorm)) == ["Conv", "Relu"]


# ---- names


def test_folded_weights_keep_their_names() -> None:
    after = check_rewrite(BEHIND["Conv with bias, padding and stride"], 1, fold_batchnorm)
    assert sorted(values(after)) == ["b", "k"]
    after = check_rewrite(BEHIND["Conv"], 1, fold_batchnorm)
    assert sorted(values(after)) == ["k", "k_bias"]


def test_a_weight_that_is_also_an_output_stays_what_it_is() -> None:
    body = graph(f"c = Conv(x, k)\n{NORM}", f"float[8, 4, 1, 1] k, {BN}", out="float[N, 8, H, W] y, float[8, 4, 1, 1] k")
    check_rewrite(body, 1, fold_batchnorm)


def test_a_batchnorm_that_is_an_output_and_is_read_again() -> None:
    body = graph(
        f"c = Conv(x, k)\n{NORM}\nz = Relu(y)", f"float[8, 4, 1, 1] k, {BN}", out="float[N, 8, H, W] y, float[N, 8, H, W] z"
    )
    assert op_types(check_rewrite(body, 1, fold_batchnorm)) == ["Conv", "Relu"]


# ---- values


@pytest.mark.parametrize("variance", [0.0, 1e-12, 1e30, np.inf])
def test_absurd_but_finite_statistics_fold(variance: float) -> None:
    check_rewrite(BEHIND["Conv"], 1, fold_batchnorm, var=np.full(8, variance))


@pytest.mark.parametrize(
    "given",
    [
        {"var": np.full(8, -1.0)},
        {"var": np.full(8, np.nan)},
        {"mean": np.full(8, np.inf)},
        {"gamma": np.full(8, np.nan)},
        {"gamma": np.full(8, 3e38), "k": np.full((8, 4, 3, 3), 1e6)},
    ],
    ids=["negative variance", "variance nan", "mean inf", "gamma nan", "product over the largest float"],
)
def test_statistics_that_give_no_numbers_are_left_alone(given: dict[str, np.ndarray]) -> None:
    count, after = apply_passes(model_of(BEHIND["Conv"], **given), fold_batchnorm)
    assert (count, op_types(after)) == (0, ["Conv", "BatchNormalization"])


def test_zero_scale_makes_a_constant_channel() -> None:
    gamma = np.r_[np.zeros(4), np.ones(4)]
    after = check_rewrite(BEHIND["Conv"], 1, fold_batchnorm, gamma=gamma)
    assert not values(after)["k"][:4].any()


@pytest.mark.parametrize("name", ["Conv with bias, padding and stride", "ConvTranspose in groups", "MatMul"])
def test_float16_weights_stay_float16(name: str) -> None:
    after = check_rewrite(BEHIND[name].replace("float[", "float16["), 1, fold_batchnorm)
    assert {array.dtype for array in values(after).values()} == {np.dtype(np.float16)}


def test_float16_weights_behind_float32_statistics() -> None:
    body = graph(f"c = Conv(x, k)\n{NORM}", f"half[8, 4, 1, 1] k, {BN}").replace("half", "float16")
    body = body.replace(X, X.replace("float", "float16")).replace("float[N, 8, H, W] y", "float16[N, 8, H, W] y")
    after = check_rewrite(body, 1, fold_batchnorm)
    assert {array.dtype for array in values(after).values()} == {np.dtype(np.float16)}


def test_float16_weights_that_would_overflow_are_left_alone() -> None:
    body = BEHIND["Conv"].replace("float[", "float16[")
    before = model_of(body, k=np.full((8, 4, 3, 3), 300.0), var=np.zeros(8), gamma=np.ones(8))
    assert apply_passes(before, fold_batchnorm)[0] == 0


def test_float64_and_bfloat16() -> None:
    check_rewrite(BEHIND["Gemm"].replace("float[", "double["), 1, fold_batchnorm)
    before = model_of(BEHIND["Conv"].replace("float[", "bfloat16["), opset=22)
    count, after = apply_passes(before, fold_batchnorm)
    assert count == 1
    assert {tensor.data_type for tensor in after.graph.initializer} == {onnx.TensorProto.BFLOAT16}


@pytest.mark.parametrize("opset", [13, 14, 15, 17, 18, 20])
def test_every_opset(opset: int) -> None:
    check_rewrite(BEHIND["ConvTranspose in groups"], 1, fold_batchnorm, opset=opset)


# ---- what only looks constant


def test_weights_that_a_caller_may_override_are_no_constants() -> None:
    body = graph(f"c = Conv(x, k)\n{NORM}", BN, x=f"{X}, float[8, 4, 1, 1] k")
    before = model_of(body)
    before.graph.initializer.append(numpy_helper.from_array(np.full((8, 4, 1, 1), 0.5, np.float32), "k"))
    count, after = apply_passes(before, fold_batchnorm)
    assert count == 0
    assert_parity(before, after)
    assert_parity(before, after, k=np.random.default_rng(3).normal(size=(8, 4, 1, 1)))


def test_statistics_that_a_caller_may_override_are_no_constants() -> None:
    before = model_of(
        BEHIND["Conv"].replace(X, f"{X}, float[8] mean").replace(", float[8] mean, float[8] var", ", float[8] var")
    )
    before.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "mean"))
    count, after = apply_passes(before, fold_batchnorm)
    assert count == 0
    assert_parity(before, after)
    assert_parity(before, after, mean=np.full(8, 2.0))


def test_before_ir_version_4_listed_initializers_are_constants() -> None:
    before = model_of(BEHIND["Conv"], ir=3, opset=11)
    for tensor in before.graph.initializer:
        before.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.checker.check_model(before)
    count, after = apply_passes(before, fold_batchnorm)
    assert (count, [value.name for value in after.graph.input]) == (1, ["x"])
    del before.graph.input[1:]
    before.ir_version = 4
    assert_parity(before, after)


def test_the_convolution_is_captured_by_a_nested_graph() -> None:
    lines = (
        "c = Conv(x, k)\nn = BatchNormalization(c, gamma, beta, mean, var)\n"
        "y = If (yes) <then_branch = t () => (float[N, 8, 6, 6] p) { p = Relu(c) }, "
        "else_branch = e () => (float[N, 8, 6, 6] q) { q = Relu(n) }>"
    )
    before = model_of(graph(lines, f"float[8, 4, 1, 1] k, {BN}", x=f"{X}, bool yes"))
    count, after = apply_passes(before, fold_batchnorm, cleanup)
    assert count == 0
    for yes in (True, False):
        assert_parity(before, after, yes=np.array(yes))


def test_the_weight_is_captured_by_a_nested_graph() -> None:
    lines = (
        "c = Conv(x, k)\nn = BatchNormalization(c, gamma, beta, mean, var)\n"
        "y = If (yes) <then_branch = t () => (float[N, 8, 6, 6] p) { p = Conv(x, k) }, "
        "else_branch = e () => (float[N, 8, 6, 6] q) { q = Identity(n) }>"
    )
    before = model_of(graph(lines, f"float[8, 4, 1, 1] k, {BN}", x=f"{X}, bool yes"))
    count, after = apply_passes(before, fold_batchnorm)
    assert count == 1
    for yes in (True, False):
        assert_parity(before, after, yes=np.array(yes))
