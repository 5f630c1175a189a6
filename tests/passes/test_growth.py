"""The work that optimising takes grows with the graph, and no faster."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import pytest
from onnx import ModelProto, TensorProto, helper, parser

from aff_deploy.passes import optimize
from tests.passes.attention import AFF
from tests.passes.graphs import assert_settled


def work(model: ModelProto) -> int:
    """Calls of Python functions while a model is optimised: the same on every machine."""
    calls = 0

    def count(_: FrameType, event: str, __: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        optimize(model)
    finally:
        sys.setprofile(before)
    return calls


def model_of(lines: list[str], outputs: list[str]) -> ModelProto:
    ends = ", ".join(f"float[N, 8, 5, 5] {name}" for name in outputs)
    body = "\n".join(lines)
    model: ModelProto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]>\ng (float[N, 8, 5, 5] x) => ({ends}) {{\n{body}\n}}'
    )
    return model


def movers(count: int) -> ModelProto:
    """Branches that can be read from each of many tensors, the second linear map four times over."""
    turn = "{1} = Transpose<perm: ints = [0, 1, 3, 2]>({0})"
    turns = [turn.format(f"a{i}", f"a{i + 1}") for i in range(2 * count)]
    logits = "k = Conv(l_h, u2, d2)\nm = Conv(l_h, t2, e2)\nz_0 = Sub(l, k)\nz_1 = Sub(z_0, m)\nz = Add(z_1, g)"
    context = "\n".join(["a0 = Add(x, y)", *turns, f"a = Identity(a{2 * count})"])
    return AFF.but(context=context, logits=logits, dims="N,8,5,5").build()


def outputs(count: int) -> ModelProto:
    """Outputs that are made by Identity, all of one tensor."""
    lines = [f"v{i} = Add(x, x)\nw{i} = Pow(v{i}, x)\no{i} = Identity(w{i})" for i in range(count)]
    return model_of(lines, [f"o{i}" for i in range(count)])


def repeated(count: int) -> ModelProto:
    """Two chains that are the same, and a tensor that all of them read."""
    lines = ["a0 = Neg(x)", "b0 = Neg(x)"]
    lines += [f"{c}{i + 1} = Mul({c}{i}, x)\n{c}n{i} = Identity({c}{i + 1})" for i in range(count) for c in "ab"]
    return model_of([*lines, f"o = Sub(a{count}, b{count})"], ["o"])


def names(count: int) -> ModelProto:
    """New constants that would all like one name."""
    model = model_of(["o = Relu(x)"], ["o"])
    for i in range(count):
        shape, half = f"s{i}", f"h{i}"
        model.graph.node.append(helper.make_node("Shape", ["x"], [shape]))
        model.graph.node.append(helper.make_node("Reshape", ["x", shape], [half]))
        model.graph.output.append(helper.make_tensor_value_info(half, TensorProto.FLOAT, ["N", 8, 5, 5]))
    return model


def views(count: int) -> ModelProto:
    """Reshapes, each to a shape that is computed from what the last one made."""
    lines = ["i0 = Constant<value_int: int = 0>()", "all = Constant<value_ints: ints = [-1]>()"]
    lines += ["rest = Constant<value_ints: ints = [8, 5, 5]>()", "x0 = Neg(x)"]
    for i in range(count):
        lines += [f"s{i} = Shape(x{i})", f"n{i} = Gather(s{i}, i0)", f"r{i} = Reshape(n{i}, all)"]
        lines += [f"t{i} = Concat<axis: int = 0>(r{i}, rest)", f"y{i} = Relu(x{i})", f"x{i + 1} = Reshape(y{i}, t{i})"]
    return model_of([*lines, f"o = Neg(x{count})"], ["o"])


@pytest.mark.parametrize(("build", "count"), [(movers, 30), (outputs, 200), (repeated, 200), (names, 200), (views, 20)])
def test_work_is_linear(build: Callable[[int], ModelProto], count: int) -> None:
    optimize(build(1))  # what is done once alone
    once, twice, four = (work(build(n * count)) for n in (1, 2, 4))
    # Of the last doubling at most a little more than the double.
    assert four - twice <= 2.4 * (twice - once), (once, twice, four)


def test_shapes_that_depend_on_each_other_settle() -> None:
    result = optimize(views(20))
    assert sum(node.op_type == "Reshape" for node in result.model.graph.node) == 20
    assert len(result.model.graph.node) == 42
    assert_settled(result.model)
