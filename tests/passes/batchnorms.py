"""Graph texts around a BatchNormalization, and the cases in which it folds into the operator before it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

BN = "float[8] gamma, float[8] beta, float[8] mean, float[8] var"
NORM = "y = BatchNormalization(c, gamma, beta, mean, var)"
X = "float[N, 4, 6, 6] x"


def graph(lines: str, weights: str, *, x: str = X, out: str = "float[N, 8, H, W] y") -> str:
    return f"g ({x}) => ({out}) <{weights}> {{\n{lines}\n}}"


def values(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


BEHIND = {
    "Conv": graph(f"c = Conv(x, k)\n{NORM}", f"float[8, 4, 3, 3] k, {BN}"),
    "Conv with bias, padding and stride": graph(
        f"c = Conv<pads: ints = [1, 1, 1, 1], strides: ints = [2, 2]>(x, k, b)\n{NORM}",
        f"float[8, 4, 3, 3] k, float[8] b, {BN}",
    ),
    "Conv in groups": graph(f"c = Conv<group: int = 2>(x, k)\n{NORM}", f"float[8, 2, 3, 3] k, {BN}"),
    "Conv, depthwise": graph(f"c = Conv<group: int = 4>(x, k)\n{NORM}", f"float[8, 1, 3, 3] k, {BN}"),
    "Conv, 1-D": graph(f"c = Conv(x, k)\n{NORM}", f"float[8, 4, 3] k, {BN}", x="float[N, 4, 6] x", out="float[N, 8, L] y"),
    "Conv, 3-D": graph(
        f"c = Conv(x, k)\n{NORM}", f"float[8, 4, 1, 2, 2] k, {BN}", x="float[1, 4, 3, 3, 3] x", out="float[1, 8, D, H, W] y"
    ),
    "Conv, epsilon": graph(
        "c = Conv(x, k)\ny = BatchNormalization<epsilon: float = 0.5, momentum: float = 0.1>(c, gamma, beta, mean, var)",
        f"float[8, 4, 1, 1] k, {BN}",
    ),
    "Conv with an empty bias": graph(f'c = Conv(x, k, "")\n{NORM}', f"float[8, 4, 1, 1] k, {BN}"),
    "ConvTranspose": graph(f"c = ConvTranspose(x, k)\n{NORM}", f"float[4, 8, 2, 2] k, {BN}"),
    "ConvTranspose with bias and stride": graph(
        f"c = ConvTranspose<strides: ints = [2, 2]>(x, k, b)\n{NORM}", f"float[4, 8, 3, 3] k, float[8] b, {BN}"
    ),
    "ConvTranspose in groups": graph(
        f"c = ConvTranspose<group: int = 2>(x, k, b)\n{NORM}", f"float[4, 4, 2, 2] k, float[8] b, {BN}"
    ),
    "ConvTranspose, depthwise": graph(f"c = ConvTranspose<group: int = 4>(x, k)\n{NORM}", f"float[4, 2, 2, 2] k, {BN}"),
    "Gemm": graph(f"c = Gemm(x, k, b)\n{NORM}", f"float[4, 8] k, float[8] b, {BN}", x="float[N, 4] x", out="float[N, 8] y"),
    "Gemm, transposed, alpha, beta, bias 1 x C": graph(
        f"c = Gemm<transB: int = 1, alpha: float = 0.5, beta: float = 3.0>(x, k, b)\n{NORM}",
        f"float[8, 4] k, float[1, 8] b, {BN}",
        x="float[N, 4] x",
        out="float[N, 8] y",
    ),
    "Gemm, both transposed, no bias": graph(
        f"c = Gemm<transA: int = 1, transB: int = 1, alpha: float = -2.0>(x, k)\n{NORM}",
        f"float[8, 3] k, {BN}",
        x="float[3, N] x",
        out="float[N, 8] y",
    ),
    "MatMul": graph(f"c = MatMul(x, k)\n{NORM}", f"float[4, 8] k, {BN}", x="float[N, 4] x", out="float[N, 8] y"),
}
