"""Folding constants: computed once what never changes, and nothing that may."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from aff_deploy.passes.convert import export_model, import_graph
from aff_deploy.passes.fold_constants import LARGEST_RESULT, fold_constants
from tests.passes.graphs import apply_passes, assert_parity, check_rewrite, model_of, op_types

IN, OUT = "float[2, 3, 4] x", "float[2, 3, 4] y"


def graph(lines: str, *, x: str = IN, out: str = OUT, weights: str = "") -> str:
    return f"g ({x}) => ({out}) <{weights}> {{\n{lines}\n}}"


FOLDED = {
    "Constant, tensor": ("c = Constant<value: tensor = float[4] {1, 2, 3, 4}>()\ny = Add(x, c)", 1),
    "Constant, float": ("c = Constant<value_float: float = 2.5>()\ny = Add(x, c)", 1),
    "Constant, floats": ("c = Constant<value_floats: floats = [1.0, 2.0, 3.0, 4.0]>()\ny = Add(x, c)", 1),
    "Constant, int": ("c = Constant<value_int: int = 3>()\nf = Cast<to: int = 1>(c)\ny = Add(x, f)", 2),
    "Constant, ints": ("c = Constant<value_ints: ints = [2, 3, 4]>()\ny = Reshape(x, c)", 1),
    "a chain": ("a = Neg(k)\nb = Exp(a)\nc = Mul(a, b)\ny = Add(x, c)", 3),
    "the shape of a static tensor": ("s = Shape(x)\ny = Reshape(x, s)", 1),
    "part of the shape": ("s = Shape<start: int = -2, end: int = -1>(x)\nf = Cast<to: int = 1>(s)\ny = Add(x, f)", 2),
    "the shape of a tensor in between": ("r = Relu(x)\ns = Shape(r)\ny = Reshape(x, s)", 1),
    "shape arithmetic": (
        "s = Shape(x)\na = Gather<axis: int = 0>(s, zero)\nb = Unsqueeze(a, axis0)\nc = Concat<axis: int = 0>(b, rest)\n"
        "y = Reshape(x, c)",
        4,
    ),
    "an optional input left out": ("c = Clip(k, , one)\ny = Add(x, c)", 1),
    "Range": ("r = Range(zero, four, step)\nf = Cast<to: int = 1>(r)\ny = Add(x, f)", 2),
    "ConstantOfShape": ("c = ConstantOfShape<value: tensor = float[1] {2.0}>(rest4)\ny = Add(x, c)", 1),
    "Expand": ("c = Expand(k, rest4)\ny = Add(x, c)", 1),
    "no axes": ("m = ReduceMean<axes: ints = []>(k)\ny = Add(x, m)", 1),
}
WEIGHTS = (
    "float[4] k, float one = {1}, int64 zero = {0}, int64 four = {4}, int64 step = {1}, int64[1] axis0 = {0}, "
    "int64[2] rest = {3, 4}, int64[1] rest4 = {4}"
)


@pytest.mark.parametrize(("lines", "count"), FOLDED.values(), ids=FOLDED.keys())
def test_folds(lines: str, count: int) -> None:
    after = check_rewrite(graph(lines, weights=WEIGHTS), count, fold_constants, opset=17)
    assert len(after.graph.node) <= 2


KEPT = {
    "what depends on an input": ("a = Neg(x)\ny = Add(a, k)", OUT),
    "the shape of a dynamic tensor": ("shape = Shape(x)\ny = Reshape(x, shape)", OUT),
    "a constant that is an output": ("c = Neg(k)\ny = Add(x, c)", f"{OUT}, float[4] c"),
    "an operator of another domain": ("c = ops.Twice(k)\ny = Add(x, c)", OUT),
    "several outputs": ("c, d = Split<num_outputs: int = 2>(k)\ne = Concat<axis: int = 0>(d, c)\ny = Add(x, e)", OUT),
    "a quantised weight": ("c = DequantizeLinear(q, s)\ny = Add(x, c)", OUT),
}


MISSED_WEIGHTS = "float[4] k, float s = {0.5}, int8[4] q = {1, 2, 3, 4}"


@pytest.mark.parametrize(("lines", "out"), KEPT.values(), ids=KEPT.keys())
def test_leaves_alone(lines: str, out: str) -> None:
    check_rewrite(
        graph(lines, x="float[N, 3, 4] x" if "Shape" in lines else IN, out=out, weights=MISSED_WEIGHTS),
        0,
        fold_constants,
        opset=19,
        domains=', "ops" : 1',
        functions='<domain: "ops", opset_import: ["" : 19]> Twice (a) => (b) { b = Add(a, a) }',
    )


def test_random_constants_stay_random() -> None:
    lines = "a = RandomNormalLike(k)\nb = Dropout(k, ratio, on)\nc = Add(a, b)\ny = Add(x, c)"
    before = model_of(graph(lines, weights="float[4] k, float ratio = {0.5}, bool on = {1}"))
    assert apply_passes(before, fold_constants)[0] == 0


HUGE = 10**10
SIZED = {
    "ConstantOfShape": "c = ConstantOfShape(huge)",
    "Expand": "c = Expand(one, huge)",
    "Range": "c = Range(zero, limit, step)",
    "Range in small steps": "c = Range(zero, one, tiny)",
    "Tile": "c = Tile(line, huge)",
    "Pad": "c = Pad(line, pads)",
    "MaxPool": "c = MaxPool<kernel_shape: ints = [1000000], pads: ints = [999999, 999999]>(image)",
}


@pytest.mark.parametrize("lines", SIZED.values(), ids=SIZED.keys())
def test_sizes_are_bounded_before_anything_is_allocated(lines: str) -> None:
    weights = (
        f"float one = {{1}}, float[1] line = {{1}}, float zero = {{0}}, float limit = {{1e10}}, float step = {{1}}, "
        f"float tiny = {{1e-9}}, int64[1] huge = {{{HUGE}}}, int64[2] pads = {{0, {HUGE}}}, float[1, 1, 4] image"
    )
    before = model_of(graph(f"{lines}\nr = ReduceMax<keepdims: int = 0>(c)\ny = Add(x, r)", weights=weights))
    after = apply_passes(before, fold_constants)[1]
    assert len(after.graph.node) == 3


def test_results_over_the_limit_stay_computed() -> None:
    side = int(LARGEST_RESULT**0.5) + 1
    body = graph(
        "c = Mul(a, b)\nm = ReduceMax<keepdims: int = 0>(c)\ny = Add(x, m)", weights=f"float[{side}, 1] a, float[1, {side}] b"
    )
    check_rewrite(body, 0, fold_constants)


def test_large_constants_are_not_read() -> None:
    body = graph("c = Neg(a)\nm = ReduceMax<keepdims: int = 0>(c)\ny = Add(x, m)", weights="float[100, 100] a")
    check_rewrite(body, 0, fold_constants)


@pytest.mark.parametrize("dtype", ["float16", "float", "double", "int32", "int64", "uint8"])
def test_types_are_kept(dtype: str) -> None:
    body = graph("c = Add(k, k)\ny = Mul(x, c)", weights="float[4] k").replace("float[", f"{dtype}[")
    after = check_rewrite(body, 1, fold_constants, k=np.array([1, 2, 3, 4]))
    (folded,) = after.graph.initializer
    assert folded.data_type == after.graph.input[0].type.tensor_type.elem_type


def test_bfloat16_is_kept() -> None:
    lines = "c = Neg(k)\nd = Constant<value: tensor = bfloat16[4] {1, 2, 3, 4}>()\ne = Add(c, d)\ny = Mul(x, e)"
    before = model_of(graph(lines, weights="float[4] k").replace("float[", "bfloat16["))
    _, after = apply_passes(before, fold_constants)
    assert {tensor.data_type for tensor in after.graph.initializer} == {TensorProto.BFLOAT16}


def test_division_by_zero_neither_warns_nor_differs() -> None:
    check_rewrite(
        graph("c = Div(k, z)\nd = IsInf(c)\ny = Where(d, x, k)", weights="float[4] k, float z = {0}"), 2, fold_constants
    )


@pytest.mark.parametrize("opset", range(13, 21))
def test_every_opset(opset: int) -> None:
    lines, count = FOLDED["shape arithmetic"]
    assert op_types(check_rewrite(graph(lines, weights=WEIGHTS), count, fold_constants, opset=opset)) == ["Reshape"]


def test_sparse_constants_stay() -> None:
    before = model_of(graph("c = Constant<value_float: float = 1.0>()\ny = Add(x, x)\nz = Relu(c)", out=f"{OUT}, float z"))
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [3.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [2])
    sparse = helper.make_attribute("sparse_value", helper.make_sparse_tensor(values, indices, [4]))
    before.graph.node[0].attribute[0].CopyFrom(sparse)
    imported = import_graph(before)
    assert fold_constants(imported) == 0
    assert export_model(imported, before).graph.node[0].attribute[0] == sparse


# ---- what only looks constant


def test_a_default_that_a_caller_may_override_is_no_constant() -> None:
    before = model_of(graph("c = Neg(k)\ny = Add(x, c)", x=f"{IN}, float[4] k"))
    before.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "k"))
    count, after = apply_passes(before, fold_constants)
    assert count == 0
    assert [tensor.name for tensor in after.graph.initializer] == ["k"]
    assert_parity(before, after)
    assert_parity(before, after, k=np.arange(4))


def test_a_shape_that_a_caller_may_override_is_not_inferred_from() -> None:
    lines = "r = Reshape(x, k)\ns = Shape(r)\nf = Cast<to: int = 1>(s)\nm = ReduceMax<keepdims: int = 0>(f)\ny = Add(x, m)"
    before = model_of(graph(lines, x=f"{IN}, int64[2] k"))
    before.graph.initializer.append(numpy_helper.from_array(np.array([6, 4]), "k"))
    count, after = apply_passes(before, fold_constants)
    assert count == 0
    assert_parity(before, after)
    assert_parity(before, after, k=np.array([2, 12]))


def test_a_default_that_nothing_reads_stays_an_input() -> None:
    before = model_of(graph("y = Relu(x)", x=f"{IN}, float[4] k"))
    before.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "k"))
    _, after = apply_passes(before, fold_constants)
    assert_parity(before, after)


def test_constants_that_nested_graphs_read() -> None:
    lines = (
        "c = Constant<value: tensor = float[4] {1, 2, 3, 4}>()\nd = Neg(k)\n"
        "y = If (yes) <then_branch = t () => (float[2, 3, 4] p) { p = Add(x, c) }, "
        "else_branch = e () => (float[2, 3, 4] q) { n = Constant<value_float: float = 2.0>()\n o = Mul(d, n)\n q = Add(x, o) }>"
    )
    before = model_of(graph(lines, x=f"{IN}, bool yes", weights="float[4] k"))
    _, after = apply_passes(before, fold_constants)
    for yes in (True, False):
        assert_parity(before, after, yes=np.array(yes))
