"""Small ONNX files that would fill memory or never end, and odd ones that are sound all the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import FunctionProto, ModelProto, TensorProto, helper

from aff_deploy.errors import DataError, ModelError
from aff_deploy.onnx_data import MAX_DEPTH
from aff_deploy.onnx_file import check_onnx, load_onnx
from aff_deploy.ops import is_fusion
from aff_deploy.passes import inspect_model, optimize
from aff_deploy.runtimes import onnxruntime
from aff_deploy.runtimes.feeds import seeded_feeds
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from aff_deploy.spec import MAX_ELEMENTS, TensorSpec
from tests.onnx_files import refusal, small_model, write
from tests.passes.attention import AFF

IMPORTS = [helper.make_opsetid("", 18), helper.make_opsetid("d", 1)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def function(name: str, *calls: tuple[str, str, str]) -> FunctionProto:
    """``name(a) -> b`` that calls others of the domain d, or Relu."""
    nodes = [helper.make_node(op, [x], [y], domain="" if op == "Relu" else "d") for op, x, y in calls]
    return helper.make_function("d", name, ["a"], ["b"], nodes, IMPORTS)


def calling(names: list[str], functions: list[FunctionProto]) -> ModelProto:
    """A model that calls functions one after the other."""
    tensors = ["x", *(f"t{i}" for i in range(len(names) - 1)), "y"]
    nodes = [helper.make_node(name, [tensors[i]], [tensors[i + 1]], domain="d") for i, name in enumerate(names)]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [4])] for name in "xy"]
    return helper.make_model(helper.make_graph(nodes, "g", *ends), opset_imports=IMPORTS, functions=functions, ir_version=9)


def doubling(depth: int) -> ModelProto:
    pairs = [function(f"F{i}", (f"F{i - 1}", "a", "t"), (f"F{i - 1}", "t", "b")) for i in range(1, depth)]
    return calling([f"F{depth - 1}"], [function("F0", ("Relu", "a", "b")), *pairs])


def chained(depth: int) -> list[FunctionProto]:
    return [function("F0", ("Relu", "a", "b")), *(function(f"F{i}", (f"F{i - 1}", "a", "b")) for i in range(1, depth))]


def test_functions_that_double_are_counted_before_they_are_expanded(path: Path) -> None:
    assert "become more than 100000 nodes" in refusal(write(doubling(40), path))
    assert "become more than 100000 nodes" in refusal(write(calling(["F12"] * 300, list(doubling(13).functions)), path))
    assert len(load_onnx(write(doubling(8), path)).functions) == 8


def test_functions_deep_in_each_other_whichever_is_called_first(path: Path) -> None:
    for names in (["F999"], [f"F{i}" for i in range(1000)]):
        assert f"over {MAX_DEPTH} deep" in refusal(write(calling(names, chained(1000)), path))
    assert load_onnx(write(calling(["F20"], chained(21)), path))


@pytest.mark.parametrize("others", [["F0"], ["F1", "F0"]])
def test_functions_that_call_themselves(path: Path, others: list[str]) -> None:
    functions = [function(f"F{i}", (called, "a", "b")) for i, called in enumerate(others)]
    assert "calls itself" in refusal(write(calling(["F0"], functions), path))


def test_tensors_that_share_a_small_file_too_often(path: Path) -> None:
    (path.parent / "w.bin").write_bytes(bytes(4096))

    def sharing(count: int) -> ModelProto:
        model = small_model()
        for i in range(count):
            tensor = model.graph.initializer.add(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[1024])
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="w.bin")
        return model

    assert "of smaller data files" in refusal(write(sharing(5), path))
    assert load_onnx(write(sharing(2), path))


def test_a_file_larger_than_protobuf_is_not_read(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(20 * 2**30)
    assert "more than the" in refusal(path)


def test_external_data_that_is_no_file(path: Path) -> None:
    os.mkfifo(path.parent / "pipe")
    model = small_model()
    tensor = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="pipe")
    assert "'pipe' is missing" in refusal(write(model, path))


def looping(*, trips: int | None, condition: bool) -> ModelProto:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["more"]), helper.make_node("Add", ["v", "v"], ["next"])],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("v", TensorProto.FLOAT, [2])],
        [value("more", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, [2])],
    )
    constants = [helper.make_tensor("true", TensorProto.BOOL, [], [True])]
    constants += [helper.make_tensor("trips", TensorProto.INT64, [], [trips])] if trips is not None else []
    inputs = ["trips" if trips is not None else "", "true" if condition else "", "x"]
    ends = [[value(name, TensorProto.FLOAT, [2])] for name in "xy"]
    graph = helper.make_graph([helper.make_node("Loop", inputs, ["y"], body=body)], "g", *ends, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("trips", [2**60, None])
def test_a_loop_without_an_end_ends(path: Path, trips: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "MAX_LOOP_SECONDS", 0.2)
    model = looping(trips=trips, condition=trips is None)
    optimize(model)
    for source in (model, write(model, path)):
        with OnnxRuntimeRunner(source) as runner, pytest.raises(ModelError, match=r"still loops after 0\.2 s"):
            runner.infer({"x": np.ones(2, np.float32)})


def test_a_loop_with_an_end_runs_and_its_faults_are_told() -> None:
    with OnnxRuntimeRunner(looping(trips=3, condition=False)) as runner:
        assert runner.infer({"x": np.ones(2, np.float32)})["y"].tolist() == [8.0, 8.0]


def shapeless(*names: str) -> ModelProto:
    def value(name: str) -> object:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None if name in names else ["n", 3])

    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value("x")], [value("y")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_an_output_without_a_shape_is_sound(path: Path) -> None:
    model = load_onnx(write(shapeless("y"), path))
    assert [value["shape"] for value in inspect_model(model)["outputs"]] == [None]
    feeds = {"x": np.asarray([[-1, 0, 2]], np.float32)}
    with OnnxRuntimeRunner(optimize(model).model) as runner:
        assert runner.infer(feeds)["y"].tolist() == [[0, 0, 2]]


def test_an_output_whose_shape_is_wrong_is_not(path: Path) -> None:
    model = shapeless()
    del model.graph.output[0].type.tensor_type.shape.dim[0]
    with pytest.raises(ModelError, match="shape inference fails"):
        check_onnx(model)


def optional(model: ModelProto) -> None:
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.Clear()
        value.type.optional_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT


def sequence(model: ModelProto) -> None:
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.Clear()
        value.type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT


@pytest.mark.parametrize(("change", "kind"), [(optional, "optional"), (sequence, "sequence")])
def test_inputs_that_are_no_tensors_are_told_and_not_run(path: Path, change: Callable[[ModelProto], None], kind: str) -> None:
    model = shapeless()
    model.graph.node[0].op_type = "Identity"
    change(model)
    described = inspect_model(load_onnx(write(model, path)))
    assert (described["inputs"][0]["dtype"], described["inputs"][0]["shape"]) == (kind, None)
    with pytest.raises(ModelError, match="supported are"):
        OnnxRuntimeRunner(path)


@pytest.mark.parametrize("end", ["input", "output"])
def test_element_types_that_onnx_does_not_have(path: Path, end: str) -> None:
    model = shapeless()
    getattr(model.graph, end)[0].type.tensor_type.elem_type = 999
    assert "unknown element type 999" in refusal(write(model, path))


def test_inputs_of_absurd_sizes_are_not_drawn(path: Path) -> None:
    with pytest.raises(DataError, match=r"'x' would be drawn as 1x1073741824, .*at most"):
        seeded_feeds([TensorSpec("x", (1, 4 * MAX_ELEMENTS))])
    with pytest.raises(DataError, match="in 32 dimensions"):
        seeded_feeds([TensorSpec("x", (1,) * 33)])
    (feed,) = seeded_feeds([TensorSpec("x", (1,) * 32)], samples=1)
    assert feed["x"].shape == (1,) * 32
    model = shapeless()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim.extend([value.type.tensor_type.shape.dim[1]] * 98)
    with pytest.raises(ModelError, match="has 100 dimensions"):
        OnnxRuntimeRunner(model)


def test_a_vector_that_doubles_is_not_written_out(path: Path) -> None:
    """Onnx's data propagation would: 2^40 elements, each a message."""
    nodes = [helper.make_node("Concat", [f"d{i}"] * 2, [f"d{i + 1}"], axis=0) for i in range(40)]
    nodes.append(helper.make_node("Add", ["x", "d40"], ["y"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", [1]), ("y", None))]
    start = helper.make_tensor("d0", TensorProto.FLOAT, [1], [1.0])
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [start])
    write(helper.make_model(graph, opset_imports=IMPORTS[:1], ir_version=8), path)
    assert optimize(load_onnx(path)).model.graph.node[-1].op_type == "Add"


def test_a_fused_call_without_its_inputs_is_told() -> None:
    model = optimize(AFF.build()).model
    (call,) = (node for node in model.graph.node if is_fusion(node.domain, node.op_type))
    del call.input[2:]
    with pytest.raises(ModelError, match="has 2 inputs, and takes 10"):
        inspect_model(model)
