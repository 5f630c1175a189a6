"""Both exporters: parity, shapes, names, errors, and that nothing of the caller's changes."""

from __future__ import annotations

import importlib
import io
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aff_deploy.errors import CheckFailed, MissingDependency, NetworkError, UsageError
from aff_deploy.export import EXPORTERS, export_onnx
from aff_deploy.export.lowering import lower_opset
from aff_deploy.export.tidy import write_external
from aff_deploy.nets import AFF
from aff_deploy.onnx_file import load_onnx, opset_of
from aff_deploy.runtimes.feeds import seeded_feeds
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from aff_deploy.runtimes.pytorch import PyTorchRunner
from aff_deploy.spec import TOLERANCES, Precision, TensorSpec
from aff_deploy.validate import compare_outputs, validate
from tests.networks import Does
from tests.support import randomise_batchnorm

both = pytest.mark.parametrize("exporter", EXPORTERS)
PICTURE = TensorSpec("x", ("batch", 3, "h", "w"), example=(1, 3, 8, 6))
ROWS = TensorSpec("x", ("batch", 3))


class Small(nn.Module):
    """Two inputs, a fusion with BatchNorm, a dict of outputs: one twice, one an input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.fuse = AFF(8, r=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        a = self.bn(self.conv(x))
        z = self.fuse(a, F.interpolate(y, size=a.shape[2:]))
        return {"logits": self.head(z.mean((2, 3))), "map": z, "again": z, "x": x}


SMALL_INPUTS = (PICTURE, TensorSpec("y", ("batch", 8, 2, 2)))


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@pytest.fixture(scope="module")
def small() -> Small:
    torch.manual_seed(0)
    net = Small()
    randomise_batchnorm(net, 0)
    return net.eval()


@pytest.fixture(scope="module", params=EXPORTERS)
def exported(request: pytest.FixtureRequest, small: Small) -> onnx.ModelProto:
    return export_onnx(small, SMALL_INPUTS, exporter=request.param)


def test_parity_on_sizes_that_were_not_traced(exported: onnx.ModelProto, small: Small) -> None:
    runner = OnnxRuntimeRunner(exported, threads=1)
    reference = PyTorchRunner(small, SMALL_INPUTS, runner.outputs)
    batches = [
        seeded_feeds(SMALL_INPUTS, sizes={"batch": n, "h": h, "w": w})[0] for n, h, w in ((1, 8, 6), (3, 11, 7), (5, 16, 21))
    ]
    report = validate(reference, runner, batches, TOLERANCES[Precision.FP32])
    assert report.passed, report.failures
    assert not any(check.skipped for check in report.checks)


def test_names_and_dimensions(exported: onnx.ModelProto) -> None:
    assert [value.name for value in exported.graph.input] == ["x", "y"]
    assert [value.name for value in exported.graph.output] == ["logits", "map", "again", "x_out"]
    assert [dims(value) for value in exported.graph.input] == [["batch", 3, "h", "w"], ["batch", 8, 2, 2]]
    outputs = {value.name: dims(value) for value in exported.graph.output}
    assert outputs["logits"] == ["batch", 5]
    assert outputs["x_out"] == ["batch", 3, "h", "w"]
    assert outputs["map"][0] == "batch"
    assert all(isinstance(dim, str) and dim not in ("batch", "h", "w") for dim in outputs["map"][2:])
    names = [t.name for t in exported.graph.initializer] + [node.name for node in exported.graph.node]
    assert not [name for name in names if name.startswith(("module.", "/module"))]
    assert "head.weight" in names


def test_the_file_is_valid_and_tells_nothing_of_this_machine(exported: onnx.ModelProto) -> None:
    onnx.checker.check_model(exported, full_check=True)
    assert exported.producer_name == "pytorch"
    assert opset_of(exported) == 18
    data = exported.SerializeToString()
    for trace in (str(Path(__file__).parent), "site-packages", "pkg.torch", "stack_trace"):
        assert trace.encode() not in data


@both
def test_static_and_unused_inputs_and_own_names(exporter: str) -> None:
    specs = [
        TensorSpec("a", (2, 3)),
        TensorSpec("unused", (4,)),
        TensorSpec("k", (2,), "int64"),
        TensorSpec("m", (2, 3), "bool"),
    ]
    net = Does(lambda a, unused, k, m: (a * m + k[:, None], k + 1))
    model = export_onnx(net, specs, exporter=exporter, output_names=["sum", "next"])
    assert [(v.name, dims(v)) for v in model.graph.input] == [("a", [2, 3]), ("unused", [4]), ("k", [2]), ("m", [2, 3])]
    assert [(v.name, dims(v)) for v in model.graph.output] == [("sum", [2, 3]), ("next", [2])]


@both
def test_a_spec_may_carry_the_name_of_another_parameter(exporter: str) -> None:
    class Swapped(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a - b

    specs = [TensorSpec("b", ("n", 2)), TensorSpec("a", ("n", 2))]
    with OnnxRuntimeRunner(export_onnx(Swapped(), specs, exporter=exporter)) as runner:
        got = runner.infer({"b": np.full((1, 2), 5, np.float32), "a": np.full((1, 2), 3, np.float32)})
    np.testing.assert_array_equal(got["output"], [[2, 2]])


@both
def test_half_precision(exporter: str, small: Small) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    randomise_batchnorm(net, 1)
    model = export_onnx(net.half(), [TensorSpec("x", ("batch", 3, 8, 8), "float16")], exporter=exporter)
    assert {t.data_type for t in model.graph.initializer if t.dims} == {onnx.TensorProto.FLOAT16}
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


@pytest.mark.parametrize(
    ("exporter", "opset"), [*(("torchscript", n) for n in (13, 14, 15, 16, 17, 19, 20)), ("dynamo", 13), ("dynamo", 20)]
)
def test_opsets(exporter: str, opset: int, small: Small) -> None:
    model = export_onnx(small, SMALL_INPUTS, exporter=exporter, opset=opset)
    assert opset_of(model) == opset
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("opset", [14, 15, 16, 17])
def test_a_lowered_model_computes_the_same(opset: int, small: Small, lowerable: bytes) -> None:
    model = onnx.load_model_from_string(lowerable)
    feeds = seeded_feeds(SMALL_INPUTS)[1]
    expected = OnnxRuntimeRunner(model).infer(feeds)
    lower_opset(model, opset)
    assert opset_of(model) == opset
    got = OnnxRuntimeRunner(model).infer(feeds)
    assert all(item.passed for item in compare_outputs(expected, got, TOLERANCES[Precision.FP32]))


@pytest.fixture(scope="module")
def lowerable(small: Small) -> bytes:
    data: bytes = export_onnx(small, SMALL_INPUTS, verify=False).SerializeToString()
    return data


def test_what_a_lower_opset_lacks_names_the_other_exporter() -> None:
    with pytest.raises(UsageError, match=r"from opset 18 to 17: there is no Mish in opset 17; use the torchscript exporter"):
        export_onnx(nn.Mish(), [ROWS], opset=17)
    assert opset_of(export_onnx(nn.Mish(), [ROWS], opset=17, exporter="torchscript")) == 17


def test_lowering_refuses_what_it_cannot_express() -> None:
    def lowered(text: str, opset: int) -> onnx.ModelProto:
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')
        lower_opset(model, opset)
        return model

    moved = lowered(
        "g (float[n, 3] x) => (float[n, 1] y) <int64[1] axes = {1}> { y = ReduceMax<noop_with_empty_axes=0>(x, axes) }", 13
    )
    assert list(moved.graph.node[0].input) == ["x"]
    assert not moved.graph.initializer
    with pytest.raises(UsageError, match="the axes of ReduceMax 'r' are computed"):
        lowered("g (float[n, 3] x, int64[1] axes) => (float[n, 1] y) { [r] y = ReduceMax(x, axes) }", 17)
    with pytest.raises(UsageError, match="Pad 'p' has more inputs or outputs than in opset 17"):
        lowered("g (float[n, 3] x, int64[2] p, float v, int64[1] a) => (float[n, m] y) { [p] y = Pad(x, p, v, a) }", 17)
    with pytest.raises(UsageError, match="Resize 'r' has the attribute antialias"):
        lowered(
            "g (float[1, 1, 4, 4] x, float[4] s) => (float[a, b, c, d] y) { [r] y = Resize<antialias=1>(x, , s) }",
            17,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 12}, "opset 12 is not supported; use 13 to 20"),
        ({"opset": 21}, "opset 21"),
        ({"exporter": "pickle"}, "unknown exporter 'pickle'; use dynamo or torchscript"),
        ({"output_names": ["x"]}, "'x' is used twice"),
        ({"output_names": ["a", "a"]}, "'a' is used twice"),
        ({"output_names": ["a", "b"]}, "2 output names are given, the network returns 1"),
        ({"inputs": ()}, "no inputs"),
        ({"inputs": (ROWS, ROWS)}, "'x' is used twice"),
    ],
)
def test_impossible_requests(options: dict[str, Any], message: str) -> None:
    arguments = {"inputs": (ROWS,), **options}
    with pytest.raises(UsageError, match=message):
        export_onnx(nn.ReLU(), **arguments)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: None, "the network returns a NoneType"),
        (lambda x: (x, "label"), "output 1 of the network is str, not a tensor"),
        (lambda x: {"a": x, "b": [x]}, "output 'b' of the network is a nested list"),
        (lambda x: x @ torch.ones(7, 2), r"forward failed on input x 2x3 float32: mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_networks_that_cannot_be_exported(function: Any, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        export_onnx(Does(function), [ROWS])


def test_the_forwards_own_error_is_the_cause() -> None:
    class OwnError(Exception):
        pass

    def fails(x: torch.Tensor) -> torch.Tensor:
        raise OwnError("the moon is wrong\nand so is the sun")

    with pytest.raises(NetworkError, match="OwnError: the moon is wrong and so is the sun") as caught:
        export_onnx(Does(fails), [ROWS])
    assert isinstance(caught.value.__cause__, OwnError)
    with pytest.raises(NetworkError, match=r"is not a torch\.nn\.Module"):
        export_onnx(fails, [ROWS])  # type: ignore[arg-type]
    with pytest.raises(NetworkError, match="forward failed on input x 2x3 float32, z 2 float32: TypeError"):
        export_onnx(nn.ReLU(), [ROWS, TensorSpec("z", (2,))])


@pytest.mark.parametrize(
    ("function", "specs", "message"),
    [
        (
            lambda x: x * int(x.shape[0]),
            [ROWS],
            r"dimension 'batch' \(axis 0 of input 'x'\) cannot be dynamic: the network fixes it at 2; make it static",
        ),
        (
            lambda x: x + x.transpose(2, 3),
            [TensorSpec("x", (1, 1, "h", "w"), example=(1, 1, 4, 4))],
            r"dimensions 'h' and 'w' \(of input 'x'\) are always equal in the network; give both the same name",
        ),
        (
            lambda x: x if x.shape[0] < 10 else -x,
            [ROWS],
            "dimension 'batch' cannot be dynamic: the network's code does something else above 9; make it static",
        ),
        (lambda x: x if x.sum() > 0 else -x, [ROWS], r"torch.export cannot capture the network: .*torch\.where"),
    ],
)
def test_dynamo_names_what_cannot_be_dynamic(function: Any, specs: list[TensorSpec], message: str) -> None:
    with pytest.raises(NetworkError, match=message) as caught:
        export_onnx(Does(function), specs)
    assert "\n" not in str(caught.value)


def test_dynamo_that_chose_a_branch_is_caught_just_below() -> None:
    spec = TensorSpec("x", (1, "h"), example=(1, 64))
    with pytest.raises(CheckFailed, match="does not compute what PyTorch does on x 1x39"):
        export_onnx(Does(lambda x: x * 2 if x.shape[1] >= 40 else x), [spec])


def test_torchscript_that_froze_a_size_is_caught() -> None:
    # len() of a traced tensor is a plain number: the trace keeps 2.
    with pytest.raises(CheckFailed, match=r"does not compute what PyTorch does on x 1x3: output 'output'"):
        export_onnx(Does(lambda x: x * len(x)), [ROWS], exporter="torchscript")
    assert export_onnx(Does(lambda x: x * len(x)), [ROWS], exporter="torchscript", verify=False).graph.node


def test_a_random_forward_is_named_as_such() -> None:
    with pytest.raises(NetworkError, match="different outputs for the same input, even in eval mode"):
        export_onnx(Does(lambda x: x + torch.rand_like(x)), [ROWS], exporter="torchscript")


@both
def test_sizes_of_one_are_not_taken_for_constants(exporter: str) -> None:
    spec = TensorSpec("x", ("n", 1, "h", "w"), example=(1, 1, 1, 1))
    model = export_onnx(Does(lambda x: x.flatten(1).sum(1)), [spec], exporter=exporter)
    got = OnnxRuntimeRunner(model).infer({"x": np.ones((4, 1, 5, 7), np.float32)})
    np.testing.assert_array_equal(got["output"], [35] * 4)


def test_a_first_axis_that_is_no_batch() -> None:
    spec = TensorSpec("x", ("frames", 3), example=(50, 3))

    class Speech(nn.Conv1d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.t()[None])

    model = export_onnx(Speech(3, 2, 9), [spec], exporter="torchscript")
    assert dims(model.graph.input[0]) == ["frames", 3]


@both
def test_outputs_of_different_sizes_have_different_dimensions(exporter: str) -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, stride=2)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            large = self.conv(x)
            return [large, self.conv(large)]

    torch.manual_seed(0)
    model = export_onnx(Pyramid(), [TensorSpec("x", (1, 3, "h", "w"), example=(1, 3, 16, 24))], exporter=exporter)
    large, little = (dims(value) for value in model.graph.output)
    assert large[:2] == little[:2] == [1, 3]
    assert not set(large[2:]) & set(little[2:])


def noisy(x: torch.Tensor) -> torch.Tensor:
    print("printed")
    warnings.warn("warned", UserWarning, stacklevel=1)
    logging.getLogger("torch.onnx").warning("logged")
    torch.rand(1)
    return torch.relu(x)


@both
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_callers_changes(
    exporter: str, fails: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    importlib.import_module("sympy")  # adds a warning filter of its own when torch first imports it

    def body(x: torch.Tensor) -> Any:
        return (noisy(x), 3) if fails else noisy(x)

    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), Does(body))
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    disabled, filters = logging.root.manager.disable, list(warnings.filters)
    if fails:
        with pytest.raises(NetworkError, match="output 1 of the network is int"):
            export_onnx(net, [ROWS], exporter=exporter)
    else:
        export_onnx(net, [ROWS], exporter=exporter)
    assert capfd.readouterr() == ("", "")
    assert [part.training for part in net.modules()] == [True, True, False, True]
    assert [parameter.requires_grad for parameter in net.parameters()] == [False, True]
    assert torch.equal(torch.get_rng_state(), state)
    assert list(tmp_path.glob("aff-deploy-*")) == []
    assert logging.root.manager.disable == disabled
    assert list(warnings.filters) == filters
    assert torch.is_grad_enabled()


@both
def test_autocast_around_the_export_leaves_no_casts(exporter: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        model = export_onnx(nn.Linear(3, 2), [ROWS], exporter=exporter)
    assert "Cast" not in {node.op_type for node in model.graph.node}


def test_weights_beside_the_file_leave_the_model_as_it_was(tmp_path: Path) -> None:
    model = export_onnx(nn.Linear(64, 33), [TensorSpec("x", ("n", 64))], exporter="torchscript")
    before = model.SerializeToString()
    write_external(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").stat().st_size == 64 * 33 * 4
    assert model.SerializeToString() == before
    x = np.random.default_rng(0).random((2, 64), np.float32)
    expected = OnnxRuntimeRunner(model).infer({"x": x})["output"]
    np.testing.assert_array_equal(OnnxRuntimeRunner(tmp_path / "m.onnx").infer({"x": x})["output"], expected)
    assert load_onnx(tmp_path / "m.onnx").graph.initializer


def test_absent_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingDependency, match=r"onnxscript is not installed; pip install 'aff-deploy\[cpu\]'"):
        export_onnx(nn.ReLU(), [ROWS])


class Huge(nn.Module):
    """A little over 2 GB in two tables."""

    def __init__(self) -> None:
        super().__init__()
        size = (135_000, 2048)
        self.tables = nn.ModuleList(nn.Embedding(*size, _weight=torch.full(size, float(i))) for i in range(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        first, second = self.tables
        return torch.mean(first(ids) + 2 * second(ids), 1)


@pytest.mark.slow
@both
def test_models_over_two_gigabytes(exporter: str) -> None:
    model = export_onnx(Huge(), [TensorSpec("ids", ("batch", 5), "int64")], exporter=exporter)
    assert sum(len(tensor.raw_data) for tensor in model.graph.initializer) > 2**31
    with pytest.raises(Exception, match=r".*"):
        model.SerializeToString()


def test_exporting_to_a_buffer_does_not_depend_on_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert export_onnx(nn.ReLU(), [ROWS], exporter="torchscript").graph.node[0].op_type == "Relu"
