"""What cannot be exported: one line that names the cause, and a way out that leads out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aff_deploy.errors import NetworkError
from aff_deploy.export import EXPORTERS, export_onnx
from aff_deploy.nets.deployable import unwrap
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from aff_deploy.spec import TensorSpec
from tests.networks import Does

both = pytest.mark.parametrize("exporter", EXPORTERS)
ROWS = TensorSpec("x", ("n", 3))


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval()


def compiled(how: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted: nn.Module = torch.jit.script(linear())
        if how == "traced":
            made: nn.Module = torch.jit.trace(linear(), torch.zeros(1, 3))
            return made
        if how == "frozen":
            frozen: nn.Module = torch.jit.freeze(scripted)
            return frozen
        if how == "exported":
            program: nn.Module = torch.export.export(linear(), (torch.zeros(1, 3),)).module()
            return program
        if how == "quantised":
            quantised: nn.Module = torch.ao.quantization.quantize_dynamic(linear(), {nn.Linear}, dtype=torch.qint8)
            return quantised
        return nn.Sequential(scripted, nn.Linear(2, 2)) if how == "inside" else scripted


class Locked(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def train(self, mode: bool = True) -> Locked:
        super().train(mode)
        for part in self.parts:
            part.train()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.parts(x)
        return out


class Keyed(nn.Module):
    def forward(self, batch: Any) -> Any:
        return batch["image"] * 2


class Listed(nn.Module):
    def forward(self, batch: Any) -> Any:
        first, second = batch
        return first.view(-1, 3)[:, :1] * second


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: compiled("scripted"), "^the network is TorchScript.*; give the nn.Module that it was made of"),
        (lambda: compiled("traced"), "^the network is TorchScript"),
        (lambda: compiled("frozen"), "^the network is TorchScript"),
        (lambda: compiled("inside"), "^part '0' of the network is TorchScript"),
        (lambda: compiled("exported"), r"^the network was captured by torch\.export.*; give the nn.Module"),
        (lambda: compiled("quantised"), r"^part '0' of the network is quantised by PyTorch \(Linear\)"),
        (lambda: nn.Linear(3, 2, device="meta"), "^'weight' of the network is on the meta device"),
        (lambda: nn.LazyLinear(2), "^'weight' of the network has no shape yet"),
        (lambda: Locked(nn.BatchNorm1d(3)), r"^eval\(\) leaves parts\.0 \(BatchNorm1d\) in training mode"),
        (lambda: Locked(nn.Dropout(0.5), nn.BatchNorm1d(3)), r"^eval\(\) leaves parts\.0 \(Dropout\), parts\.1 \(BatchN"),
        (lambda: Keyed(), "^the network's forward takes a dict with the key 'image', and inputs are passed one by one"),
        (lambda: Does(lambda b: b["x"] * 2), "^the network's forward takes a dict of tensors"),
        (lambda: nn.Linear(3, 2).bfloat16(), r"; its weights are bfloat16: give its input as bfloat16 too, or .*float\(\)"),
        (lambda: nn.Linear(3, 2).double(), "; its weights are float64: give its input as float64 too"),
        (lambda: Does(torch.fft.fft), r"^output 0 of the network is complex; .*view_as_real"),
        (lambda: Does(lambda x: {"a": x.to_sparse()}), "^output 'a' of the network is sparse_coo; return it dense"),
        (lambda: Does(lambda x: torch.nested.nested_tensor([x[0], x[1, :2]])), "^output 0 of the network is nested; pad"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_exported_is_named_before_an_exporter_sees_it(make: Callable[[], nn.Module], message: str) -> None:
    for exporter in EXPORTERS:
        with pytest.raises(NetworkError, match=message) as caught:
            export_onnx(make(), [ROWS], exporter=exporter)
        assert "\n" not in str(caught.value)
        assert "other exporter" not in str(caught.value)


def test_a_list_of_inputs_is_named() -> None:
    with pytest.raises(NetworkError, match="takes one list of tensors"):
        export_onnx(Listed(), [ROWS, TensorSpec("y", ("n", 1))])


@both
def test_near_misses_are_exported(exporter: str) -> None:
    """Parts in training mode that do not depend on it, symbolic traces, hooks, scalars, and wrappers that come off."""
    traced = torch.fx.symbolic_trace(linear())
    hooked = nn.Linear(3, 2)
    hooked.register_forward_hook(lambda module, given, made: made * 2)
    free = Locked(nn.ReLU(), nn.Dropout(0.0), nn.InstanceNorm1d(3))
    nets = (traced, hooked, nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), torch.compile(linear(), backend="eager"))
    for net in (*nets, nn.DataParallel(linear())):
        export_onnx(net, [ROWS], exporter=exporter)  # type: ignore[arg-type]
    export_onnx(free, [TensorSpec("x", ("n", 3, 8))], exporter=exporter)
    model = export_onnx(Does(lambda x, k: x * k), [ROWS, TensorSpec("k", ())], exporter=exporter)
    with OnnxRuntimeRunner(model) as runner:
        got = runner.infer({"x": np.ones((3, 3), np.float32), "k": np.array(2, np.float32)})
    assert got["output"].tolist() == [[2.0] * 3] * 3


def test_wrappers_share_their_weights() -> None:
    net = linear()
    assert unwrap(nn.DataParallel(net)) is net
    assert unwrap(torch.compile(net, backend="eager")) is net  # type: ignore[arg-type]
    assert unwrap(net) is net


@pytest.mark.parametrize(
    ("net", "dtype", "message"),
    [
        (nn.Conv2d(3, 4, 3).bfloat16(), "bfloat16", r"computes in bfloat16, .*Conv.*; export net\.float\(\).*--bf16"),
        (nn.Conv2d(3, 4, 3).double(), "float64", r"computes in float64, .*Conv.*; export net\.float\(\)"),
    ],
)
def test_types_without_kernels_are_named(net: nn.Module, dtype: str, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        export_onnx(net, [TensorSpec("x", ("n", 3, 8, 8), dtype)])


def test_double_where_every_operator_has_it() -> None:
    model = export_onnx(nn.Linear(3, 2).double(), [TensorSpec("x", ("n", 3), "float64")])
    assert {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims)} == {11}


def antialiased(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.interpolate(x, size=(5, 5), mode="bilinear", antialias=True)


def test_an_exporter_that_fails_names_the_other_only_where_it_does(capfd: pytest.CaptureFixture[str]) -> None:
    picture = TensorSpec("x", (1, 3, 8, 8))
    with pytest.raises(NetworkError, match=r"_upsample_bilinear2d_aa.*; the dynamo exporter does: --exporter dynamo"):
        export_onnx(Does(antialiased), [picture], exporter="torchscript")
    assert capfd.readouterr() == ("", "")

    def ragged(x: torch.Tensor) -> torch.Tensor:
        return torch.nested.nested_tensor([x[0], x[1, :2]]).to_padded_tensor(0.0)

    for exporter, other in (EXPORTERS, EXPORTERS[::-1]):
        with pytest.raises(NetworkError, match=rf"; nor does the {other} exporter \("):
            export_onnx(Does(ragged), [TensorSpec("x", (2, 3))], exporter=exporter)


class Counts(nn.Module):
    """Its forward writes into a buffer, replaces one, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("last", torch.zeros(3))
        self.norm = nn.BatchNorm1d(3)
        self.calls = 0
        self.seen: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        self.last = self.last + 1
        self.calls += 1
        self.seen = x
        out: torch.Tensor = self.norm(x)
        return out


@both
def test_nothing_that_a_forward_writes_stays(exporter: str) -> None:
    net = Counts()
    steps, last = net.steps, net.last
    export_onnx(net, [ROWS], exporter=exporter)
    assert net.training
    assert net.norm.training
    assert net.steps is steps
    assert net.last is last
    assert (float(net.steps), net.last.tolist(), net.calls, net.seen) == (0.0, [0.0] * 3, 0, None)
    assert int(net.norm.num_batches_tracked) == 0
