"""ONNX made elsewhere: old opsets, files that ONNX Runtime has optimised, local functions, nested graphs, other domains."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper, parser

from aff_deploy.onnx_file import check_onnx
from aff_deploy.passes import optimize
from tests.passes.attention import AFF, Attention, C
from tests.passes.family import ALL_MEMBERS, inputs_of
from tests.passes.graphs import assert_exact, feeds_of, model_of, op_types
from tests.support import randomise_batchnorm

KINDS = ("plain", "linear, view", "token linear", "iaff, shared global", "ms-cam", "eres2net")


def torchscript(name: str, opset: int = 17) -> onnx.ModelProto:
    """What PyTorch's own exporter writes, not tidied by ours."""
    torch.manual_seed(0)
    network = ALL_MEMBERS[name][0]().eval()
    randomise_batchnorm(network, 1)
    inputs = tuple(torch.zeros(spec.concrete()) for spec in inputs_of(name))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = {given: {0: "batch"} for given in ("p", "q")}
        torch.onnx.export(
            network, inputs, buffer, opset_version=opset, input_names=["p", "q"], dynamic_axes=dynamic, dynamo=False
        )
    return onnx.load_from_string(buffer.getvalue())


def assert_unchanged(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    check_onnx(after)
    assert_exact(before, after, feeds_of(before))


@pytest.mark.parametrize("opset", range(11, 18))
@pytest.mark.parametrize("name", KINDS)
def test_every_opset_that_torchscript_writes(name: str, opset: int) -> None:
    before = torchscript(name, opset)
    result = optimize(before)
    assert [fusion.kind for fusion in result.fusions] == [ALL_MEMBERS[name][1]], result.rejected
    assert_unchanged(before, result.model)


# ---- already optimised


@pytest.mark.parametrize("level", ["ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("name", ["plain", "times two", "SiLU", "ms-cam", "eres2net"])
def test_what_onnx_runtime_has_optimised_is_left_alone(name: str, level: str, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    source = torchscript(name)
    onnxruntime.InferenceSession(source.SerializeToString(), options, providers=["CPUExecutionProvider"])
    before = onnx.load(tmp_path / "optimised.onnx")
    assert any(node.domain.startswith("com.microsoft") for node in before.graph.node)
    result = optimize(before)
    assert result.fusions == ()
    assert len(result.rejected) == 1
    assert "optimise the original instead" in result.rejected[0].reason
    assert_exact(before, result.model, feeds_of(before), truth=source)


def test_what_onnx_runtime_has_only_tidied_still_fuses(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(torchscript("plain").SerializeToString(), options, providers=["CPUExecutionProvider"])
    before = onnx.load(tmp_path / "optimised.onnx")
    result = optimize(before)
    assert [fusion.kind for fusion in result.fusions] == ["aff"]
    assert_unchanged(before, result.model)


def test_squeeze_and_excitation_in_an_optimised_file_is_not_called_attention(tmp_path: Path) -> None:
    body = (
        f"g (float[N, {C}, 4, 4] x) => (float[N, {C}, 4, 4] out) <float[3, {C}, 1, 1] v1, float[{C}, 3, 1, 1] v2> {{\n"
        "p = GlobalAveragePool(x)\nt = Conv(p, v1)\nh = Relu(t)\nz = Conv(h, v2)\nw = Sigmoid(z)\nout = Mul(x, w) }"
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(model_of(body).SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert optimize(onnx.load(tmp_path / "optimised.onnx")).rejected == ()


# ---- functions, nested graphs, domains


def with_function(attention: Attention, function: str) -> onnx.ModelProto:
    model = attention.build()
    model.opset_import.append(helper.make_opsetid("theirs", 1))
    model.functions.append(parser.parse_function(f'<domain: "theirs", opset_import: ["" : {attention.opset}]>\n{function}'))
    return model


def test_a_function_of_their_own_beside_the_fusion() -> None:
    before = with_function(
        AFF.but(context="a = Add(x, y)\nr = theirs.twice(x)", outputs=("out", "r")), "twice (t) => (u) { u = Add(t, t) }"
    )
    result = optimize(before)
    assert len(result.fusions) == 1
    assert {function.domain for function in result.model.functions} == {"theirs", "aff_deploy"}
    assert_unchanged(before, result.model)


def test_a_function_that_makes_the_input() -> None:
    """Its output has a shape that only its body tells."""
    before = with_function(
        AFF.but(context="x2 = theirs.twice(x)\na = Add(x2, y)", blend=AFF.blend.replace("Mul(x,", "Mul(x2,")),
        "twice (t) => (u) { u = Add(t, t) }",
    )
    result = optimize(before)
    assert len(result.fusions) == 1, result.rejected
    assert_unchanged(before, result.model)


def test_a_function_inside_the_attention_is_not_looked_into() -> None:
    before = with_function(AFF.but(gate="w = theirs.gate(z)"), "gate (t) => (u) { u = Sigmoid(t) }")
    result = optimize(before)
    assert result.fusions == ()
    assert_unchanged(before, result.model)


IF = (
    "c = ReduceMax<keepdims: int = 0>(x)\nzero = Constant<value_float: float = 0.0>()\nyes = Greater(c, zero)\n"
    "b = If (yes) <then_branch = t () => (float[N, 8, 5, 6] p_1) { p_1 = Relu(out) },"
    " else_branch = e () => (float[N, 8, 5, 6] q_1) { q_1 = Neg(out) }>"
)
LOOP = (
    "trips = Constant<value_int: int = 3>()\nyes = Constant<value: tensor = bool {1}>()\n"
    "b = Loop (trips, yes, out) <body = body (int64 i, bool go, float[N, 8, 5, 6] state)"
    " => (bool on, float[N, 8, 5, 6] next) { on = Identity(go)\nnext = Add(state, x) }>"
)


@pytest.mark.parametrize("nested", [IF, LOOP], ids=["If", "Loop"])
def test_nested_graphs_stay_as_they_are(nested: str) -> None:
    before = AFF.but(blend=f"{AFF.blend}\n{nested}", outputs=("b",)).build()
    result = optimize(before)
    assert len(result.fusions) == 1, result.rejected
    graphs = [[a.g for n in model.graph.node for a in n.attribute if a.HasField("g")] for model in (before, result.model)]
    assert graphs[0] == graphs[1]
    assert_unchanged(before, result.model)


def test_an_inner_tensor_that_a_nested_graph_reads() -> None:
    before = AFF.but(blend=f"{AFF.blend}\n{IF.replace('Neg(out)', 'Neg(w)')}", outputs=("b",)).build()
    result = optimize(before)
    assert result.fusions == ()
    assert "'w'" in result.rejected[0].reason
    assert_unchanged(before, result.model)


def test_several_domains() -> None:
    before = AFF.but(
        blend=AFF.blend.replace("out =", "o =") + "\nout = com.microsoft.FusedMatMul(o, k)", outputs=("out",)
    ).build()
    before.opset_import.extend([helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("ai.onnx.ml", 3)])
    before.graph.initializer.append(numpy_helper.from_array(np.eye(6, dtype=np.float32) * 2, "k"))
    result = optimize(before)
    assert len(result.fusions) == 1
    assert [entry.domain for entry in result.model.opset_import] == ["", "com.microsoft", "ai.onnx.ml", "aff_deploy"]
    standard = onnx.ModelProto()
    standard.CopyFrom(before)
    standard.graph.node[-1].op_type, standard.graph.node[-1].domain = "MatMul", ""
    assert_exact(before, result.model, feeds_of(before), truth=standard)


def test_a_shape_of_unknown_rank_is_no_number() -> None:
    """A Reshape to the shape of what nobody knows the rank of."""
    before = model_of(
        "g (float[2, 3, 4] x, float[N, 6] y) => (float[N, 6] out) {\n"
        "s = theirs.f(y)\nshape = Shape(s)\nout = Reshape(x, shape) }",
        domains=', "theirs" : 1',
    )
    result = optimize(before)
    assert op_types(result.model) == ["f", "Shape", "Reshape"]
