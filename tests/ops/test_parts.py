"""Which part of a fusion computes in what: every entry of the table is honoured, in every variant."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from aff_deploy.ops import Variant, body, function_body
from aff_deploy.ops.operator import ACTIVATIONS
from aff_deploy.ops.parts import PARTS, Part
from aff_deploy.ops.reference import attentional_fusion
from tests.ops.fusions import VARIANTS, arrays_of, assert_computes, call_model, feeds_for
from tests.passes.graphs import run_ort, run_reference

HALF = TensorProto.FLOAT16


def table(monkeypatch: pytest.MonkeyPatch, *wide: Part) -> None:
    changed: Mapping[Part, str] = {part: "fp32" if part in wide else "own" for part in PARTS}
    monkeypatch.setattr(body, "PARTS", changed)


def casts(variant: Variant, *, opset: int = 18, elem_type: int = HALF) -> list[str]:
    """Operators whose first input is a cast to fp32, one for each such cast."""
    function = function_body(variant, form="convex", scale=1.0, opset=opset, elem_type=elem_type)
    made = {node.output[0] for node in function.node if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT}
    return [node.op_type for node in function.node if any(name in made for name in node.input)]


def test_the_pool_alone_is_wide() -> None:
    assert [part for part, width in PARTS.items() if width == "fp32"] == ["pool"]
    assert casts(Variant()) == ["GlobalAveragePool"]
    assert casts(Variant(), elem_type=TensorProto.BFLOAT16) == ["GlobalAveragePool"]
    assert casts(Variant(branches=("local",))) == []
    assert casts(Variant(), elem_type=TensorProto.FLOAT) == []
    assert casts(Variant(), elem_type=TensorProto.DOUBLE) == []


@pytest.mark.parametrize("opset", [13, 15, 18])
@pytest.mark.parametrize("wide", [*[(part,) for part in PARTS], tuple(PARTS), ()], ids=lambda wide: "-".join(wide) or "none")
def test_each_part_can_be_wide(wide: tuple[Part, ...], opset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table(monkeypatch, *wide)
    for variant, scale in product((*VARIANTS, Variant(split=True), Variant(activation="Gelu")), (1.0, 1.7)):
        arrays = {name: array.astype("f2").astype("f8") for name, array in arrays_of(variant).items()}
        model = call_model(variant, arrays, form="convex", scale=scale, opset=opset, dtype="float16")
        onnx.checker.check_model(model, full_check=True)
        expected = attentional_fusion(variant, arrays, scale=scale)
        found = np.stack(run_ort(model, feeds_for(model, arrays, "float16"), optimised=True))
        assert_computes(expected, found if variant.split else found[0], "float16")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_in_wide_branches(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table(monkeypatch, "local", "global")
    variant = Variant(activation=activation)
    arrays = {name: array.astype("f2").astype("f8") for name, array in arrays_of(variant).items()}
    model = call_model(variant, arrays, form="convex", dtype="float16")
    onnx.checker.check_model(model, full_check=True)
    expected = attentional_fusion(variant, arrays, alpha=0.2)
    assert_computes(expected, run_ort(model, feeds_for(model, arrays, "float16"))[0], "float16")


def test_a_sum_beyond_float16_is_pooled() -> None:
    variant = Variant(context="self", blend=False, branches=("global",))
    arrays = arrays_of(variant, spatial=(40, 40))
    arrays["x"] = np.full_like(arrays["x"], 60.0)
    arrays["global_w1"] /= 60.0
    model = call_model(variant, arrays, form="convex", dtype="float16")
    (actual,) = run_reference(model, feeds_for(model, arrays, "float16"))
    expected = attentional_fusion(variant, {name: array.astype("f2") for name, array in arrays.items()})
    np.testing.assert_allclose(actual.astype("f8"), expected, rtol=2e-2)


def test_one_function_serves_half_and_fp32_calls() -> None:
    variant = Variant()
    arrays = arrays_of(variant)
    model = call_model(variant, arrays, form="convex")
    half = call_model(variant, arrays, form="convex", dtype="float16")
    del model.functions[:]
    model.functions.extend(half.functions)
    (actual,) = run_ort(model, feeds_for(model, arrays))
    assert_computes(attentional_fusion(variant, arrays), actual)
