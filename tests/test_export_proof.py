"""What an export is compared on, and what is said where that finds something."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aff_deploy.errors import CheckFailed, NetworkError
from aff_deploy.export import EXPORTERS, export_onnx
from aff_deploy.export.sizes import feeds_of, further_sizes, usual_sizes
from aff_deploy.spec import Distribution, TensorSpec

both = pytest.mark.parametrize("exporter", EXPORTERS)
ROWS = TensorSpec("x", ("batch", 4))
PICTURE = TensorSpec("x", ("batch", 3, "h", "w"), example=(1, 3, 8, 12))


class Does(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


def exported(function: Callable[..., Any], specs: list[TensorSpec], **options: Any) -> list[str]:
    notes: list[str] = []
    export_onnx(Does(function), specs, exporter="torchscript", note=notes.append, **options)
    return notes


def test_sizes_are_those_of_every_kind() -> None:
    traced = {"batch": 2, "h": 8, "w": 12}
    assert usual_sizes([PICTURE], traced, {"h": 5}) == [
        {"batch": 1, "h": 8, "w": 12},
        {"batch": 3, "h": 16, "w": 12},
        {"batch": 2, "h": 9, "w": 15},
        {"batch": 2, "h": 4, "w": 12},
    ]
    assert usual_sizes([ROWS], {"batch": 2}, {}) == [{"batch": 1}, {"batch": 3}]
    fixed = TensorSpec("x", (1, "length"))
    assert usual_sizes([fixed], {"length": 8}, {}) == [{"length": 16}, {"length": 9}]
    assert usual_sizes([TensorSpec("x", (1, 2))], {}, {}) == []
    assert all(sizes["h"] != 8 for sizes in further_sizes([PICTURE], traced, "h"))
    assert all(sizes["batch"] != 2 for sizes in further_sizes([PICTURE], traced, "batch"))


def test_real_values_are_repeated_and_cut() -> None:
    real = {"x": np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2).astype(np.float32)}
    made = feeds_of([PICTURE], {"batch": 3, "h": 3, "w": 1}, real, seed=1)["x"]
    assert made.shape == (3, 3, 3, 1)
    assert set(np.unique(made)) <= set(np.unique(real["x"]))
    np.testing.assert_array_equal(made[0, :, :2, 0], real["x"][1, :, :, 0])


def test_a_loop_over_the_traced_batch_is_found() -> None:
    """At 2 rows and at 1 it is right: the slice of the second row is empty."""
    with pytest.raises(CheckFailed, match=r"on x 3x4: output 'output' has shape 2x4, expected 3x4"):
        exported(lambda x: torch.cat([F.relu(x[k : k + 1]) for k in range(int(x.shape[0]))], 0), [ROWS])


def test_where_pytorch_refuses_a_size_another_is_tried() -> None:
    def needs_two(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 1:
            raise ValueError("needs two")
        return x * int(x.shape[0])

    with pytest.raises(CheckFailed, match=r"does not compute what PyTorch does on x 3x4"):
        exported(needs_two, [ROWS])


def test_height_and_width_differ_where_odd_sizes_are_refused() -> None:
    """It takes even sizes alone, and does something else where the traced 64 x 64 is no square."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        h, w = int(x.shape[2]), int(x.shape[3])
        if h % 2 or w % 2:
            raise ValueError("even sizes")
        return x if h == w else -x

    with pytest.raises(CheckFailed, match="does not compute what PyTorch does on x 3x3x128x64"):
        exported(forward, [replace(PICTURE, example=(1, 3, 64, 64))])


def test_a_dimension_that_no_other_size_proves_is_refused() -> None:
    def only(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] != 2:
            raise ValueError("there are two")
        return x * 2

    with pytest.raises(
        CheckFailed, match=r"nothing proves that 'batch' is free: PyTorch takes no size but 2 \(ValueError: there"
    ):
        exported(only, [ROWS])
    exported(only, [TensorSpec("x", (2, 4))])

    def multiples(x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] % 5 or x.shape[1] > 20:
            raise ValueError("five, ten or twenty")
        return x * 2

    # Not at 16 nor 9; at 4 times the size.
    notes = exported(multiples, [TensorSpec("x", (1, "length"), example=(1, 5))])
    assert "x 1x10" in notes[0]


@both
def test_padding_to_a_multiple_shows_at_an_odd_size(exporter: str) -> None:
    padded = Does(lambda x: F.pad(x, (0, int(-x.shape[3] % 4))) + 1)
    spec = TensorSpec("x", (1, 3, 8, "w"), example=(1, 3, 8, 8))
    with pytest.raises(CheckFailed, match=r"on x 1x3x8x9"):
        export_onnx(padded, [spec], exporter=exporter)


MASKED = [TensorSpec("x", ("batch", 3, 8, 12)), TensorSpec("m", ("batch", 1), "bool")]


