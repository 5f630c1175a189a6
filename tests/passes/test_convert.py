"""To graphsurgeon and back: whatever the passes do, all that they did not mean to change is kept."""

from __future__ import annotations

import numpy as np
from onnx import helper

from aff_deploy.ops import DOMAIN
from aff_deploy.passes import optimize
from tests.passes.graphs import AFF, C, aff, assert_parity, model_of, op_types, run_ort


def test_everything_around_the_graph_is_kept() -> None:
    before = aff()
    before.producer_name, before.producer_version = "pytorch", "2.13"
    before.domain, before.model_version, before.doc_string = "org.example", 7, "a network"
    before.metadata_props.add(key="author", value="someone")
    before.graph.doc_string = "its graph"
    before.graph.metadata_props.add(key="part", value="main")
    before.graph.input[0].doc_string = "an image"
    before.graph.node[0].doc_string = "a convolution"
    before.graph.node[0].metadata_props.add(key="from", value="layer1")
    after = optimize(before).model
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "metadata_props"):
        assert getattr(after, field) == getattr(before, field)
    for field in ("name", "doc_string", "metadata_props", "input", "output"):
        assert getattr(after.graph, field) == getattr(before.graph, field)
    conv = next(node for node in after.graph.node if node.op_type == "Conv")
    assert (conv.doc_string, conv.metadata_props[0].value) == ("a convolution", "layer1")


def test_functions_and_domains_of_others_are_kept() -> None:
    before = model_of(
        "g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) {"
        "i = Identity(x)\ny = theirs.twice<times: int = 2>(i)\nz = theirs.half(i) }",
        domains=', "theirs" : 3, "unused" : 5',
        functions=(
            '<domain: "theirs", opset_import: ["" : 18]> twice <times> (a) => (b) { i = Identity(a)\nb = Add(i, a) }\n'
            '<domain: "theirs", opset_import: ["" : 18]> half (a) => (b) '
            "{ c = Constant<value_float: float = 0.5>()\nb = Mul(a, c) }"
        ),
    )
    after = optimize(before).model
    assert list(after.functions) == list(before.functions)
    assert list(after.opset_import) == list(before.opset_import)
    assert sorted(op_types(after)) == ["half", "twice"]
    assert_parity(before, after)


def test_overloads_of_functions_are_kept() -> None:
    before = model_of(
        "g (float[2, 3] x) => (float[2, 3] y) { a = theirs.f:one(x)\ny = theirs.f:two(a) }",
        ir=10,
        domains=', "theirs" : 1',
        functions=(
            '<domain: "theirs", overload: "one", opset_import: ["" : 18]> f (a) => (b) { b = Neg(a) }\n'
            '<domain: "theirs", overload: "two", opset_import: ["" : 18]> f (a) => (b) { b = Abs(a) }'
        ),
    )
    assert [node.overload for node in optimize(before).model.graph.node] == ["one", "two"]


def test_a_function_of_ours_that_nothing_calls_goes() -> None:
    fused = optimize(aff()).model
    before = model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }", domains=f', "{DOMAIN}" : 1')
    before.functions.extend(fused.functions)
    after = optimize(before).model
    assert not after.functions
    assert [entry.domain for entry in after.opset_import] == [""]


def test_inputs_that_nothing_reads_stay() -> None:
    before = model_of("g (float[2] x, float[3] unused, int64 number) => (float[2] y) { y = Relu(x) }")
    assert_parity(before, optimize(before).model)


def test_an_input_that_is_an_output() -> None:
    before = model_of("g (float[2] x) => (float[2] x, float[2] y) { i = Identity(x)\ny = Relu(i) }")
    assert_parity(before, optimize(before).model)


def test_an_initializer_that_is_an_output() -> None:
    before = model_of("g (float[2] x) => (float[2] y, float[2] k) <float[2] k> { i = Identity(k)\ny = Add(x, i) }")
    assert_parity(before, optimize(before).model)


def test_sequences_and_optionals_pass() -> None:
    before = model_of(
        "g (float[2] x, seq(float[2]) s) => (float[2] y, seq(float[2]) t) { t = SequenceInsert(s, x)\n"
        "n = SequenceConstruct(x, x)\nz = Constant<value_int: int = 0>()\ny = SequenceAt(n, z) }"
    )
    after = optimize(before).model
    feeds = {"x": np.ones(2, np.float32), "s": [np.zeros(2, np.float32)]}
    for mine, other in zip(run_ort(before, feeds), run_ort(after, feeds), strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(other))
    assert list(after.graph.input) == list(before.graph.input)


def test_weights_that_a_caller_may_override_stay_inputs() -> None:
    before = aff()
    for tensor in before.graph.initializer:
        before.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    after = optimize(before).model
    assert_parity(before, after)
    assert_parity(before, after, w1=np.random.default_rng(9).normal(size=(4, C, 1, 1)), gamma0=np.full(C, 2.0))


def test_a_fusion_within_a_nested_graph_is_left_to_the_runtime() -> None:
    weights, _, inner = AFF[AFF.index("<") : AFF.rindex("}")].partition("{")
    before = model_of(
        f"g (float[N, {C}, 5, 6] x, float[N, {C}, 5, 6] skip, bool c) => (float[N, {C}, 5, 6] res) {weights} {{\n"
        f"res = If (c) <then_branch = t () => (float[N, {C}, 5, 6] out) {{ {inner} }}, "
        f"else_branch = e () => (float[N, {C}, 5, 6] o2) {{ o2 = Relu(x) }}> }}"
    )
    after = optimize(before).model
    for c in (True, False):
        assert_parity(before, after, c=np.array(c))
