"""Small ONNX models on disk, sound and unsound, and how they are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import ModelProto

from aff_deploy.errors import ModelError
from aff_deploy.onnx_file import load_onnx
from tests.passes.graphs import model_of


def small_model() -> ModelProto:
    """A model of four nodes, valid, in order."""
    return model_of(
        "g (float[N, 4, 5, 5] x) => (float[N, 8, 5, 5] y) <float[8, 4, 1, 1] k, float[8] b> {"
        "two = Constant<value_float: float = 2.0>()\nc = Conv(x, k, b)\nr = Relu(c)\ny = Mul(r, two) }"
    )


WIDE = "g (float[N, 64] x) => (float[N, 64] y) <float[64, 64] k, float[64] b> { c = MatMul(x, k)\ny = Add(c, b) }"


def nested_model() -> ModelProto:
    """A model with nested graphs, a function, a domain and strings."""
    return model_of(
        "g (float[2] x, bool c) => (float[2] y) <float[2] k> {\n"
        "r = Relu(x)\nd = Cast<to: int = 11>(r)\ne = Cast<to: int = 1>(d)\n"
        "i = If (c) <then_branch = t () => (float[2] p) { p = Add(e, k) }, else_branch = e () => (float[2] q) { q = Abs(r) }>\n"
        "y = f.twice(i) }",
        domains=', "f" : 1',
        functions='<domain: "f", opset_import: ["" : 18]> twice (a) => (b) { b = Add(a, a) }',
    )


def write(model: ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def refusal(path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(ModelError) as caught:
        load_onnx(path)
    error = caught.value
    assert error.fix, "no way out is given"
    assert "\n" not in str(error)
    return str(error)


def edited(edit: Callable[[ModelProto], object]) -> ModelProto:
    model = small_model()
    edit(model)
    return model
