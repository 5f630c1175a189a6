"""ONNX files: what is sound goes in and out unchanged, what is not is refused in one line."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from aff_deploy.errors import ModelError
from aff_deploy.onnx_file import check_onnx, infer_types, load_onnx, overridable, skeleton, static_shape
from aff_deploy.passes import optimize
from tests.onnx_files import edited, nested_model, refusal, small_model, write
from tests.passes.graphs import assert_same, feeds_of, model_of, run_ort


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


# ---- files that are no models


def test_missing_file(path: Path) -> None:
    assert "no such file" in refusal(path)


def test_folder(tmp_path: Path) -> None:
    assert "it is a folder" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["a" * 5000, "nul\0name"], ids=["too long", "with a zero byte"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    refusal(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"hello, I am not a model\n" * 10, b"PK\x03\x04" + bytes(60), bytes(range(256)), b"\x08\x08", b"{}"],
    ids=["empty", "zeros", "text", "zip", "all bytes", "only a version", "json"],
)
@pytest.mark.parametrize("suffix", [".onnx", ".json", ".textproto", ".onnxtxt", ".pb", ""])
def test_files_that_are_no_model(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    refusal(path)


def test_an_onnx_file_may_have_any_extension(tmp_path: Path) -> None:
    for name in ("model.json", "model.pb", "model"):
        assert load_onnx(write(small_model(), tmp_path / name)).graph.node


def test_random_bytes(path: Path) -> None:
    generator = np.random.default_rng(0)
    for size in (1, 10, 100, 1000, 10000):
        path.write_bytes(generator.bytes(size))
        refusal(path)


def test_truncated_at_every_offset(path: Path) -> None:
    whole = small_model().SerializeToString()
    for offset in range(0, len(whole), 7):
        path.write_bytes(whole[:offset])
        refusal(path)


def test_unreadable_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(small_model(), path)

    def denied(*_: object, **__: object) -> ModelProto:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert "permission denied" in refusal(path)


def mutated(whole: bytes, generator: random.Random) -> bytes:
    mutant = bytearray(whole)
    for _ in range(generator.choice((1, 1, 1, 2, 8))):
        place = generator.randrange(len(mutant))
        action = generator.randrange(4)
        if action == 0:
            mutant[place] = generator.randrange(256)
        elif action == 1:
            mutant[place] ^= 1 << generator.randrange(8)
        elif action == 2:
            del mutant[place : place + generator.randrange(1, 9)]
        else:
            mutant[place:place] = generator.randbytes(generator.randrange(1, 9))
    return bytes(mutant)


def test_mutated_bytes_never_escape_as_another_error(path: Path) -> None:
    models = [small_model().SerializeToString(), nested_model().SerializeToString()]
    generator = random.Random(0)
    refusals = []
    for i in range(400):
        path.write_bytes(mutated(models[i % 2], generator))
        try:
            optimize(load_onnx(path))
        except ModelError as error:
            refusals.append(str(error))
    assert 40 < len(refusals) < 360
    assert not [message for message in refusals if "\n" in message]


# ---- graphs that are no graphs


def test_unsorted_nodes_are_accepted(path: Path) -> None:
    model = small_model()
    backwards = list(model.graph.node)[::-1]
    mixed = ModelProto()
    mixed.CopyFrom(model)
    del mixed.graph.node[:]
    mixed.graph.node.extend(backwards)
    loaded = load_onnx(write(mixed, path))
    feeds = feeds_of(model)
    assert_same(run_ort(model, feeds), run_ort(optimize(loaded).model, feeds))


def test_cycle(path: Path) -> None:
    def tie(model: ModelProto) -> None:
        model.graph.node[1].name = "the_conv"
        model.graph.node[1].input[0] = "r"

    assert "cycle" in (message := refusal(write(edited(tie), path)))
    assert "the_conv" in message


def test_a_node_that_reads_itself(path: Path) -> None:
    def tie(model: ModelProto) -> None:
        model.graph.node[2].input[0] = "r"

    assert "cycle" in refusal(write(edited(tie), path))


def test_cycle_through_a_nested_graph(path: Path) -> None:
    model = model_of(
        "g (float[2] x, bool c) => (float[2] y) { r = Relu(x)\n"
        "i = If (c) <then_branch = t () => (float[2] p) { p = Neg(r) }, else_branch = e () => (float[2] q) { q = Abs(r) }>\n"
        "y = Neg(i) }"
    )
    model.graph.node[0].input[0] = "y"
    assert "cycle" in refusal(write(model, path))


def test_missing_initializer(path: Path) -> None:
    message = refusal(write(edited(lambda m: m.graph.initializer.pop(0)), path))
    assert "'k'" in message
    assert "lost initializer" in message


def test_missing_initializer_of_a_nested_graph(path: Path) -> None:
    model = model_of(
        "g (float[2] x, bool c) => (float[2] y) <float[2] k> {"
        "y = If (c) <then_branch = t () => (float[2] p) { p = Add(x, k) }, "
        "else_branch = e () => (float[2] q) { q = Abs(x) }> }"
    )
    del model.graph.initializer[:]
    assert "'k'" in refusal(write(model, path))


def test_output_that_nothing_makes(path: Path) -> None:
    def rename(model: ModelProto) -> None:
        model.graph.output[0].name = "elsewhere"

    assert "'elsewhere'" in refusal(write(edited(rename), path))


def test_two_producers(path: Path) -> None:
    def again(model: ModelProto) -> None:
        model.graph.node.append(helper.make_node("Neg", ["x"], ["r"]))

    assert "'r' is produced twice" in refusal(write(edited(again), path))


def test_an_input_that_a_node_produces(path: Path) -> None:
    def again(model: ModelProto) -> None:
        model.graph.node.append(helper.make_node("Neg", ["r"], ["x"]))

    assert "'x' is produced twice" in refusal(write(edited(again), path))


def test_an_initializer_that_a_node_produces(path: Path) -> None:
    def again(model: ModelProto) -> None:
        model.graph.node.append(helper.make_node("Neg", ["r"], ["b"]))

    refusal(write(edited(again), path))


def test_two_initializers_of_one_name(path: Path) -> None:
    refusal(write(edited(lambda m: m.graph.initializer.append(m.graph.initializer[0])), path))


REFUSED: dict[str, Callable[[ModelProto], object]] = {
    "no nodes": lambda m: m.graph.ClearField("node"),
    "no opset": lambda m: m.ClearField("opset_import"),
    "no graph": lambda m: m.ClearField("graph"),
    "no version": lambda m: m.ClearField("ir_version"),
    "a version of the future": lambda m: setattr(m, "ir_version", 10_000),
    "an unknown operator": lambda m: setattr(m.graph.node[1], "op_type", "NoSuchOperator"),
    "an unknown domain": lambda m: setattr(m.graph.node[1], "domain", "nowhere"),
    "too few inputs": lambda m: m.graph.node[1].ClearField("input"),
    "an unknown attribute": lambda m: m.graph.node[1].attribute.append(helper.make_attribute("colour", 3)),
    "an attribute of the wrong type": lambda m: m.graph.node[1].attribute.append(helper.make_attribute("group", "one")),
    "a type of no kind": lambda m: setattr(m.graph.initializer[0], "data_type", 99),
}


@pytest.mark.parametrize("edit", REFUSED.values(), ids=REFUSED.keys())
def test_invalid_models(path: Path, edit: Callable[[ModelProto], object]) -> None:
    refusal(write(edited(edit), path))


def test_full_check_finds_shapes_that_contradict() -> None:
    model = edited(lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 7))
    check_onnx(model, full=False)
    with pytest.raises(ModelError, match="shape inference fails") as caught:
        check_onnx(model)
    assert "\n" not in str(caught.value)


# ---- what is known without running


def test_skeleton_holds_no_large_weights() -> None:
    model = model_of(
        "g (float[N, 64] x) => (float[N, 64] y) <float[64, 64] k, float[64] b> { c = MatMul(x, k)\ny = Add(c, b) }"
    )
    light = skeleton(model)
    assert [tensor.name for tensor in light.graph.initializer] == ["b"]
    assert [value.name for value in light.graph.input] == ["x", "k"]
    onnx.checker.check_model(light, full_check=True)
    assert len(light.SerializeToString()) < 1000


@pytest.mark.parametrize(("ir", "names"), [(3, set()), (4, {"k"}), (8, {"k"})])
def test_overridable(ir: int, names: set[str]) -> None:
    model = small_model()
    model.ir_version = ir
    model.graph.input.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, [8, 4, 1, 1]))
    assert overridable(model) == names


def test_infer_types_of_nodes_out_of_order() -> None:
    model = small_model()
    backwards = list(model.graph.node)[::-1]
    mixed = ModelProto()
    mixed.CopyFrom(model)
    del mixed.graph.node[:]
    mixed.graph.node.extend(backwards)
    types = infer_types(mixed)
    assert static_shape(types["r"]) == ("N", 8, 5, 5)
    assert static_shape(types["k"]) == (8, 4, 1, 1)
    assert static_shape(None) is None
