"""Cleaning up: what computes nothing goes, what computes something stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from aff_deploy.passes.cleanup import cleanup
from aff_deploy.passes.convert import export_model, import_graph
from tests.passes.graphs import apply_passes, assert_parity, assert_same, check_rewrite, feeds_of, model_of, op_types, run_ort

IN, OUT = "float[2, 4, 5, 5] x", "float[2, 4, 5, 5] y"


def graph(lines: str, *, x: str = IN, out: str = OUT, weights: str = "") -> str:
    return f"g ({x}) => ({out}) <{weights}> {{\n{lines}\n}}"


NOOPS = {
    "Identity": ("r = Relu(x)\ni = Identity(r)\ny = Neg(i)", 1),
    "Identity, many in a row": ("a = Identity(x)\nb = Identity(a)\nc = Identity(b)\ny = Neg(c)", 3),
    "Identity that makes the output": ("r = Relu(x)\ny = Identity(r)", 1),
    "Identity with several readers": ("i = Identity(x)\na = Relu(i)\nb = Neg(i)\ny = Add(a, b)", 1),
    "Identity read twice by one node": ("i = Identity(x)\ny = Add(i, i)", 1),
    "Dropout": ("r = Relu(x)\nd = Dropout(r)\ny = Neg(d)", 1),
    "Dropout with a ratio": ("r = Relu(x)\nd = Dropout(r, ratio)\ny = Neg(d)", 1),
    "Dropout, training said to be off": ("d = Dropout(x, ratio, off)\ny = Neg(d)", 1),
    "Cast to the same type": ("c = Cast<to: int = 1>(x)\ny = Neg(c)", 1),
    "Transpose that keeps the order": ("t = Transpose<perm: ints = [0, 1, 2, 3]>(x)\ny = Neg(t)", 1),
    "AveragePool of one": ("p = AveragePool<kernel_shape: ints = [1, 1]>(x)\ny = Neg(p)", 1),
    "MaxPool of one": ("p = MaxPool<kernel_shape: ints = [1, 1], strides: ints = [1, 1]>(x)\ny = Neg(p)", 1),
    "dead": ("d = Relu(x)\ne = Neg(d)\ny = Abs(x)", 2),
    "repeated": ("a = Relu(x)\nb = Relu(x)\ny = Add(a, b)", 1),
    "repeated chain": ("a = Relu(x)\nb = Relu(x)\nc = Neg(a)\nd = Neg(b)\ny = Add(c, d)", 2),
    "repeated with attributes": ("a = Softmax<axis: int = 1>(x)\nb = Softmax<axis: int = 1>(x)\ny = Add(a, b)", 1),
    "repeated behind an Identity": ("i = Identity(x)\na = Relu(x)\nb = Relu(i)\ny = Add(a, b)", 2),
}


@pytest.mark.parametrize(("lines", "count"), NOOPS.values(), ids=NOOPS.keys())
def test_goes(lines: str, count: int) -> None:
    body = graph(lines, weights="float ratio = {0.5}, bool off = {0}")
    check_rewrite(body, count, cleanup)


KEPT = {
    "Identity from input to output": ("y = Identity(x)", OUT),
    "Cast to another type": ("c = Cast<to: int = 11>(x)\ny = Cast<to: int = 1>(c)", OUT),
    "Cast there and back": ("c = Cast<to: int = 7>(x)\ny = Cast<to: int = 1>(c)", OUT),
    "Transpose": ("y = Transpose<perm: ints = [0, 1, 3, 2]>(x)", OUT),
    "Transpose by default": ("t = Transpose(x)\ny = Transpose(t)", OUT),
    "MaxPool with stride": ("y = MaxPool<kernel_shape: ints = [1, 1], strides: ints = [2, 2]>(x)", "float[2, 4, 3, 3] y"),
    "other attributes": ("a = Softmax<axis: int = 1>(x)\nb = Softmax<axis: int = 2>(x)\ny = Add(a, b)", OUT),
    "other inputs": ("a = Sub(x, k)\nb = Sub(k, x)\ny = Mul(a, b)", OUT),
    "an optional input in another place": ("a = Clip(x, k0)\nb = Clip(x, , k0)\ny = Mul(a, b)", OUT),
}


@pytest.mark.parametrize(("lines", "out"), KEPT.values(), ids=KEPT.keys())
def test_stays(lines: str, out: str) -> None:
    before = graph(lines, out=out, weights="float[4, 1, 1] k, float k0 = {0.5}")
    check_rewrite(before, 0, cleanup)


def test_of_two_identities_that_make_outputs_one_stays() -> None:
    after = check_rewrite(graph("r = Relu(x)\ny = Identity(r)\nz = Identity(r)", out=f"{OUT}, float[2, 4, 5, 5] z"), 1, cleanup)
    assert sorted(op_types(after)) == ["Identity", "Relu"]


def test_repeated_nodes_that_are_both_outputs_stay() -> None:
    body = graph("y = Relu(x)\nz = Relu(x)", out=f"{OUT}, float[2, 4, 5, 5] z")
    check_rewrite(body, 0, cleanup)


def test_a_repeated_node_that_is_an_output_takes_the_place_of_the_other() -> None:
    after = check_rewrite(graph("r = Relu(x)\nz = Neg(r)\ny = Relu(x)", out=f"{OUT}, float[2, 4, 5, 5] z"), 1, cleanup)
    assert sorted(op_types(after)) == ["Neg", "Relu"]


def test_dropout_whose_mask_is_read_stays() -> None:
    body = graph("y, mask = Dropout(x, ratio)", out=f"{OUT}, bool[2, 4, 5, 5] mask", weights="float ratio = {0.5}")
    check_rewrite(body, 0, cleanup)


def test_random_nodes_are_neither_removed_nor_merged() -> None:
    lines = (
        "a = Dropout(x, ratio, on)\nb = Dropout(x, ratio, on)\nc = RandomNormalLike(x)\nd = RandomNormalLike(x)\n"
        "e = Add(a, b)\nf = Add(c, d)\ny = Add(e, f)"
    )
    count, after = apply_passes(model_of(graph(lines, weights="float ratio = {0.5}, bool on = {1}")), cleanup)
    assert count == 0
    assert op_types(after).count("Dropout") == 2


def test_training_that_a_caller_decides_stays() -> None:
    body = graph("y = Dropout(x, ratio, training)", x=f"{IN}, bool training", weights="float ratio = {0.5}")
    before = model_of(body)
    count, after = apply_passes(before, cleanup)
    assert count == 0
    assert_parity(before, after, training=np.array(False))


FOREIGN = {
    "ops::Noise, which may be random": "a = ops.Noise(x)\nb = ops.Noise(x)\ny = Add(a, b)",
    "ops::Identity, which need not be one": "y = ops.Identity(x)",
}


@pytest.mark.parametrize("lines", FOREIGN.values(), ids=FOREIGN.keys())
def test_operators_of_other_domains_are_left_alone(lines: str) -> None:
    function = '<domain: "ops", opset_import: ["" : 18]> {0} (a) => (b) {{ b = Neg(a) }}'
    functions = "\n".join(function.format(name) for name in ("Noise", "Identity"))
    check_rewrite(graph(lines), 0, cleanup, domains=', "ops" : 1', functions=functions)


def test_bfloat16_cast_to_itself_goes() -> None:
    body = graph("c = Cast<to: int = 16>(x)\ny = Neg(c)").replace("float[", "bfloat16[")
    count, after = apply_passes(model_of(body), cleanup)
    assert (count, op_types(after)) == (1, ["Neg"])


# ---- nested graphs

IF = (
    "y = If (yes) <then_branch = t () => (float[N, C, H, W] p) {{ {0} }}, "
    "else_branch = e () => (float[N, C, H, W] q) {{ {1} }}>"
)


def assert_both_ways(body: str, count: int, **options: str) -> list[str]:
    before = model_of(body, **options)
    rewrites, after = apply_passes(before, cleanup)
    for yes in (True, False):
        assert_parity(before, after, yes=np.array(yes))
    assert rewrites == count
    return op_types(after)


def test_what_nested_graphs_read_keeps_its_name() -> None:
    lines = "r = Relu(x)\ni = Identity(r)\n" + IF.format("p = Neg(i)", "q = Abs(r)")
    assert assert_both_ways(graph(lines, x=f"{IN}, bool yes"), 0) == ["Relu", "Identity", "If"]


def test_an_identity_takes_its_name_to_what_made_it() -> None:
    lines = "r = Relu(x)\ni = Identity(r)\n" + IF.format("p = Neg(i)", "q = Abs(i)")
    assert assert_both_ways(graph(lines, x=f"{IN}, bool yes"), 1) == ["Relu", "If"]


def test_what_only_nested_graphs_read_is_not_dead() -> None:
    lines = "r = Relu(x)\ns = Abs(x)\n" + IF.format("p = Add(r, k)", "q = Mul(s, k2)")
    assert_both_ways(graph(lines, x=f"{IN}, bool yes", weights="float[4, 1, 1] k, float[5] k2"), 0)


def test_repeated_nodes_that_nested_graphs_read() -> None:
    lines = "r = Relu(x)\ns = Relu(x)\n" + IF.format("p = Neg(r)", "q = Abs(s)")
    assert_both_ways(graph(lines, x=f"{IN}, bool yes"), 0)


def test_two_levels_down() -> None:
    inner = (
        "p = If (yes) <then_branch = u () => (float[2, 4, 5, 5] pp) { pp = Neg(i) }, "
        "else_branch = v () => (float[2, 4, 5, 5] qq) { qq = Add(i, k) }>"
    )
    lines = "r = Relu(x)\ni = Identity(r)\n" + IF.format(inner, "q = Abs(x)")
    assert_both_ways(graph(lines, x=f"{IN}, bool yes", weights="float[4, 1, 1] k"), 1)


def test_a_loop_that_reads_from_outside() -> None:
    lines = (
        "i = Identity(x)\ny = Loop(times, go, i) "
        "<body = b (int64 n, bool go_in, float[N, C, H, W] old) => (bool go_out, float[N, C, H, W] new) "
        "{ go_out = Identity(go_in)\n s = Add(old, k)\n new = Mul(s, i) }>"
    )
    check_rewrite(graph(lines, weights="float[4, 1, 1] k, int64 times = {3}, bool go = {1}"), 0, cleanup)


def test_nodes_out_of_order() -> None:
    lines = "r = Relu(x)\ni = Identity(r)\ns = Mul(x, k)\n" + IF.format("p = Neg(i)", "q = Abs(s)")
    before = model_of(graph(lines, x=f"{IN}, bool yes", weights="float[4, 1, 1] k"))
    backwards = list(before.graph.node)[::-1]
    mixed = type(before)()
    mixed.CopyFrom(before)
    del mixed.graph.node[:]
    mixed.graph.node.extend(backwards)
    count, after = apply_passes(mixed, cleanup)
    assert count == 1
    for yes in (True, False):
        assert_parity(before, after, yes=np.array(yes))


# ---- what must not be lost


def test_attributes_of_every_kind_survive() -> None:
    lines = (
        "o = Optional<type: type_proto = float[2, 4, 5, 5]>(x)\ng = OptionalGetElement(o)\n"
        "m = ReduceMean<axes: ints = []>(g)\ny = Add(x, m)"
    )
    before = model_of(graph(lines), opset=16)
    count, after = apply_passes(before, cleanup)
    assert count == 0
    assert [list(node.attribute) for node in after.graph.node] == [list(node.attribute) for node in before.graph.node]


def test_strings_survive() -> None:
    lines = 'c = Constant<value: tensor = string[2] {"one", "two"}>()\ni = Identity(c)\ny = Concat<axis: int = 0>(i, s)'
    check_rewrite(graph(lines, out="string[4] y", weights='string[2] s = {"three", "four"}'), 1, cleanup)


def test_sparse_initializers_survive() -> None:
    dense = np.zeros((5, 5), np.float32)
    dense[1, 2] = 3.0
    before = model_of(graph("i = Identity(x)\ny = Add(i, k)", x=IN, weights="float[5, 5] k"), k=dense)
    del before.graph.initializer[:]
    values = onnx.helper.make_tensor("k", onnx.TensorProto.FLOAT, [1], [3.0])
    indices = onnx.helper.make_tensor("k_indices", onnx.TensorProto.INT64, [1], [7])
    before.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [5, 5]))
    # onnx's shape inference knows no sparse operands, so this model passes no strict check.
    imported = import_graph(before)
    assert cleanup(imported) == 1
    # Nor does onnx's evaluator read sparse constants; nothing here rounds.
    assert_same(*(run_ort(model, feeds_of(before)) for model in (before, export_model(imported, before))))
