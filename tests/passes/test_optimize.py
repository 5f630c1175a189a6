"""The passes together: what goes in stays as it is, what comes out is the same function and says what was done."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from onnx import ModelProto, TensorProto, helper

from aff_deploy.errors import AffDeployError, CheckFailed, ModelError
from aff_deploy.onnx_file import check_onnx
from aff_deploy.passes import DEFAULT_PASSES, FUSION_PASSES, OLDEST_OPSET, Optimized, inspect_model, optimize
from tests.passes.graphs import AFF, C, aff, assert_parity, model_of, op_types


def passes_of(result: Optimized) -> dict[str, int]:
    """Rewrites by pass, of those that made any; of one that runs twice, both together."""
    counts: dict[str, int] = {}
    for done in result.passes:
        counts[done.name] = counts.get(done.name, 0) + done.rewrites
    return {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize("batch", ["N", "2"])
@pytest.mark.parametrize("opset", range(OLDEST_OPSET, 23))
def test_all_of_it(opset: int, batch: str) -> None:
    text = AFF.replace("N,", f"{batch},")
    if opset == OLDEST_OPSET:
        text = text.replace("value_float: float = 1.0", "value: tensor = float {1.0}")
    before = model_of(text, opset=opset)
    result = optimize(before)
    assert passes_of(result) == {"cleanup": 1, "fold_constants": 1, "fold_batchnorm": 2, "fuse_attention": 1}
    assert sorted(op_types(result.model)) == ["AttentionalFusion", "Conv"]
    assert [fusion.kind for fusion in result.fusions] == ["aff"]
    assert result.rejected == ()
    check_onnx(result.model)
    assert_parity(before, result.model)


def test_the_passes_are_reported_in_their_order() -> None:
    result = optimize(aff())
    assert [done.name for done in result.passes] == [step.__name__ for step in DEFAULT_PASSES + FUSION_PASSES]
    assert all(done.seconds >= 0 for done in result.passes)
    assert result.passes[-1].nodes == len(result.model.graph.node)


def test_without_fusion() -> None:
    before = aff()
    result = optimize(before, fuse=False)
    assert passes_of(result) == {"cleanup": 1, "fold_constants": 1, "fold_batchnorm": 2}
    assert result.fusions == ()
    assert not result.model.functions
    assert_parity(before, result.model)


def test_the_model_that_goes_in_stays_as_it_is() -> None:
    before = aff()
    kept = before.SerializeToString(deterministic=True)
    result = optimize(before)
    inspect_model(before)
    assert before.SerializeToString(deterministic=True) == kept
    result.model.graph.initializer[0].raw_data = b""
    result.model.graph.node[0].name = "changed"
    assert before.SerializeToString(deterministic=True) == kept


def test_a_second_time_changes_nothing() -> None:
    once = optimize(aff())
    twice = optimize(once.model)
    assert sum(done.rewrites for done in twice.passes) == 0
    assert twice.fusions == once.fusions
    assert twice.model == once.model


# Each needs what another pass finds first: the reader of one behind it, or a constant that tells a shape.
SETTLED = {
    "BatchNormalization behind BatchNormalization": (
        "(float[N, 4, 5, 6] x) => (float[N, 4, 5, 6] out)",
        """  first = BatchNormalization(x, gamma0, beta0, mean0, var0)
  second = BatchNormalization(first, gamma1, beta1, mean1, var1)
  out = Conv(second, k)""",
        ["Conv"],
    ),
    "axes behind an Identity": (
        "(float[N, 4, 5, 6] x, float[N, 4, 5] y) => (float[A, B] out)",
        """  same = Identity(last)
  wide = Unsqueeze(y, same)
  sum = Add(x, wide)
  shape = Shape(sum)
  channels = Gather(shape, place)
  rows = Concat<axis: int = 0>(minus, channels)
  out = Reshape(sum, rows)""",
        ["Add", "Reshape", "Unsqueeze"],
    ),
}


@pytest.mark.parametrize(("ends", "nodes", "left"), SETTLED.values(), ids=SETTLED)
@pytest.mark.parametrize("opset", [13, 18])
def test_no_pass_leaves_work_for_a_second_time(ends: str, nodes: str, left: list[str], opset: int) -> None:
    weights = ", ".join(f"float[4] gamma{i}, float[4] beta{i}, float[4] mean{i}, float[4] var{i}" for i in range(2))
    numbers = "int64[1] last = {3}, int64[1] place = {1}, int64[1] minus = {-1}"
    before = model_of(f"g {ends} <float[4, 4, 1, 1] k, {weights}, {numbers}> {{\n{nodes}\n}}", opset=opset)
    once = optimize(before)
    assert sorted(op_types(once.model)) == left
    assert optimize(once.model).model == once.model
    assert_parity(before, once.model)


def test_attention_whose_shapes_only_folding_tells() -> None:
    """The stacks have a shape once their axis is known to be constant."""
    start, end = AFF.index("  one = Constant"), AFF.rindex("}")
    stacked = """  same_axis = Identity(axis)
  stack_x = Unsqueeze(x, same_axis)
  stack_y = Unsqueeze(y, same_axis)
  features = Concat<axis: int = 4>(stack_x, stack_y)
  one = Constant<value_float: float = 1.0>()
  rest = Sub(one, w)
  stack_w = Unsqueeze(w, same_axis)
  stack_rest = Unsqueeze(rest, same_axis)
  gates = Concat<axis: int = 4>(stack_w, stack_rest)
  product = Mul(features, gates)
  out = ReduceSum<keepdims: int = 0>(product, same_axis)
