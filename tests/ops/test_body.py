"""The operator's body in standard ONNX against the numpy definition, in ONNX Runtime and onnx's reference."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest

from aff_deploy.ops import Form, Variant
from aff_deploy.ops.operator import ACTIVATIONS, TAKES_ALPHA
from aff_deploy.ops.reference import attentional_fusion
from tests.ops.fusions import VARIANTS, arrays_of, assert_computes, call_model, feeds_for
from tests.passes.graphs import run_ort, run_reference

FORMS: tuple[Form, ...] = ("convex", "plain", "blocked", "blocked_static")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: f"{variant.op_type}-{variant.context}")
def test_every_variant_in_every_form(variant: Variant, form: Form) -> None:
    arrays = arrays_of(variant)
    for scale, by_attribute, opset in product((1.0, 2.0, 1.7), (False, True), (12, 13, 18, 22)):
        expected = attentional_fusion(variant, arrays, scale=scale)
        model = call_model(variant, arrays, form=form, scale=scale, scale_by_attribute=by_attribute, opset=opset)
        onnx.checker.check_model(model)
        feeds = feeds_for(model, arrays)
        (actual,) = run_ort(model, feeds, optimised=True)
        assert_computes(expected, actual)
        if opset in (12, 18):
            (actual,) = run_reference(model, feeds)
            assert_computes(expected, actual)


@pytest.mark.parametrize("scale", [1.0, 2.0, 1.7])
@pytest.mark.parametrize("context", ["sum", "explicit"])
def test_split_gives_the_two_shares(context: str, scale: float) -> None:
    variant = Variant(context=context, split=True)  # type: ignore[arg-type]
    arrays = arrays_of(variant)
    expected = attentional_fusion(variant, arrays, scale=scale)
    assert_computes(attentional_fusion(Variant(context=context), arrays, scale=scale), expected.sum(axis=0), "float64")  # type: ignore[arg-type]
    for form, by_attribute, opset in product(FORMS, (False, True), (12, 18)):
        model = call_model(variant, arrays, form=form, scale=scale, scale_by_attribute=by_attribute, opset=opset)
        onnx.checker.check_model(model)
        feeds = feeds_for(model, arrays)
        for outputs in (run_ort(model, feeds, optimised=True), run_reference(model, feeds)):
            assert_computes(expected, np.stack(outputs))


@pytest.mark.parametrize("opset", [12, 13, 20])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str, opset: int) -> None:
    variant = Variant(activation=activation)
    arrays = arrays_of(variant)
    expected = attentional_fusion(variant, arrays, alpha=0.2)
    for form in FORMS:
        model = call_model(variant, arrays, form=form, opset=opset)
        onnx.checker.check_model(model)
        assert_computes(expected, run_ort(model, feeds_for(model, arrays), optimised=True)[0])
        assert_computes(expected, run_reference(model, feeds_for(model, arrays))[0])


@pytest.mark.parametrize("activation", TAKES_ALPHA)
def test_alpha_is_an_attribute_of_the_call(activation: str) -> None:
    variant = Variant(activation=activation)
    arrays = arrays_of(variant)
    results = []
    for alpha in (0.01, 0.9):
        model = call_model(variant, arrays, alpha=alpha)
        results.append(run_ort(model, feeds_for(model, arrays))[0])
        assert_computes(attentional_fusion(variant, arrays, alpha=alpha), results[-1])
    assert np.max(np.abs(results[0] - results[1])) > 1e-3


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("form", FORMS)
def test_hard_sigmoid(form: Form, scale: float) -> None:
    variant = Variant(gate="HardSigmoid")
    arrays = arrays_of(variant)
    model = call_model(variant, arrays, form=form, scale=scale)
    assert_computes(attentional_fusion(variant, arrays, scale=scale), run_ort(model, feeds_for(model, arrays))[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("context", ["explicit", "self"])
def test_with_the_total_at_hand(context: str, form: Form) -> None:
    variant = Variant(context=context)  # type: ignore[arg-type]
    arrays = arrays_of(variant)
    for scale in (1.0, 2.0, 3.0):
        model = call_model(variant, arrays, form=form, scale=scale, total_at_hand=True)
        assert_computes(attentional_fusion(variant, arrays, scale=scale), run_ort(model, feeds_for(model, arrays))[0])


@pytest.mark.parametrize("opset", [12, 13, 15, 18])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("activation", ["Relu", "Gelu", "Elu", "Relu6", "PRelu"])
def test_other_types(dtype: str, activation: str, opset: int) -> None:
    variant = Variant(activation=activation)
    # ONNX Runtime's CPU provider has no convolution of float64; onnx's reference has.
    arrays = {name: array.astype(dtype).astype(np.float64) for name, array in arrays_of(variant).items()}
    for scale in (1.0, 2.0, 1.5):
        model = call_model(variant, arrays, scale=scale, opset=opset, dtype=dtype)
        onnx.checker.check_model(model)
        expected = attentional_fusion(variant, arrays, scale=scale, alpha=0.2)
        feeds = feeds_for(model, arrays, dtype)
        assert_computes(expected, run_reference(model, feeds)[0], dtype)
        if dtype == "float16":
            assert_computes(expected, run_ort(model, feeds, optimised=True)[0], dtype)


@pytest.mark.parametrize("spatial", [(7,), (3, 4, 5), (1, 1), (1, 9)], ids=["1-D", "3-D", "one pixel", "one row"])
@pytest.mark.parametrize("variant", [Variant(), Variant(context="self", blend=False), Variant(context="explicit")])
def test_other_shapes(variant: Variant, spatial: tuple[int, ...]) -> None:
    arrays = arrays_of(variant, spatial=spatial, batch=3)
    for scale in (1.0, 2.0):
        model = call_model(variant, arrays, scale=scale)
        onnx.checker.check_model(model, full_check=True)
        feeds = feeds_for(model, arrays)
        expected = attentional_fusion(variant, arrays, scale=scale)
        assert_computes(expected, run_ort(model, feeds)[0])
        assert_computes(expected, run_reference(model, feeds)[0])


@pytest.mark.parametrize("form", FORMS)
def test_saturated_gates_give_one_input_or_the_other(form: Form) -> None:
    variant = Variant()
    arrays = arrays_of(variant)
    for scale, bias in product((1.0, 2.0), (-200.0, 200.0)):
        arrays["local_b2"] = np.full_like(arrays["local_b2"], bias)
        model = call_model(variant, arrays, form=form, scale=scale)
        (actual,) = run_ort(model, feeds_for(model, arrays))
        np.testing.assert_allclose(actual, scale * (arrays["x"] if bias > 0 else arrays["y"]), atol=1e-5)


def test_every_body_has_a_name_of_its_own() -> None:
    described = [
        (variant.op_type, (variant.context == "explicit", variant.blend, variant.branches, variant.activation, variant.gate))
        for base, activation, gate in product(VARIANTS, ACTIVATIONS, ("Sigmoid", "HardSigmoid"))
        for variant in [Variant(base.context, base.blend, base.branches, activation, gate)]  # type: ignore[arg-type]
    ]
    names: dict[str, set[object]] = {}
    for name, what in described:
        names.setdefault(name, set()).add(what)
    assert not {name for name, meanings in names.items() if len(meanings) > 1}


@pytest.mark.parametrize("opset", [13, 18])
def test_weights_of_zero_halve_the_sum(opset: int) -> None:
    variant = Variant()
    arrays = {name: array if name in "xy" else np.zeros_like(array) for name, array in arrays_of(variant).items()}
    model = call_model(variant, arrays, opset=opset)
    expected = (arrays["x"] + arrays["y"]) / 2
    assert_computes(expected, run_ort(model, feeds_for(model, arrays))[0])