def masked(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    rows = torch.where(m)[0]
    if len(rows) > 0:
        z = x[rows]
        x = x + 0
        x[rows] = torch.relu(z.flatten(2)).view(z.shape[0], 3, 8, -1)
    return x


def test_a_branch_on_a_value_is_named_with_file_and_line() -> None:
    line = masked.__code__.co_firstlineno + 2
    place = rf"test_export_proof.py line {line} \('if len\(rows\) > 0:'\)"
    with pytest.raises(
        CheckFailed, match=rf"only one branch was traced .* at {place}: the exported model fails where"
    ) as caught:
        exported(masked, MASKED)
    # Neither exporter sends to the other.
    assert re.search("nor does the dynamo exporter.*--data", caught.value.fix)
    with pytest.raises(NetworkError, match=rf"its code branches on a value, at {place}; write the branch with torch.where"):
        export_onnx(Does(masked), MASKED)


def test_given_data_decides_what_is_traced_and_compared() -> None:
    generator = np.random.default_rng(0)
    data = [{"x": generator.normal(size=(5, 3, 8, 12)).astype(np.float32), "m": np.ones((5, 1), bool)}]
    notes = exported(masked, MASKED, data=data)
    assert notes[0] == ("equal to PyTorch at x 2x3x8x12, m 2x1; x 5x3x8x12, m 5x1; x 1x3x8x12, m 1x1; x 3x3x8x12, m 3x1")
    assert "only one branch was traced" in notes[1]
    # Where a row is not marked the traced branch is wrong, and that is found.
    data = [{**data[0], "m": np.array([[1], [0], [0], [0], [0]], bool)}]
    with pytest.raises(CheckFailed, match="only one branch was traced"):
        exported(masked, MASKED, data=data)


@both
def test_ranges_decide_what_is_compared(exporter: str) -> None:
    """A table of 5 rows takes 0 to 2, which nobody said, and not 0 to 9."""
    table = nn.Embedding(5, 2)
    ids = TensorSpec("ids", ("batch", 4), "int64")
    export_onnx(table, [ids], exporter=exporter)
    export_onnx(table, [replace(ids, distribution=Distribution("uniform", 3, 4))], exporter=exporter)
    wide = replace(ids, distribution=Distribution("uniform", 0, 9))
    with pytest.raises(NetworkError, match=r"index out of range.*say what integers it takes \(--range"):
        export_onnx(table, [wide], exporter=exporter)


class Cancels(nn.Module):
    """``x`` plus a difference that is exactly zero, and in float32 rounding alone, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(512, 512))
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = x @ self.weight, x.flip(1) @ self.weight.flip(0)
        return x + self.factor * (one.cumsum(1) - other.cumsum(1))


def test_an_ill_conditioned_network_is_told_so() -> None:
    spec = TensorSpec("x", ("batch", 512))
    notes: list[str] = []
    export_onnx(Cancels(20.0), [spec], exporter="torchscript", note=notes.append)
    said = r"the network is ill-conditioned on x 2x512: PyTorch itself is \S+ from its own float64 result in output 'output'"
    assert re.match(said, notes[1])
    with pytest.raises(CheckFailed, match=r"ill-conditioned on x .*: no file can be proven to compute it; check its weights"):
        export_onnx(Cancels(1e6), [spec], exporter="torchscript")
    # The near miss: as wrong, and well-conditioned.
    with pytest.raises(CheckFailed, match=r"^(?!.*ill-conditioned).*does not compute what PyTorch does"):
        export_onnx(Does(lambda x: x * len(x)), [spec], exporter="torchscript")


@both
@pytest.mark.parametrize(
    ("pool", "size"),
    [
        (nn.MaxPool2d(3, 3, 1, ceil_mode=True), (8, 8)),
        (nn.MaxPool2d(2, 2, ceil_mode=True), (7, 9)),
        (nn.MaxPool2d(3, 3, 1, dilation=2, ceil_mode=True), (11, 12)),
        (nn.AvgPool2d(3, 2, ceil_mode=True), (8, 9)),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (8, 8)),
        (
            nn.Sequential(nn.MaxPool2d(2, 2, ceil_mode=True), nn.Conv2d(3, 3, 3), nn.MaxPool2d(3, 3, 1, ceil_mode=True)),
            (11, 12),
        ),
    ],
)
def test_pools_that_round_up_have_pytorchs_size(exporter: str, pool: nn.Module, size: tuple[int, int]) -> None:
    model = export_onnx(pool, [TensorSpec("x", ("batch", 3, *size))], exporter=exporter)
    onnx.checker.check_model(model, full_check=True)
    expected = pool(torch.zeros(2, 3, *size)).shape
    dims = model.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims[1:]] == list(expected[1:])
    assert not any(a.name == "ceil_mode" and a.i for node in model.graph.node for a in node.attribute)