"""
    before = model_of((AFF[:start] + stacked + AFF[end:]).replace("> {", ", int64[1] axis = {4}> {"))
    once = optimize(before)
    assert [fusion.kind for fusion in once.fusions] == ["aff"]
    assert optimize(once.model).model == once.model
    assert_parity(before, once.model)


def test_the_same_input_gives_the_same_bytes() -> None:
    first, second = (optimize(aff()).model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_to_dict_is_what_the_command_prints() -> None:
    result = optimize(aff())
    document = result.to_dict()
    assert sorted(document) == ["convex", "fusions", "passes", "rejected"]
    assert [sorted(entry) for entry in document["passes"]] == [["name", "nodes", "rewrites", "seconds"]] * len(result.passes)
    (fusion,) = document["fusions"]
    assert {"name", "kind", "channels", "inter_channels", "scale", "activation", "context"} <= set(fusion)
    assert (fusion["channels"], fusion["inter_channels"], fusion["scale"]) == (C, 4, 1.0)


def test_rejected_says_what_and_why() -> None:
    before = aff()
    before.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, ["N", C, 5, 6]))
    result = optimize(before)
    assert result.fusions == ()
    (rejection,) = result.rejected
    assert "'w'" in rejection.reason
    assert result.to_dict()["rejected"] == [asdict(rejection)]
    assert_parity(before, result.model)


# ---- after each pass


def test_after_pass_sees_a_valid_model_after_each_pass_that_did_something() -> None:
    before = aff()
    seen: list[str] = []

    def look(name: str, model: ModelProto) -> None:
        check_onnx(model)
        assert_parity(before, model)
        seen.append(name)

    optimize(before, after_pass=look)
    assert seen == ["cleanup", "fold_constants", "fold_batchnorm", "fuse_attention"]


def test_after_pass_is_not_called_for_nothing() -> None:
    seen: list[str] = []
    optimize(model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }"), after_pass=lambda name, _: seen.append(name))
    assert seen == []


def test_what_after_pass_raises_ends_it() -> None:
    def refuse(name: str, _: ModelProto) -> None:
        raise CheckFailed(name)

    with pytest.raises(CheckFailed, match="cleanup"):
        optimize(aff(), after_pass=refuse)


def test_what_after_pass_does_to_its_model_changes_nothing() -> None:
    def vandalise(_: str, model: ModelProto) -> None:
        for tensor in model.graph.initializer:
            tensor.name, tensor.raw_data = "gone", b""
        del model.graph.node[:]

    before = aff()
    assert_parity(before, optimize(before, after_pass=vandalise).model)


# ---- what is refused


@pytest.mark.parametrize("opset", [1, 7, 10, 26, 10_000])
def test_opsets_out_of_range_are_refused(opset: int) -> None:
    before = model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    before.opset_import[0].version = opset
    with pytest.raises(ModelError, match=f"opset {opset};") as caught:
        optimize(before)
    assert caught.value.fix


def test_a_model_without_the_standard_domain_is_refused() -> None:
    before = model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    before.opset_import[0].domain = "somebody"
    with pytest.raises(ModelError, match="opset None"):
        optimize(before)


def test_an_attribute_that_is_no_text_is_refused() -> None:
    before = model_of(
        'g (float[1, 1, 2] x) => (float[1, 1, 2] y) <float[1, 1, 1] k> { y = Conv<auto_pad: string = "VALID">(x, k) }'
    )
    before.graph.node[0].attribute[0].s = b"\xff\xfe"
    with pytest.raises(AffDeployError):
        optimize(before)


# ---- inspection


def test_inspect_model() -> None:
    before = aff()
    document = inspect_model(before)
    assert document["ops"]["Conv"] == 5
    assert document["ops"]["BatchNormalization"] == 2
    assert [fusion["kind"] for fusion in document["fusions"]] == ["aff"]
    assert document["inputs"][0] == {"name": "x", "dtype": "float32", "shape": ["N", C, 5, 6]}
    assert document["outputs"] == [{"name": "out", "dtype": "float32", "shape": ["N", C, 5, 6]}]


def test_inspect_a_fused_model_finds_the_same_fusions() -> None:
    before = aff()
    fused = optimize(before).model
    assert inspect_model(fused)["fusions"] == inspect_model(before)["fusions"]
    assert inspect_model(fused)["ops"] == {"AttentionalFusion": 1, "Conv": 1}


def test_inspect_names_operators_of_other_domains() -> None:
    before = model_of(
        "g (float[2] x) => (float[2] y) { y = theirs.f(x) }",
        domains=', "theirs" : 1',
        functions='<domain: "theirs", opset_import: ["" : 18]> f (a) => (b) { b = Neg(a) }',
    )
    assert inspect_model(before)["ops"] == {"theirs::f": 1}


# ---- types


def of_type(name: str) -> str:
    one = "one = Constant<value_float: float = 1.0>()"
    number = TensorProto.DataType.Value(name.upper())
    assert one in AFF
    return AFF.replace("float[", f"{name}[").replace(one, f"{one.replace('one', 'f', 1)}\n  one = Cast<to: int = {number}>(f)")


@pytest.mark.parametrize("opset", [13, 18])
def test_float16(opset: int) -> None:
    before = model_of(of_type("float16"), opset=opset)
    result = optimize(before)
    assert len(result.fusions) == 1
    assert_parity(before, result.model)


def test_bfloat16() -> None:
    # Without a bias, one has to be made in this type.
    result = optimize(model_of(of_type("bfloat16").replace(", b2)", ")").replace(", c1)", ")"), opset=22))
    assert len(result.fusions) == 1
    check_onnx(result.model)
    assert {tensor.data_type for tensor in result.model.graph.initializer} == {TensorProto.BFLOAT16}


def test_double() -> None:
    result = optimize(model_of(of_type("double")))
    assert len(result.fusions) == 1
    check_onnx(result.model)
    assert {tensor.data_type for tensor in result.model.graph.initializer} == {TensorProto.DOUBLE}
