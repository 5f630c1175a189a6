"""The blend that does not lose x: exact without the second term of the definition, asked for or because data need it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from aff_deploy.onnx_file import check_onnx
from aff_deploy.passes import optimize
from aff_deploy.passes.functions import attach_functions, attributes
from tests.passes.attention import AFF, LERP_BLEND, MSCAM, SUM_BLEND, Attention, iaff
from tests.passes.graphs import Array, assert_exact, assert_parity, exactness

SATURATED = AFF.but(
    context="a = Mul(x, x)",
    logits="s = Constant<value_float: float = 90.0>()\nz_0 = Add(l, g)\nz = Add(z_0, s)",
)
"""Its gate looks at x alone and is 1, so that the result is x."""
SIZES = {"static": "2,16,6,6", "dynamic batch": "N,16,6,6", "dynamic size": "N,8,H,W"}


def built(attention: Attention, dims: str) -> onnx.ModelProto:
    return attention.but(dims=dims, channels=int(dims.split(",")[1])).build()


def feeds_for(model: onnx.ModelProto, y: float) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    sizes = [
        dim.dim_value or {"N": 2, "H": 6, "W": 6}[dim.dim_param] for dim in model.graph.input[0].type.tensor_type.shape.dim
    ]
    scale = {"x": 1.0, "y": y}
    return {name: (scale[name] * rng.normal(0, 1, sizes)).astype(np.float32) for name in "xy"}


def rounding_of_x_alone(before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, Array]) -> bool:
    """Whether the error is within what the result's own magnitude explains, whatever y is."""
    outputs = [output for found in exactness(before, after, feeds).values() for output in found]
    largest = float(np.abs(feeds["x"]).max())
    return all(output.error <= 8 * (output.original_error + output.eps * largest) for output in outputs)


@pytest.mark.parametrize("dims", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("y", [1e1, 1e4, 1e7])
def test_a_small_x_is_not_lost(dims: str, y: float) -> None:
    model = built(SATURATED, dims)
    feeds = feeds_for(model, y)
    plain, convex = optimize(model), optimize(model, convex=True)
    assert len(plain.fusions) == len(convex.fusions) == 1
    assert_exact(model, plain.model, feeds)
    assert_exact(model, convex.model, feeds)
    assert rounding_of_x_alone(model, convex.model, feeds)
    assert rounding_of_x_alone(model, plain.model, feeds) is (y < 1e4)
    assert (plain.convex, len(convex.convex)) == ((), 1)


@pytest.mark.parametrize("blend", [SUM_BLEND, LERP_BLEND])
def test_every_spelling_can_be_convex(blend: str) -> None:
    before = AFF.but(blend=blend).build()
    result = optimize(before, convex=True)
    (function,) = result.model.functions
    assert [node.op_type for node in function.node].count("Mul") == 2
    assert_parity(before, result.model)


def test_with_a_factor_of_two_and_twice_in_a_chain() -> None:
    twice = "two = Constant<value_float: float = 2.0>()\nout = Mul(o, two)"
    for attention in (AFF.but(blend=f"{SUM_BLEND.replace('out =', 'o =')}\n{twice}"), iaff(share_global=False)):
        before = attention.build()
        result = optimize(before, convex=True)
        assert len(result.convex) == len([node for node in result.model.graph.node if node.domain])
        assert_parity(before, result.model)


def test_what_blends_nothing_has_no_other_form() -> None:
    before = MSCAM.build()
    result = optimize(before, convex=True)
    assert result.convex == ()
    assert result.model == optimize(before).model


def test_it_stays_so_through_every_later_step() -> None:
    once = optimize(AFF.build(), convex=True)
    again = optimize(once.model)
    assert again.model == once.model
    assert again.convex == once.convex
    assert sum(done.rewrites for done in again.passes) == 0
    for target in ("gpu", "cpu"):
        attach_functions(again.model, target=target)  # type: ignore[arg-type]
        assert [node.op_type for node in again.model.functions[0].node].count("Mul") == 2
    check_onnx(again.model)


# ---- because the data need it


@pytest.mark.parametrize(("y", "loses"), [(1.0, False), (4.0, False), (20.0, True), (1e6, True)])
def test_data_that_would_lose_x_ask_for_it(y: float, loses: bool) -> None:
    model = built(SATURATED, "N,16,6,6")
    feeds = feeds_for(model, y)
    result = optimize(model, data=[feeds])
    assert bool(result.convex) is loses
    assert_exact(model, result.model, feeds)
    assert not loses or rounding_of_x_alone(model, result.model, feeds)


def test_a_large_y_alone_loses_nothing_where_the_gate_is_open() -> None:
    model = built(AFF.but(context="a = Mul(x, x)"), "N,16,6,6")
    assert optimize(model, data=[feeds_for(model, 1e6)]).convex == ()


def test_only_the_call_that_needs_it_asks_for_it() -> None:
    """Two sites: the first is fed y, the second what the first gave, twice."""
    second = SATURATED.but(context="a2 = Mul(o, x)")
    text = "\n".join((second.context, second.local, second.pool, second.branch, second.logits, second.gate, second.blend))
    for name in ("l_t", "l_h", "l", "p", "g_t", "g_h", "g", "z_0", "z", "s", "w", "one", "rest", "xw", "yw"):
        text = text.replace(f"{name} =", f"{name}_2 =").replace(f"({name},", f"({name}_2,").replace(f"({name})", f"({name}_2)")
        text = text.replace(f", {name})", f", {name}_2)")
    text = text.replace("(a,", "(a2,").replace("(a)", "(a2)").replace("Mul(y,", "Mul(o,")
    model = built(SATURATED.but(blend=f"{SUM_BLEND.replace('out =', 'o =')}\n{text}"), "N,16,6,6")
    result = optimize(model, data=[feeds_for(model, 1e5)])
    calls = [node for node in result.model.graph.node if node.domain]
    assert [attributes(node).get("blend") for node in calls] == ["convex", None]
    assert result.convex == (calls[0].name,)
