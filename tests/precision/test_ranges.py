"""Ranges against what numpy finds in the tensors themselves."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from aff_deploy.errors import DataError, ModelError
from aff_deploy.ops.reference import attentional_fusion
from aff_deploy.passes import optimize
from aff_deploy.passes.functions import attach_functions, variant_of
from aff_deploy.precision import Range, observe_ranges
from tests.passes.graphs import Array, aff, feeds_of, model_of, run_ort

BODY = """g (float[N, 4, 5] x, int64[2] n) => (float[N, 4, 5] y, float s) <float[4, 5] w> {
  k = Constant<value_float: float = 3.0>()
  a = Mul(x, w)
  b = Mul(a, k)
  m = Shape(b)
  c = Cast<to: int = 11>(b)
  y = Relu(b)
  s = ReduceMean<keepdims: int = 0>(y) }"""


def test_every_float_tensor_over_all_batches() -> None:
    model = model_of(BODY)
    batches = [feeds_of(model, seed=seed, size=size) for seed, size in ((1, 3), (2, 1), (3, 7))]
    found = observe_ranges(model, batches)
    assert set(found) == {"x", "a", "b", "y", "s"}
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "ab")
    runs = [dict(zip("ysab", run_ort(shown, batch), strict=True)) | {"x": batch["x"]} for batch in batches]
    for name, seen in found.items():
        values = np.concatenate([np.ravel(run[name]) for run in runs])
        assert (seen.lowest, seen.highest, seen.owner) == (values.min(), values.max(), "")
        assert seen.reach == np.abs(values).max()


def test_inside_a_call_tensors_belong_to_it() -> None:
    model = optimize(aff()).model
    attach_functions(model, form="convex")
    feeds = feeds_of(model)
    (call,) = (node for node in model.graph.node if node.op_type == "AttentionalFusion")
    found = observe_ranges(model, [feeds])
    inside = {name: seen for name, seen in found.items() if seen.owner}
    assert {seen.owner for seen in inside.values()} == {call.name}
    assert {f"{call.name}/{name}" for name in ("total", "local_t", "pooled", "z", "w", "weighted_x")} <= set(inside)
    assert call.output[0] in found
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    conv = dict(zip([value.name for value in model.graph.output], run_ort(model, feeds), strict=True))
    y = _of(model, feeds, call.input[1])
    arrays = dict(zip(variant_of(call).inputs, [feeds["x"], y, *(stored[name] for name in call.input[2:])], strict=True))
    expected = attentional_fusion(variant_of(call), arrays)
    np.testing.assert_allclose(expected, conv["out"], atol=1e-4)
    seen = inside[f"{call.name}/total"]
    np.testing.assert_allclose((seen.lowest, seen.highest), ((feeds["x"] + y).min(), (feeds["x"] + y).max()), rtol=1e-5)


def _of(model: onnx.ModelProto, feeds: dict[str, Array], name: str) -> Array:
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return run_ort(shown, feeds)[-1]


def test_two_calls_of_one_function_are_kept_apart() -> None:
    one = optimize(aff()).model
    (call,) = (node for node in one.graph.node if node.op_type == "AttentionalFusion")
    second = one.graph.node.add()
    second.CopyFrom(call)
    second.name, second.input[0], second.output[0] = "again", call.output[0], "out_again"
    call.name = "first"
    attach_functions(one, form="convex")
    one.graph.output[0].name = "out_again"
    found = observe_ranges(one, [feeds_of(one)])
    assert found["first/total"] != found["again/total"]
    assert found["first/total"].owner == "first"


def test_infinite_inside_and_empty() -> None:
    model = model_of(
        "g (float[N] x) => (float[N] y, float[0] e) <int64[1] none> { a = Exp(x)\ny = Sigmoid(a)\ne = Slice(x, none, none) }",
        none=np.zeros(1),
    )
    found = observe_ranges(model, [{"x": np.array([1.0, 100.0], np.float32)}])
    assert found["a"].highest == np.inf
    assert found["e"] == Range(np.inf, -np.inf)
    assert found["e"].reach == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_a_number_is_found_wherever_it_lies(value: float) -> None:
    model = model_of(
        "g (float[N] x) => (float[N] y) <float[1] w> { a = Mul(x, w)\nb = Sub(a, a)\ny = Relu(b) }", w=np.array([value])
    )
    with pytest.raises(DataError, match="is not a number") as caught:
        observe_ranges(model, [{"x": np.arange(1, 40, dtype=np.float32)}])
    assert repr("a" if np.isnan(value) else "b") in str(caught.value)


def test_no_data_and_wrong_data() -> None:
    model = model_of(BODY)
    with pytest.raises(DataError, match="no data to observe"):
        observe_ranges(model, [])
    with pytest.raises(DataError, match="no data for input 'n'"):
        observe_ranges(model, [{"x": np.zeros((1, 4, 5), np.float32)}])


def test_an_operator_that_nobody_knows() -> None:
    model = model_of("g (float[2] x) => (float[2] y) { a = m.Odd(x)\ny = Relu(a) }", domains=', "m" : 1')
    with pytest.raises(ModelError, match="the type of tensor 'a' cannot be told"):
        observe_ranges(model, [{"x": np.ones(2, np.float32)}])
