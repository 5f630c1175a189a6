"""Tensor specs, dynamic dimensions and the table of tolerances."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aff_deploy.errors import UsageError
from aff_deploy.spec import (
    DTYPES,
    MAX_ELEMENTS,
    TOLERANCES,
    Distribution,
    Precision,
    TensorSpec,
    apply_dynamic,
    apply_ranges,
    parse_dynamic,
)

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@given(NAMES, st.lists(st.integers(1, 48) | NAMES, max_size=5), st.sampled_from(DTYPES))
def test_parse_reads_what_text_writes(name: str, shape: list[int | str], dtype: str) -> None:
    spec = TensorSpec(name, tuple(shape), dtype)
    assert TensorSpec.parse(spec.text) == spec


@pytest.mark.parametrize(
    ("text", "name", "shape"),
    [
        ("image:batchx3x64x64", "image", ("batch", 3, 64, 64)),
        ("image:3xhxw", "image", (3, "h", "w")),
        ("tokens:{max_length}", "tokens", ("max_length",)),
        ("input:0:batchx3", "input:0", ("batch", 3)),
    ],
)
def test_a_word_is_a_dynamic_dimension(text: str, name: str, shape: tuple[int | str, ...]) -> None:
    assert TensorSpec.parse(text) == TensorSpec(name, shape)
    assert TensorSpec.parse(f"{text}:int64") == TensorSpec(name, shape, "int64")


def test_dtype_defaults_to_float32() -> None:
    assert TensorSpec.parse("x:1x3") == TensorSpec("x", (1, 3), "float32")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "x:",
        ":1x2",
        "x:1x",
        "x:-1x2",
        "x:1x2:",
        "x:12a",
        "x:0x2",
        "x:x",
        "x:float32",
        "x:{}",
        "x:1x2:float31",
        f"x:{MAX_ELEMENTS + 1}",
    ],
)
def test_what_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        TensorSpec.parse(text)
    assert caught.value.fix


def test_dynamic_dimensions_keep_their_size_as_example() -> None:
    (spec,) = apply_dynamic([TensorSpec.parse("x:2x3x8x16")], ["x:0=batch,3=w"])
    assert spec.shape == ("batch", 3, 8, "w")
    assert spec.example == (2, 3, 8, 16)
    assert spec.concrete(batch=5) == (5, 3, 8, 16)
    assert spec.is_dynamic
    assert TensorSpec("x", ("n", 3)).concrete() == (1, 3)
    assert parse_dynamic("a:0=n") == ("a", {0: "n"})
    assert parse_dynamic("input:0:0=n,2=h") == ("input:0", {0: "n", 2: "h"})


@pytest.mark.parametrize(
    ("text", "part"), [("y:0=n", "'y'"), ("x:4=n", "axis 4"), ("x:0", "NAME:0=batch"), ("x:0=1n", "NAME:0=batch")]
)
def test_dynamic_mistakes_are_named(text: str, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        apply_dynamic([TensorSpec.parse("x:2x3x8x16")], [text])


def test_tolerances_grow_as_precision_falls() -> None:
    rows = [TOLERANCES[p] for p in (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8)]
    assert {*rows, TOLERANCES[Precision.FP8]} == {*TOLERANCES.values()}
    assert TOLERANCES[Precision.FP8] == TOLERANCES[Precision.INT8]
    for finer, coarser in itertools.pairwise(rows):
        assert (finer.atol, finer.rtol) < (coarser.atol, coarser.rtol)
        assert finer.min_cosine > coarser.min_cosine
    assert str(Precision.FP16) == "fp16"


def test_ranges_are_given_by_name() -> None:
    specs = (TensorSpec("ids", ("n", 3), "int64"), TensorSpec("a:0", ("n",)), TensorSpec("other", (1,)))
    ids, named, other = apply_ranges(specs, [f"ids:-5:{2**63 - 1}", "a:0:-1e-3:2.5"])
    assert ids.distribution == Distribution("uniform", -5, 2**63 - 1)
    assert named.distribution == Distribution("uniform", -1e-3, 2.5)
    assert other.distribution is None
    (dynamic,) = apply_dynamic([ids], ["ids:1=length"])
    assert dynamic.distribution == ids.distribution


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("ids:0", "NAME:LOW:HIGH"),
        ("ids:a:b", "NAME:LOW:HIGH"),
        ("ids:0:nan", "NAME:LOW:HIGH"),
        ("ids:0:inf", "NAME:LOW:HIGH"),
        ("x:0:1", "the inputs are ids, pixels, mask"),
        ("ids:2:1", "the smaller first"),
        ("ids:0:1.5", "whole numbers"),
        (f"ids:0:{2**63}", "whole numbers"),
        ("pixels:0:256", "from 0 to 255"),
        ("mask:0:1", "bool, which has no range"),
    ],
)
def test_a_range_that_does_not_fit(text: str, part: str) -> None:
    specs = (TensorSpec("ids", (1,), "int64"), TensorSpec("pixels", (1,), "uint8"), TensorSpec("mask", (1,), "bool"))
    with pytest.raises(UsageError, match=part):
        apply_ranges(specs, [text])


@pytest.mark.parametrize("text", ["x:1x" + "9" * 5000, "\udcff:1x1", "x" * 5000 + ":1", "x:" + "{a}x" * 30_000])
def test_inputs_that_nothing_can_hold(text: str) -> None:
    with pytest.raises(UsageError):
        TensorSpec.parse(text)


def test_numbers_of_thousands_of_digits() -> None:
    with pytest.raises(UsageError):
        parse_dynamic("x:" + "9" * 5000 + "=n")
    for number in ("9" * 5000, "1e400"):
        with pytest.raises(UsageError):
            apply_ranges((TensorSpec("ids", (1,), "int64"),), [f"ids:0:{number}"])
