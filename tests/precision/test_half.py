"""Half precision: what it reaches on trained networks, and every trap of the way there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto

from aff_deploy.errors import DataError, ModelError, UsageError
from aff_deploy.onnx_file import infer_types
from aff_deploy.passes import optimize
from aff_deploy.passes.functions import attributes
from aff_deploy.precision import evaluator, prepare, to_precision, wiring
from aff_deploy.precision.values import rounded
from aff_deploy.spec import Precision
from tests.passes.graphs import aff, feeds_of, model_of, run_ort
from tests.precision.typed import answers, assert_computes, computed, digits, elements, op_counts, typed, wide

HALVES = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}


# ---- trained networks


@pytest.mark.parametrize("io", ["fp32", "fp16"])
@pytest.mark.parametrize(("precision", "least"), [("fp16", 359), ("bf16", 358)])
@pytest.mark.parametrize("name", ["aff_resnet_digits", "iaff_resnet_digits"])
def test_digits_give_the_answers_of_pytorch(name: str, precision: str, least: int, io: str) -> None:
    model, batches, expected = digits(name)
    result = typed(model, *batches[:2], precision=precision, io=io)
    types = elements(result.model)
    assert {types[value.name] for value in (*result.model.graph.input, *result.model.graph.output)} == (
        {"FLOAT16"} if io == "fp16" else {"FLOAT"}
    )
    fed = [{key: array.astype("f2") for key, array in batch.items()} for batch in batches] if io == "fp16" else batches
    with evaluator(result) as runner:
        assert (answers(runner, fed) == expected).sum() >= least
        assert runner.name == f"ONNX Runtime CPU, every tensor rounded to {HALVES[precision].lower()}"
    assert [reason.split(" ", 1)[1] for reason in wide(result).values()] == ["adds up many numbers"]
    convolutions = [node for node in result.model.graph.node if node.op_type in ("Conv", "AttentionalFusion")]
    assert {types[name] for node in convolutions for name in (*node.input, *node.output)} == {HALVES[precision]}
    assert result.model.ByteSize() < 0.56 * model.ByteSize()
    for function in result.model.functions:
        operators = [node.op_type for node in function.node]
        assert operators[operators.index("GlobalAveragePool") - 1] == "Cast"
        assert operators[operators.index("GlobalAveragePool") + 1] == "CastLike"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_tensorrt_rtx_parser_and_builder_take_it(precision: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    model, batches, _ = digits("iaff_resnet_digits")
    result = typed(model, batches[0], precision=precision, io="fp32" if precision != "fp16" else "fp16")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(result.model.SerializeToString()), parser.get_error(0).desc()
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    (name,) = batches[0]
    shape = batches[0][name].shape[1:]
    profile.set_shape(name, (1, *shape), (8, *shape), (32, *shape))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None


def test_fp32_is_rewritten_for_a_gpu_and_no_more() -> None:
    model = optimize(aff()).model
    result = typed(model, precision="fp32")
    assert list(result.model.graph.node) == list(model.graph.node)
    assert [node.op_type for node in result.model.functions[0].node].count("Conv") == 4
    np.testing.assert_allclose(
        computed(result, feeds_of(model))["out"], run_ort(model, feeds_of(model))[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("opset", [11, 13, 14, 15, 17, 20, 22])
def test_every_opset(opset: int, precision: str) -> None:
    model = optimize(aff(opset=max(opset, 13))).model
    if opset < 13:
        next(entry for entry in model.opset_import if not entry.domain).version = 12
    result = typed(model, feeds_of(model), precision=precision)
    (before,) = (node for node in model.graph.node if node.op_type == "AttentionalFusion")
    (after,) = (node for node in result.model.graph.node if node.op_type == "AttentionalFusion")
    kept = {key: value for key, value in attributes(before).items() if key != "upsample"}
    assert attributes(after) == kept
    assert assert_computes(model, feeds_of(model), precision) == {}
    raised = opset < (22 if precision == "bf16" else 15)
    assert bool([note for note in result.notes if "opset" in note]) == raised


# ---- ranges


HOT = """g (float[N, 4] x) => (float[N, 4] y) <float[4] up, float[4] more, float[4] down> {
  a = Mul(x, up)
  b = Mul(a, more)
  c = Relu(b)
  d = Mul(c, down)
  y = Tanh(d) }"""


def hot(reach: float) -> ModelProto:
    four = {name: np.full(4, value) for name, value in (("up", 100.0), ("more", reach / 100), ("down", 1 / reach))}
    return model_of(HOT, **four)


def test_what_overflows_stays_wide_and_is_named() -> None:
    feeds = {"x": np.array([[1.0, -1.0, 0.5, 0.25]], np.float32)}
    kept = assert_computes(hot(1e6), feeds)
    assert sorted(kept) == ["Mul_b", "Mul_d", "Relu_c"]
    assert kept["Mul_b"] == "overflows: 'b' reaches 1e+06 on the test's data, fp16 ends at 65504"
    result = typed(hot(1e6), feeds)
    # No way through float16 between two wide nodes, and no other casts than at their ends and the model's.
    types = elements(result.model)
    assert [types[name] for name in "abcd"] == ["FLOAT16", "FLOAT", "FLOAT", "FLOAT16"]
    assert op_counts(result.model)["Cast"] == 4


def test_what_comes_near_stays_wide_and_is_named() -> None:
    feeds = {"x": np.ones((1, 4), np.float32)}
    assert assert_computes(hot(2e4), feeds)["Mul_b"].startswith("near the limit: 'b' reaches 2e+04")
    assert assert_computes(hot(1e4), feeds) == {}


def test_bfloat16_reaches_as_far_as_fp32() -> None:
    assert assert_computes(hot(1e9), {"x": np.ones((1, 4), np.float32)}, "bf16") == {}


def test_an_input_and_an_output_beyond_fp16() -> None:
    model = model_of("g (float[2] x) => (float[2] y) { a = Abs(x)\ny = Neg(a) }")
    feeds = {"x": np.array([1e5, 3.0], np.float32)}
    assert sorted(assert_computes(model, feeds)) == ["Abs_a", "Neg_y"]
    assert op_counts(typed(model, feeds).model) == {"Abs": 1, "Neg": 1}
    with pytest.raises(DataError, match="'x' reaches 1e\\+05, which float16 cannot hold"):
        typed(model, feeds, io="fp16")


def test_inside_a_fusion_the_call_stays_wide() -> None:
    model = aff()
    feeds = feeds_of(model)
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1e4), "w1"))
        if tensor.name == "w2":
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1e-4), "w2"))
    optimised = optimize(model).model
    (call,) = (node.name for node in optimised.graph.node if node.op_type == "AttentionalFusion")
    kept = assert_computes(optimised, feeds)
    assert list(kept) == [call]
    assert f"'{call}/local_t'" in kept[call]


def test_wide_and_narrow_calls_share_a_function() -> None:
    model, batches, _ = digits("aff_resnet_digits")
    result = typed(model, batches[0], keep_fp32=["stages.1.0.fusion"])
    assert wide(result)["stages.1.0.fusion"] == "asked for"
    expected, actual = run_ort(model, batches[0])[0], computed(result, batches[0])["output"]
    assert np.max(np.abs(expected - actual)) <= 5e-3 * np.max(np.abs(expected))


def test_a_weight_beyond_fp16_keeps_its_node_wide() -> None:
    model = model_of(
        "g (float[N, 2] x) => (float[N, 2] y) <float[2] w, float[2] v> { a = Mul(x, w)\ny = Mul(a, v) }",
        w=np.array([7e4, 1.0]),
        v=np.array([1.0, 1.0]),
    )
    kept = assert_computes(model, {"x": np.full((1, 2), 0.01, np.float32)})
    assert list(kept) == ["Mul_a"]
    assert kept["Mul_a"] == "overflows: the weight 'w' reaches 7e+04, fp16 ends at 65504"


def test_infinities_inside_stay_wide_and_outside_are_refused() -> None:
    inside = model_of("g (float[2] x) => (float[2] y) { a = Exp(x)\ny = Sigmoid(a) }")
    feeds = {"x": np.array([100.0, 0.0], np.float32)}
    assert "infinity in fp32 already" in assert_computes(inside, feeds)["Exp_a"]
    with pytest.raises(DataError, match="output 'y' is infinite in fp32"):
        typed(model_of("g (float[2] x) => (float[2] y) { y = Exp(x) }"), feeds)


def test_what_is_no_number_is_refused() -> None:
    model = model_of("g (float[2] x) => (float[2] y) { a = Sqrt(x)\ny = Relu(a) }")
    with pytest.raises(DataError, match="tensor 'a' is not a number"):
        typed(model, {"x": np.array([-1.0, 4.0], np.float32)})
    with pytest.raises(DataError, match="input 'x' holds values that are not finite"):
        typed(model, {"x": np.array([np.nan, 4.0], np.float32)})


def test_what_vanishes_is_noted() -> None:
    model = model_of("g (float[2] x) => (float[2] y) <float[2] w> { a = Mul(x, w)\ny = Div(a, w) }", w=np.full(2, 1e-9))
    (note,) = typed(model, {"x": np.ones(2, np.float32)}).notes
    assert note == "'a' vanishes in fp16: it reaches only 1e-09 on the test's data"


def test_fp16_needs_data_and_bf16_none() -> None:
    with pytest.raises(DataError, match="no data to observe ranges on"):
        typed(hot(10))
    assert typed(hot(10), precision="bf16").kept_wide == ()


# ---- casts and names


def test_a_retyping_looks_at_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()

    def count(module: Any, name: str) -> None:
        function = getattr(module, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, counted)

    for module, name in ((prepare, "skeleton"), (wiring, "inline_local_functions"), (wiring, "infer_types")):
        count(module, name)
    count(onnxruntime, "InferenceSession")
    model = optimize(aff()).model
    to_precision(model, Precision.FP16, batches=[feeds_of(model)], observed="it", io="fp16")
    assert counts == {"skeleton": 1, "inline_local_functions": 1, "infer_types": 1, "InferenceSession": 1}


@pytest.mark.parametrize("precision", HALVES)
def test_one_cast_a_tensor_however_many_read_it(precision: str) -> None:
    model = model_of(
        "g (float[N, 4] x) => (float[N, 4] y, int64[2] s) { h = Tanh(x)\na = Exp(h)\nb = Abs(h)\nc = Add(a, b)\n"
        "s = Shape(a)\nd = Neg(c)\ne = Sqrt(c)\ny = Add(d, e) }"
    )
    feeds = feeds_of(model)
    result = typed(model, feeds, precision=precision, keep_fp32=["Exp_a", "Abs_b", "Add_c"])
    casts = [node for node in result.model.graph.node if node.op_type == "Cast"]
    assert [(node.input[0], node.output[0]) for node in casts] == [
        ("x", f"x_{precision}"),
        ("h", "h_fp32"),
        ("c_fp32", "c"),
        (f"y_{precision}", "y"),
    ]
    assert_computes(model, feeds, precision, keep_fp32=["Exp_a", "Abs_b", "Add_c"])


def test_who_reads_a_shape_needs_no_cast() -> None:
    model = model_of("g (float[N, 4] x) => (float[N, 4] y, int64[2] s) { s = Shape(x)\ny = Tanh(x) }")
    result = typed(model, {"x": np.ones((2, 4), np.float32)}, keep_fp32=["Tanh_y"])
    assert op_counts(result.model) == {"Shape": 1, "Tanh": 1}


def test_casts_of_the_model_take_what_there_is() -> None:
    model = model_of(
        "g (float[N, 4] x) => (double[N, 4] d, double[N, 4] e) { d = Cast<to: int = 11>(x)\na = Tanh(x)\n"
        "b = Cast<to: int = 11>(a)\ne = Exp(b) }"
    )
    feeds = {"x": np.array([[2049.0, 0.1, -3.0, 1e-3]], np.float32)}
    result = typed(model, feeds)
    assert op_counts(result.model)["Cast"] == 3
    np.testing.assert_array_equal(computed(result, feeds)["d"], feeds["x"].astype(np.float64))


def test_bfloat16_between_float16_ends() -> None:
    model = model_of("g (float[N, 4] x) => (float[N, 4] y) { a = Tanh(x)\ny = Exp(a) }")
    result = typed(model, {"x": np.ones((1, 4), np.float32)}, precision="bf16", io="fp16")
    assert op_counts(result.model) == {"Cast": 3, "Tanh": 1, "Exp": 1}


@pytest.mark.parametrize("io", ["fp32", "fp16"])
def test_an_input_that_is_an_output(io: Any) -> None:
    model = model_of("g (float[N, 4] x) => (float[N, 4] x, float[N, 4] y) { y = Tanh(x) }")
    values = np.array([[0.1, 1.0, -2.0, 3.0]], np.float16 if io == "fp16" else np.float32)
    result = typed(model, {"x": values.astype(np.float32)}, io=io)
    found = computed(result, {"x": values})
    assert found["x"].dtype == values.dtype
    np.testing.assert_array_equal(found["x"], values)


def test_an_initializer_that_is_an_output_is_given_as_it_was() -> None:
    model = model_of("g (float[N, 2] x) => (float[N, 2] y, float[2] w) { y = Mul(x, w) }")
    values = np.array([0.1, 1e-3], np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    feeds = {"x": np.ones((1, 2), np.float32)}
    result = typed(model, feeds)
    stored = {tensor.name: tensor.data_type for tensor in result.model.graph.initializer}
    assert stored == {"w": TensorProto.FLOAT, "w_fp16": TensorProto.FLOAT16}
    np.testing.assert_array_equal(computed(result, feeds)["w"], values)


# ---- traps


def test_a_weight_that_wide_and_narrow_nodes_share_is_kept_twice() -> None:
    model = model_of(
        "g (float[2] x) => (float[2] y, float[2] z) <float[2] w> { a = Mul(x, w)\ny = Sigmoid(a)\nb = Add(x, w)\nz = Relu(b) }",
        w=np.array([0.1, 1e-3]),
    )
    model.graph.node[0].name = "first"
    result = typed(model, {"x": np.ones(2, np.float32)}, keep_fp32=["first"])
    stored = {tensor.name: tensor for tensor in result.model.graph.initializer}
    assert {name: tensor.data_type for name, tensor in stored.items()} == {
        "w": TensorProto.FLOAT16,
        "w_fp32": TensorProto.FLOAT,
    }
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored["w_fp32"]), np.array([0.1, 1e-3], np.float32))


@pytest.mark.parametrize("io", ["fp32", "fp16"])
def test_a_large_weight_of_a_wide_node_is_kept_once(io: Any) -> None:
    model = model_of(
        "g (float[N, 20] x) => (float[N, 20] y) <float[20, 20] w, float[20, 20] v> { a = MatMul(x, w)\ny = MatMul(a, v) }"
    )
    result = typed(model, feeds_of(model), keep_fp32=["MatMul_y"], io=io)
    stored = {tensor.name: tensor.data_type for tensor in result.model.graph.initializer}
    assert stored == {"w": TensorProto.FLOAT16, "v": TensorProto.FLOAT}


@pytest.mark.parametrize("precision", HALVES)
def test_constants_in_nodes(precision: str) -> None:
    model = model_of(
        "g (float[2] x) => (float[2] y, float k) { one = Constant<value_float: float = 1.5>()\n"
        "some = Constant<value_floats: floats = [0.1, 3.0]>()\nt = Constant<value: tensor = float[2] {0.3, 4.0}>()\n"
        "n = Constant<value_ints: ints = [2]>()\nfull = ConstantOfShape<value: tensor = float[1] {0.7}>(n)\n"
        "a = Mul(x, one)\nb = Add(a, some)\nc = Add(b, full)\ny = Mul(c, t)\nk = Constant<value_float: float = 0.1>() }"
    )
    assert assert_computes(model, feeds_of(model), precision) == {}
    types = elements(typed(model, feeds_of(model), precision=precision).model)
    assert {types[name] for name in ("one", "some", "t", "full", "a")} == {HALVES[precision]}


@pytest.mark.parametrize("precision", HALVES)
def test_numbers_made_of_sizes_stay_exact(precision: str) -> None:
    model = model_of(
        "g (float[N, 2] x) => (float[N, 2] y, int64[1] size) <float[1] half> { s = Shape<start: int = 0, end: int = 1>(x)\n"
        "f = Cast<to: int = 1>(s)\nh = Mul(f, half)\nfloor = Floor(h)\nsize = Cast<to: int = 7>(floor)\ny = Tanh(x) }",
        half=np.array([0.5]),
    )
    kept = assert_computes(model, {"x": np.zeros((8195, 2), np.float32)}, precision)
    assert sorted(kept) == ["Cast_f", "Cast_size", "Floor_floor", "Mul_h"]
    assert set(kept.values()) == {"computes sizes or positions, of which half precision holds few exactly"}


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("stored", [True, False])
def test_scales_of_a_resizing_stay_fp32(stored: bool, precision: str) -> None:
    made = "" if stored else "scales = Relu(factors)\n"
    name = "scales" if stored else "factors"
    model = model_of(
        f"g (float[1, 2, 3, 4] x) => (float[a, b, c, d] y, float[4] z) <float[4] {name}, float[0] roi> {{ {made}"
        f'r = Resize<mode: string = "linear">(x, roi, scales)\ny = Tanh(r)\nz = Sqrt({name}) }}',
        **{name: np.array([1.0, 1.0, 2.0, 2.0])},
    )
    kept = assert_computes(model, feeds_of(model), precision)
    assert kept == {}


@pytest.mark.parametrize("precision", HALVES)
def test_the_region_of_a_resizing_stays_fp32(precision: str) -> None:
    model = model_of(
        "g (float[1, 2, 4, 4] x) => (float[1, 2, 3, 3] y) <float[8] roi, int64[4] sizes> { a = Tanh(x)\n"
        'y = Resize<mode: string = "linear", coordinate_transformation_mode: string = "tf_crop_and_resize">'
        "(a, roi, , sizes) }",
        roi=np.array([0.0, 0.0, 0.1, 0.2, 1.0, 1.0, 0.9, 0.8]),
        sizes=np.array([1, 2, 3, 3]),
    )
    assert assert_computes(model, feeds_of(model), precision) == {}
    assert elements(typed(model, feeds_of(model), precision=precision).model)["roi"] == "FLOAT"


def test_types_that_an_operator_has_by_default() -> None:
    model = model_of(
        "g (float[3, 4] x) => (float[3, 4] y) { r = RandomNormal<shape: ints = [3, 4]>()\ns = Shape(x)\n"
        "z = ConstantOfShape(s)\ne = EyeLike(x)\na = Mul(r, z)\nb = Add(a, e)\ny = Add(b, x) }"
    )
    feeds = {"x": np.ones((3, 4), np.float32)}
    assert assert_computes(model, feeds) == {}
    result = typed(model, feeds)
    assert {elements(result.model)[name] for name in "rzeab"} == {"FLOAT16"}
    assert op_counts(result.model)["Cast"] == 2


IF = """g (float[2] x, bool c) => (float[2] y) <float[2] k> {
  r = Mul(x, k)
  i = If (c) <then_branch = t () => (float[2] p) { q = Add(r, k)
    p = Relu(q) }, else_branch = e () => (float[2] s) { s = Abs(x) }>
  y = Mul(i, k) }"""


@pytest.mark.parametrize("way", [True, False])
@pytest.mark.parametrize("precision", HALVES)
def test_nested_graphs_stay_as_they_are(precision: str, way: bool) -> None:
    model = model_of(IF, k=np.array([0.5, -2.0]))
    kept = assert_computes(model, {"x": np.array([1.0, -3.0], np.float32), "c": np.array(way)}, precision)
    assert kept == {"If_i": "If holds a graph of its own, which is left as it is"}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a = Max(x, w)\nb = Min(a, v)\ny = Relu(b)", []),
        ("axis = Constant<value_int: int = 1>()\na = CumSum(x, axis)\ny = Relu(a)", ["CumSum_a"]),
        ("k = Constant<value_ints: ints = [4]>()\na, i = TopK(x, k)\ny = Relu(a)", []),
        ("a = ReduceSum<keepdims: int = 1>(x)\ny = Add(a, w)", ["ReduceSum_a"]),
        ("a = LayerNormalization(x, w, v)\ny = Relu(a)", []),
        ("a = Softmax(x)\ny = Gelu(a)", []),
        ("a = Clip(x, low, high)\ny = Neg(a)", []),
        ("a = Identity(x)\nb = Identity(a)\ny = Identity(b)", []),
    ],
)
def test_operators_of_real_networks(text: str, kept: list[str]) -> None:
    model = model_of(
        f"g (float[N, 4] x) => (float[N, 4] y) <float[4] w, float[4] v, float low, float high> {{ {text} }}",
        opset=20,
        low=np.array(-1.0),
        high=np.array(1.0),
    )
    assert sorted(assert_computes(model, feeds_of(model))) == kept


def test_an_operator_that_takes_no_half_stays_wide() -> None:
    model = model_of(
        "g (float[N, 4] x, float n) => (float[N, 4] y) <float zero, float one> {\nr = Range(zero, n, one)\ny = Add(x, r) }",
        zero=np.array(0.0),
        one=np.array(1.0),
    )
    feeds = {"x": np.ones((2, 4), np.float32), "n": np.array(4.0, np.float32)}
    assert assert_computes(model, feeds) == {"Range_r": "Range takes no float16"}


def test_nodes_of_one_name_or_none() -> None:
    model = hot(1e6)
    for node in model.graph.node[:3]:
        node.name = "same"
    result = typed(model, {"x": np.ones((1, 4), np.float32)})
    names = [node.name for node in result.model.graph.node]
    assert len(names) == len(set(names))
    assert "same" in names
    assert set(wide(result)) == {"same_b", "same_c", "Mul_d"}


def test_functions_of_others_are_expanded() -> None:
    model = model_of(
        "g (float[N, 4] x) => (float[N, 4] y) { a = f.twice(x)\ny = Relu(a) }",
        domains=', "f" : 1',
        functions='<domain: "f", opset_import: ["" : 18]> twice (a) => (b) { b = Add(a, a) }',
    )
    assert assert_computes(model, feeds_of(model)) == {}
    assert not typed(model, feeds_of(model)).model.functions


def test_defaults_of_inputs_stay_defaults() -> None:
    model = model_of("g (float[2] x, float[2] w) => (float[2] y) { y = Mul(x, w) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "w"))
    feeds = {"x": np.ones(2, np.float32)}
    for io in ("fp32", "fp16"):
        result = typed(model, feeds, io=io)
        fed = {name: array.astype(np.float16 if io == "fp16" else np.float32) for name, array in feeds.items()}
        np.testing.assert_array_equal(computed(result, fed)["y"], [2.0, 3.0])


def test_what_is_said_of_the_model_stays() -> None:
    model = hot(10)
    model.producer_name = "someone"
    model.metadata_props.add(key="task", value="none")
    result = typed(model, {"x": np.ones((1, 4), np.float32)}).model
    assert (result.producer_name, result.graph.name) == ("someone", "g")
    assert [entry.value for entry in result.metadata_props] == ["none"]
    assert {"a", "b"} <= infer_types(result).keys()


@pytest.mark.parametrize(
    ("values", "expected"), [([1e-12, -1e-12, 0.0], [2**-24, -(2**-24), 0.0]), ([2049.0, 0.1], [2048.0, 0.0999755859375])]
)
def test_rounding_of_weights_keeps_what_is_not_zero_so(values: list[float], expected: list[float]) -> None:
    tensor = onnx.numpy_helper.from_array(np.array(values, np.float32), "w")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(rounded(tensor, TensorProto.FLOAT16)).astype(float), expected)


# ---- refusals


def test_half_precision_already() -> None:
    model = model_of("g (float16[2] x) => (float16[2] y) { y = Relu(x) }")
    with pytest.raises(ModelError, match="computes in float16 already"):
        to_precision(model, Precision.FP16, batches=[{"x": np.ones(2, np.float16)}], observed="")


def test_nothing_in_float32() -> None:
    model = model_of("g (double[2] x) => (double[2] y) { y = Relu(x) }")
    with pytest.raises(ModelError, match="computes nothing in float32"):
        to_precision(model, Precision.BF16, batches=[], observed="")


def test_an_unknown_node_to_keep_wide() -> None:
    with pytest.raises(UsageError, match=r"no node of the model is called 'Relu_d'; did you mean 'Relu_c'\?"):
        typed(hot(10), {"x": np.ones((1, 4), np.float32)}, keep_fp32=["Relu_d"])


def test_other_ends() -> None:
    with pytest.raises(UsageError, match="use fp32 or fp16"):
        typed(hot(10), io="int8")


def test_more_weights_than_a_message_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aff_deploy.precision.wiring.MAX_MODEL_BYTES", 10)
    with pytest.raises(ModelError, match="precision is written up to"):
        typed(hot(10), {"x": np.ones((1, 4), np.float32)})


def test_to_dict() -> None:
    document = typed(hot(1e6), {"x": np.ones((1, 4), np.float32)}).to_dict()
    assert document["precision"] == "fp16"
    assert document["io"] == "fp32"
    assert document["kept_wide"][0]["name"] == "Mul_b"
    assert document["observed"] == "the test's data"
    assert document["notes"] == []
