"""Both runners: names, feeds, errors, and that nothing of the caller's changes."""

from __future__ import annotations

import sys
import tempfile
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper, parser
from torch import nn

from aff_deploy.errors import DataError, MissingDependency, ModelError, NetworkError, OutputError
from aff_deploy.runtimes import Runner, check_feeds, memory
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from aff_deploy.runtimes.pytorch import PyTorchRunner
from aff_deploy.spec import TensorSpec

X = np.arange(6, dtype=np.float32).reshape(2, 3)
SPEC = TensorSpec("x", ("n", 3))


class Returns(nn.Module):
    """Returns whatever the function makes of its inputs."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


def model(text: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')


def linear() -> onnx.ModelProto:
    return model("g (float[n, 3] x) => (float[n, 3] y, float[n, 3] z) { y = Relu(x) z = Neg(x) }")


def test_onnxruntime_runs_by_name() -> None:
    runner: Runner
    with OnnxRuntimeRunner(linear(), threads=1) as runner:
        assert runner.inputs == (SPEC,)
        assert runner.outputs == ("y", "z")
        got = runner.infer({"x": -X})
    assert list(got) == ["y", "z"]
    np.testing.assert_array_equal(got["y"], np.maximum(-X, 0))
    np.testing.assert_array_equal(got["z"], X)


def test_onnxruntime_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(linear(), path)
    with OnnxRuntimeRunner(path) as runner:
        np.testing.assert_array_equal(runner.infer({"x": X})["z"], -X)


def test_unnamed_dimensions_get_names_of_their_own() -> None:
    with OnnxRuntimeRunner(model("g (float[?, ?] a, float[?, 3] b) => (float y) { y = MatMul(a, b) }")) as runner:
        assert [spec.shape for spec in runner.inputs] == [("a_dim0", "a_dim1"), ("b_dim0", 3)]
        assert runner.infer({"a": X[:, :2], "b": X})["y"].shape == (2, 3)


def test_bfloat16_travels_as_float32() -> None:
    values = np.array([[1.0, 1.00390625, -3.1415927], [np.inf, 1e-40, 65504.0]], np.float32)
    with OnnxRuntimeRunner(model("g (bfloat16[n, 3] x) => (bfloat16[n, 3] y) { y = Identity(x) }")) as runner:
        got = runner.infer({"x": values})["y"]
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)


def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"garbage" * 9)
    with pytest.raises(ModelError, match=r"m\.onnx") as caught:
        OnnxRuntimeRunner(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="Frobnicate") as caught:
        OnnxRuntimeRunner(model("g (float[n, 3] x) => (float[n, 3] y) { y = Frobnicate(x) }"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="no such file"):
        OnnxRuntimeRunner(tmp_path / "absent.onnx")


def test_a_failure_while_running_is_quiet_and_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        OnnxRuntimeRunner(model("g (float[n, 3] x) => (float y) { y = MatMul(x, x) }")) as runner,
        pytest.raises(ModelError, match=r"x 2x3.*MatMul") as caught,
    ):
        runner.infer({"x": X})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_absent_onnxruntime_and_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingDependency, match=r"NoSuchProvider.*aff-deploy\[gpu\]"):
        OnnxRuntimeRunner(linear(), providers=("NoSuchProvider",))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"onnxruntime is not installed; pip install 'aff-deploy\[cpu\]'"):
        OnnxRuntimeRunner(linear())


@pytest.mark.parametrize("kind", ["seq(tensor(float))", "string"])
def test_inputs_that_are_no_number_tensors_are_refused(kind: str) -> None:
    text = {
        "seq(tensor(float))": "g (seq(float[n]) x) => (int64 y) { y = SequenceLength(x) }",
        "string": "g (string[n] x) => (string[n] y) { y = Identity(x) }",
    }[kind]
    with pytest.raises(ModelError, match="input 'x' is a"):
        OnnxRuntimeRunner(model(text))


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "no data for input 'x'.*the inputs are x, k"),
        ({"x": X, "k": X[:, :1], "extra": X}, "data for 'extra'"),
        ({"x": X[0], "k": X}, "'x' got shape 3 of rank 1; expected nx3 of rank 2"),
        ({"x": X[:, :2], "k": X}, "'x' got shape 2x2, 2 on axis 1; expected nx3"),
        ({"x": X, "k": X[:1]}, "'k' got shape 1x3, 1 on axis 0; dimension 'n' is 2 in input 'x'"),
        ({"x": X[:0], "k": X[:0]}, "empty"),
        ({"x": X.astype(np.float64), "k": X}, "'x' got dtype float64; expected float32"),
    ],
)
def test_wrong_feeds_name_both_sides(feeds: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_feeds((SPEC, TensorSpec("k", ("n", "m"))), feeds)


def test_pytorch_restores_every_training_flag_and_runs_in_eval_mode() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.9)).train()
    net[1].eval()
    runner = PyTorchRunner(net, [SPEC])
    first, second = runner.infer({"x": X})["output"], runner.infer({"x": X})["output"]
    np.testing.assert_array_equal(first, second)
    assert [part.training for part in net.modules()] == [True, True, False, True]
    assert isinstance(net[1], nn.BatchNorm1d)
    assert net[1].num_batches_tracked is not None
    assert int(net[1].num_batches_tracked) == 0


def test_pytorch_restores_flags_after_a_failure_and_names_the_input() -> None:
    net = nn.Sequential(nn.Linear(4, 2)).train()
    with pytest.raises(NetworkError, match=r"forward failed on input x 2x3 float32: mat1 and mat2") as caught:
        PyTorchRunner(net, [SPEC]).infer({"x": X})
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert net.training


def test_pytorch_leaves_the_feeds_alone() -> None:
    feed = X.copy()
    feed.flags.writeable = False
    PyTorchRunner(Returns(lambda x: x.mul_(2)), [SPEC]).infer({"x": feed})
    np.testing.assert_array_equal(feed, X)


Pair = namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: x, ("output",)),
        (lambda x: (x, x + 1), ("output_0", "output_1")),
        (lambda x: [x], ("output",)),
        (lambda x: {"b": x, "a": x + 1}, ("b", "a")),
        (lambda x: OrderedDict(x=x), ("x_out",)),
        (lambda x: Pair(x, x + 1), ("first", "second")),
    ],
)
def test_pytorch_outputs_are_flattened_and_named(function: Any, names: tuple[str, ...]) -> None:
    runner = PyTorchRunner(Returns(function), [SPEC])
    assert runner.outputs == names
    got = runner.infer({"x": X})
    assert tuple(got) == names
    np.testing.assert_array_equal(got[names[0]], X)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: None, "returns a NoneType"),
        (lambda x: (), "returns nothing"),
        (lambda x: (x, None), "output 1 of the network is NoneType"),
        (lambda x: {"a": x, "b": 3}, "output 'b' of the network is int"),
        (lambda x: {1: x}, "key 1"),
        (lambda x: (x, (x, x)), "output 1 of the network is a nested tuple"),
    ],
)
def test_pytorch_refuses_what_is_not_tensors(function: Any, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        PyTorchRunner(Returns(function), [SPEC]).infer({"x": X})


def test_pytorch_refuses_a_wrong_number_of_names() -> None:
    with pytest.raises(NetworkError, match="returns 1 outputs where 2 are named"):
        PyTorchRunner(Returns(lambda x: x), [SPEC], ["a", "b"]).infer({"x": X})


def test_pytorch_bfloat16_and_autocast() -> None:
    got = PyTorchRunner(nn.Linear(3, 2).bfloat16(), [TensorSpec("x", ("n", 3), "bfloat16")]).infer({"x": X})["output"]
    assert got.dtype == np.float32
    runner = PyTorchRunner(nn.Linear(3, 2), [SPEC])
    expected = runner.infer({"x": X})["output"]
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(runner.infer({"x": X})["output"], expected)


def test_large_weights_of_a_model_in_memory_go_through_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(3, 40_000)).astype(np.float32) for name in ("v", "w")}
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    x = rng.normal(size=(2, 3)).astype(np.float32)
    source = model("g (float[n, 3] x) => (float[n, m] y) { a = MatMul(x, v)\nb = MatMul(x, w)\ny = Add(a, b) }")
    source.graph.initializer.append(tensors[0])
    before = source.SerializeToString()
    for frugal in (False, True):
        with OnnxRuntimeRunner(source, weights=tensors[1:], frugal=frugal) as runner:
            np.testing.assert_allclose(runner.infer({"x": x})["y"], x @ weights["v"] + x @ weights["w"], rtol=1e-5, atol=1e-5)
    assert source.SerializeToString() == before
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(memory, "open", full, raising=False)
    with pytest.raises(OutputError, match="No space left on device; give a folder with room for them in TMPDIR"):
        OnnxRuntimeRunner(linear())


def test_a_resting_runner_loads_its_file_again(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save_model(linear(), path)
    x = np.ones((2, 3), np.float32)
    for runner in (OnnxRuntimeRunner(path), OnnxRuntimeRunner(linear())):
        with runner:
            expected = runner.infer({"x": x})
            runner.rest()
            runner.rest()
            for name, array in runner.infer({"x": x}).items():
                np.testing.assert_array_equal(array, expected[name])
            runner.rest()
        runner.rest()
        with pytest.raises(RuntimeError, match="closed"):
            runner.infer({"x": x})
