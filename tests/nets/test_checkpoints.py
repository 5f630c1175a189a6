"""Weights files: what is read, and what every kind of bad file gets to hear."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from aff_deploy.errors import WeightsError
from aff_deploy.nets.checkpoints import load_weights
from tests.nets.weights_files import Malicious, equal, network, refusal, weights


def test_safetensors(tmp_path: Path) -> None:
    safetensors.torch.save_file(weights(), tmp_path / "w.safetensors")
    net = network()
    load_weights(net, tmp_path / "w.safetensors")
    assert equal(net, weights())


def test_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    safetensors.torch.save_file(weights(), tmp_path / "w.bin")
    net = network()
    load_weights(net, tmp_path / "w.bin")
    assert equal(net, weights())


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module.", "ordered"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files(tmp_path: Path, wrap: str, zipped: bool) -> None:
    content: Any = weights()
    if wrap in ("state_dict", "model"):
        content = {wrap: content, "epoch": 3}
    elif wrap == "module.":
        content = {"state_dict": {f"module.{name}": value for name, value in content.items()}}
    elif wrap == "ordered":
        content = OrderedDict(content)
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    net = network()
    load_weights(net, tmp_path / "w.pth")
    assert equal(net, weights())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights().items()}
    safetensors.torch.save_file(stored, tmp_path / "w.safetensors")
    net = network()
    load_weights(net, tmp_path / "w.safetensors")
    assert equal(net, {name: value.float() if value.is_floating_point() else value for name, value in stored.items()})
    assert {value.dtype for value in net.parameters()} == {torch.float32}


def test_num_batches_tracked_may_be_absent(tmp_path: Path) -> None:
    stored = {name: value for name, value in weights().items() if not name.endswith("num_batches_tracked")}
    safetensors.torch.save_file(stored, tmp_path / "w.safetensors")
    net = network()
    load_weights(net, tmp_path / "w.safetensors")
    assert equal(net, stored)


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(weights(), path)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    load_weights(network(), path, sha256=right.upper())
    wrong = "0" * 64
    message = refusal(path, sha256=wrong)
    assert right in message
    assert wrong in message


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.safetensors")
    assert "it is a folder" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello, world, this is text", np.zeros(9).tobytes()])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_not_a_weights_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert name in refusal(tmp_path / name)


@pytest.mark.parametrize("part", [0.01, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_truncated(tmp_path: Path, kind: str, part: float) -> None:
    path = tmp_path / "whole"
    if kind == "safetensors":
        safetensors.torch.save_file(weights(), path)
    else:
        torch.save(weights(), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    short = tmp_path / "short"
    short.write_bytes(content[: int(len(content) * part)])
    assert "short" in refusal(short)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "w.pth", tmp_path / "victim"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Malicious(target)))
    else:
        torch.save({"state_dict": weights(), "extra": Malicious(target)}, path)
    assert "not a plain weights file" in refusal(path)
    assert not target.exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "w.pth")
    assert "it needs torch.nn.modules.container.Sequential" in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"epoch": 3}, {"a": torch.ones(1), "b": [1]}, torch.ones(3), {1: torch.ones(1)}]
)
def test_not_a_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert "state_dict()" in refusal(tmp_path / "w.pth")


def test_missing_and_unexpected_names(tmp_path: Path) -> None:
    stored = weights()
    renamed = {name.replace("1.", "norm."): value for name, value in stored.items() if name != "2.bias"}
    safetensors.torch.save_file(renamed, tmp_path / "w.safetensors")
    message = refusal(tmp_path / "w.safetensors")
    assert "5 missing (1.weight, 1.bias, 1.running_mean, 1.running_var, ...)" in message
    assert "5 unexpected (norm." in message


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    stored = weights() | {"2.weight": torch.ones(3, 5)}
    safetensors.torch.save_file(stored, tmp_path / "w.safetensors")
    message = refusal(tmp_path / "w.safetensors")
    assert "2.weight has shape (3, 5), the network's has (2, 5)" in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_dtypes_that_do_not_fit(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = weights()
    stored["2.weight"] = stored["2.weight"].to(dtype)
    torch.save(stored, tmp_path / "w.pth")
    assert "2.weight is strided" in refusal(tmp_path / "w.pth")


def flipped(path: Path, record: str) -> Path:
    """`path` with one bit of the named record of its archive changed."""
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(record))
        start = info.header_offset + 30 + len(info.filename)
    data = bytearray(path.read_bytes())
    extra = int.from_bytes(data[info.header_offset + 28 : info.header_offset + 30], "little")
    data[start + extra + info.file_size // 2] ^= 1
    damaged = path.with_name(f"damaged_{path.name}")
    damaged.write_bytes(data)
    return damaged


@pytest.mark.parametrize("record", ["data/0", "data/1", "byteorder"])
def test_a_flipped_bit_is_found_by_its_checksum(tmp_path: Path, record: str) -> None:
    torch.manual_seed(0)
    torch.save(nn.Linear(30, 20).state_dict(), tmp_path / "w.pt")
    load_weights(nn.Linear(30, 20), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=rf"is damaged: its record '.*{record}' does not have its checksum; it may be"):
        load_weights(nn.Linear(30, 20), flipped(tmp_path / "w.pt", record))


def test_a_file_without_checksums_is_loaded(tmp_path: Path) -> None:
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(computed)
    load_weights(nn.Linear(3, 2), tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("1.running_var", float("inf"), "infinite or NaN"),
        ("1.running_mean", float("nan"), "infinite or NaN"),
        ("1.running_var", -1e-3, "negative"),
    ],
)
def test_statistics_that_no_training_makes_are_refused(tmp_path: Path, name: str, value: float, what: str) -> None:
    state = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).state_dict()
    state[name][1] = value
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(WeightsError, match=rf"{name} of a BatchNorm2d has {what} values; give weights of a training"):
        load_weights(net, tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_parameters_that_are_not_finite_are_told(tmp_path: Path) -> None:
    """Told and not refused: they may lie in a part that is not used; and a mask of -inf is a buffer."""

    class Masked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.register_buffer("mask", torch.full((2,), float("-inf")))

    net = Masked()
    torch.save(net.state_dict(), tmp_path / "w.pt")
    assert load_weights(net, tmp_path / "w.pt").notes == ()
    state = net.state_dict()
    state["weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "w.pt")
    assert load_weights(Masked(), tmp_path / "w.pt").notes == ("infinite or NaN values in 1 tensors (weight)",)
