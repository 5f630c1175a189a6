"""Folding BatchNormalization: exact or not at all."""

from __future__ import annotations

import pytest

from aff_deploy.passes.fold_batchnorm import fold_batchnorm
from tests.passes.batchnorms import BEHIND, BN, NORM, X, graph
from tests.passes.graphs import apply_passes, check_rewrite, model_of, op_types

BN4 = BN.replace("8", "4")


@pytest.mark.parametrize("body", BEHIND.values(), ids=BEHIND.keys())
def test_folds_into_what_is_before(body: str) -> None:
    after = check_rewrite(body, 1, fold_batchnorm)
    assert len(after.graph.node) == 1


NEAR_MISSES = {
    "another consumer": graph(
        f"c = Conv(x, k)\n{NORM}\nz = Relu(c)", f"float[8, 4, 1, 1] k, {BN}", out="float[N, 8, H, W] y, float[N, 8, H, W] z"
    ),
    "the convolution is an output": graph(
        f"c = Conv(x, k)\n{NORM}", f"float[8, 4, 1, 1] k, {BN}", out="float[N, 8, H, W] y, float[N, 8, H, W] c"
    ),
    "another operator between": graph(f"r = Conv(x, k)\nc = Relu(r)\n{NORM}", f"float[8, 4, 1, 1] k, {BN}"),
    "weights are computed": graph(
        f"r = Conv(x, k)\nc = Conv(x, x2)\n{NORM}", f"float[8, 4, 1, 1] k, {BN}", x=f"{X}, float[8, 4, 1, 1] x2"
    ),
    "bias is computed": graph(f"c = Conv(x, k, b)\n{NORM}", f"float[8, 4, 1, 1] k, {BN}", x=f"{X}, float[8] b"),
    "statistics are computed": graph(
        "c = Conv(x, k)\ny = BatchNormalization(c, gamma, beta, m, var)",
        "float[8, 4, 1, 1] k, float[8] gamma, float[8] beta, float[8] var",
        x=f"{X}, float[8] m",
    ),
    "Gemm bias with a row for each sample": graph(
        f"c = Gemm(x, k, b)\n{NORM}", f"float[4, 8] k, float[3, 8] b, {BN}", x="float[3, 4] x", out="float[3, 8] y"
    ),
    "Gemm with one bias for all": graph(
        f"c = Gemm(x, k, b)\n{NORM}", f"float[4, 8] k, float[1] b, {BN}", x="float[3, 4] x", out="float[3, 8] y"
    ),
    "Gemm whose weights come first": graph(
        f"c = Gemm(k, x)\n{NORM}", f"float[3, 4] k, {BN}", x="float[4, 8] x", out="float[3, 8] y"
    ),
    "MatMul over more axes": graph(f"c = MatMul(x, k)\n{NORM}", f"float[6, 6] k, {BN4}", out="float[N, 4, 6, 6] y"),
    "MatMul whose last axis is not the channel": graph(
        f"c = MatMul(x, k)\n{NORM}", f"float[5, 8] k, {BN}", x="float[N, 8, 5] x", out="float[N, 8, 8] y"
    ),
    "a sum of one": graph(f"r = Conv(x, k)\nc = Sum(r)\n{NORM}", f"float[8, 4, 1, 1] k, {BN}"),
    "first in the graph": graph("y = BatchNormalization(x, gamma, beta, mean, var)", BN4, out="float[N, 4, 6, 6] y"),
}


@pytest.mark.parametrize("body", NEAR_MISSES.values(), ids=NEAR_MISSES.keys())
def test_leaves_alone(body: str) -> None:
    after = check_rewrite(body, 0, fold_batchnorm)
    assert "BatchNormalization" in op_types(after)


def test_leaves_training_mode_alone() -> None:
    body = graph(
        "c = Conv(x, k)\ny, m, v = BatchNormalization<training_mode: int = 1>(c, gamma, beta, mean, var)",
        f"float[8, 4, 1, 1] k, {BN}",
    )
    assert apply_passes(model_of(body), fold_batchnorm)[0] == 0


# ---- before a convolution

BEFORE = {
    "Conv": graph("b = BatchNormalization(x, gamma, beta, mean, var)\ny = Conv(b, k)", f"float[8, 4, 3, 3] k, {BN4}"),
    "Conv with bias and stride": graph(
        "b = BatchNormalization(x, gamma, beta, mean, var)\ny = Conv<strides: ints = [2, 2]>(b, k, o)",
        f"float[8, 4, 3, 3] k, float[8] o, {BN4}",
    ),
    "Conv in groups": graph(
        "b = BatchNormalization(x, gamma, beta, mean, var)\ny = Conv<group: int = 2>(b, k, o)",
        f"float[6, 2, 3, 3] k, float[6] o, {BN4}",
        out="float[N, 6, H, W] y",
    ),
    "Conv, depthwise": graph(
        'b = BatchNormalization(x, gamma, beta, mean, var)\ny = Conv<group: int = 4, auto_pad: string = "VALID">(b, k)',
        f"float[8, 1, 3, 3] k, {BN4}",
    ),
}


@pytest.mark.parametrize("body", BEFORE.values(), ids=BEFORE.keys())
def test_folds_into_an_unpadded_conv_behind(body: str) -> None:
    assert op_types(check_rewrite(body, 1, fold_batchnorm)) == ["Conv"]


BEFORE_MISSES = {
    "padding": BEFORE["Conv"].replace("Conv(b, k)", "Conv<pads: ints = [0, 1, 0, 0]>(b, k)"),
    "automatic padding": BEFORE["Conv"].replace("Conv(b, k)", 'Conv<auto_pad: string = "SAME_UPPER">(b, k)'),
    "another consumer": BEFORE["Conv"]
    .replace("Conv(b, k)", "Conv(b, k)\nz = Relu(b)")
    .replace(" y)", " y, float[N, 4, 6, 6] z)"),
    "the output of the model": BEFORE["Conv"].replace(" y)", " y, float[N, 4, 6, 6] b)"),
    "a transposed convolution": BEFORE["Conv"]
    .replace("Conv(b, k)", "ConvTranspose(b, k)")
    .replace("[8, 4, 3, 3]", "[4, 8, 3, 3]"),
    "used as the weights": graph(
        "b = BatchNormalization(k, gamma, beta, mean, var)\ny = Conv(x, b)", f"float[8, 4, 3, 3] k, {BN4}"
    ),
}


@pytest.mark.parametrize("body", BEFORE_MISSES.values(), ids=BEFORE_MISSES.keys())
def test_leaves_alone_before_a_conv(body: str) -> None:
    check_rewrite(body, 0, fold_batchnorm)


def test_between_two_convs_it_goes_back() -> None:
    body = graph(
        "c = Conv(x, k)\nn = BatchNormalization(c, gamma, beta, mean, var)\ny = Conv<pads: ints = [1,1,1,1]>(n, l)",
        f"float[8, 4, 1, 1] k, float[8, 8, 3, 3] l, {BN}",
    )
    assert op_types(check_rewrite(body, 1, fold_batchnorm)) == ["Conv", "Conv"]
