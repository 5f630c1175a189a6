"""Exactness after each pass: the pass that breaks it is named, and what sites are fed is what they are fed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aff_deploy.errors import CheckFailed
from aff_deploy.onnx_file import check_onnx
from aff_deploy.passes import optimize
from aff_deploy.runtimes.feeds import seeded_feeds
from aff_deploy.spec import TensorSpec
from aff_deploy.verify import PassVerifier, eps_of, largest_at_sites, observe_sites
from tests.passes.attention import AFF, MSCAM, iaff
from tests.passes.graphs import feeds_of, model_of, run_ort

FEEDS = feeds_of(AFF.build())


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def scaled(model: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    changed = copied(model)
    weight = next(tensor for tensor in changed.graph.initializer if tensor.name == name)
    weight.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(weight) * np.float32(factor)), name))
    return changed


def test_every_pass_of_ours_is_exact() -> None:
    model = AFF.build()
    verifier = PassVerifier(model)
    seen: list[str] = []

    def look(name: str, rewritten: onnx.ModelProto) -> None:
        verifier(name, rewritten)
        seen.append(name)

    optimize(model, convex=True, inline=True, after_pass=look)
    assert seen == ["fold_constants", "fuse_attention", "make_convex", "inline_calls"]
    assert verifier.weaker == ""


def test_the_pass_that_broke_it_is_named() -> None:
    """By an error that the tolerance of float32, 1e-4 of the scale, would let pass."""
    model = AFF.build()
    changed = scaled(model, "b2", 1 + 2e-5)
    feeds = feeds_of(model)
    (want,), (got,) = run_ort(model, feeds), run_ort(changed, feeds)
    assert 0 < np.abs(want - got).max() < 1e-4 * np.abs(want).max()
    with pytest.raises(CheckFailed, match=r"pass 'swap' changed what the model computes: output 'out' is .* from a float64"):
        PassVerifier(model)("swap", changed)


def test_it_is_asked_on_the_data_that_is_given() -> None:
    """A rewrite that is wrong beyond 100 alone, where seeded data never is."""
    model = model_of("g (float[N, 4] x) => (float[N, 4] y) { y = Identity(x) }")
    clipped = model_of("g (float[N, 4] x) => (float[N, 4] y) <float c = {100.0}> { y = Min(x, c) }")
    PassVerifier(model)("clip", clipped)
    data = [{"x": np.full((2, 4), 101.0, np.float32)}]
    with pytest.raises(CheckFailed, match="pass 'clip'"):
        PassVerifier(model, data)("clip", clipped)


def test_an_infinity_that_was_none_is_found() -> None:
    model = model_of("g (float[N, 4] x) => (float[N, 4] y) { y = Identity(x) }")
    doubled = model_of(
        "g (float[N, 4] x) => (float[N, 4] y) <float c = {1e38}> { t = Mul(x, c) u = Mul(t, c) v = Div(u, c) y = Div(v, c) }"
    )
    with pytest.raises(CheckFailed, match="is not finite"):
        PassVerifier(model)("double", doubled)


def test_what_has_no_float64_evaluation_is_held_to_the_tolerance_and_says_so() -> None:
    model = AFF.but(blend=AFF.blend.replace("out =", "o =") + "\nout = com.microsoft.FusedMatMul(o, k)").build()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.initializer.append(numpy_helper.from_array(np.eye(6, dtype=np.float32), "k"))
    verifier = PassVerifier(model)
    assert "FusedMatMul" in verifier.weaker
    optimize(model, after_pass=verifier)
    with pytest.raises(CheckFailed, match="pass 'swap'"):
        verifier("swap", scaled(model, "w1", 1.5))


def test_what_fails_only_when_it_runs_is_held_to_the_tolerance_too() -> None:
    body = (
        "g (float[1, 1, 4, 4] x) => (float[1, 1, 8, 8] y) <float[4] s = {1.0, 1.0, 2.0, 2.0}> {\n"
        't = Identity(x)\ny = Resize<mode = "cubic">(t, , s) }'
    )
    model = model_of(body)
    verifier = PassVerifier(model)
    assert optimize(model, after_pass=verifier).passes[0].rewrites == 1
    assert "Resize of mode cubic" in verifier.weaker


# ---- the epsilon of a model


def typed(kind: str, cast: int = 0) -> onnx.ModelProto:
    body = f"t = Cast<to = {cast}>(x) y = Cast<to = 1>(t)" if cast else "y = Add(x, k)"
    return model_of(f"g ({kind}[2] x) => ({kind}[2] y) <{kind}[2] k> {{ {body} }}")


@pytest.mark.parametrize(
    ("model", "eps"),
    [
        (typed("float"), np.finfo(np.float32).eps),
        (typed("float16"), np.finfo(np.float16).eps),
        (typed("bfloat16"), 2.0**-7),
        (typed("double"), np.finfo(np.float64).eps),
        (typed("float", TensorProto.FLOAT16), np.finfo(np.float16).eps),
        (typed("float", TensorProto.BFLOAT16), 2.0**-7),
        (typed("float", TensorProto.DOUBLE), np.finfo(np.float32).eps),
    ],
)
def test_the_narrowest_type_decides(model: onnx.ModelProto, eps: float) -> None:
    assert eps_of(model) == eps


# ---- what sites are fed


def test_a_site_is_seen_on_the_data() -> None:
    fused = optimize(AFF.build()).model
    x, y = 100 * FEEDS["x"], FEEDS["y"]
    (site,) = observe_sites(fused, [{"x": x / 2, "y": y}, {"x": x, "y": y}])
    (out,) = run_ort(fused, {"x": x, "y": y})
    (call,) = fused.graph.node
    assert site.name == call.name
    assert site.blended == site.read == np.abs(x).max()
    assert site.written == pytest.approx(np.abs(out).max(), rel=1e-5)
    assert largest_at_sites(fused, [FEEDS]) >= np.abs(FEEDS["x"]).max()


def test_a_scale_is_taken_off_and_the_context_is_read_but_not_blended() -> None:
    scale = "\nk = Constant<value_float: float = 0.5>()\nout = Mul(k, o)"
    fused = optimize(AFF.but(blend=AFF.blend.replace("out =", "o =") + scale, context="a = Mul(x, x)").build()).model
    (site,) = observe_sites(fused, [FEEDS])
    (out,) = run_ort(fused, FEEDS)
    assert site.written == pytest.approx(2 * np.abs(out).max(), rel=1e-5)
    assert site.read == pytest.approx((FEEDS["x"] ** 2).max(), rel=1e-5)
    assert site.blended == max(np.abs(FEEDS["x"]).max(), np.abs(FEEDS["y"]).max())


def test_each_call_of_an_iaff_is_a_site_and_a_gate_blends_nothing() -> None:
    assert len(observe_sites(optimize(iaff(share_global=False).build()).model, [FEEDS])) == 2
    (gate,) = observe_sites(optimize(MSCAM.build()).model, [{"x": FEEDS["x"]}])
    assert gate.blended == 0
    assert not gate.loses_x
    assert observe_sites(AFF.build(), [FEEDS]) == ()


def test_observing_leaves_the_model_as_it_is() -> None:
    fused = optimize(AFF.build()).model
    before = copied(fused)
    observe_sites(fused, seeded_feeds([TensorSpec(name, ("N", 8, 5, 6)) for name in "xy"]))
    assert fused == before
    check_onnx(fused)
