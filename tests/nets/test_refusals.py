"""Files that PyTorch's safe reader refuses: what is in the way, and a line that helps and works."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from aff_deploy.nets.checkpoints import load_weights
from aff_deploy.nets.weight_files import read_checkpoint
from tests.nets.weights_files import Malicious, equal, network, refusal, weights


def advice(path: Path) -> str:
    """The line of Python in a refusal, which has none of PyTorch's own words."""
    message = refusal(path)
    for word in ("add_safe_globals", "Weights only", "miniz", "weights_only=True", "corrupted"):
        assert word not in message
    match = re.search(r"run (torch\.save\(.+\)) and give", message)
    assert match is not None, message
    return match[1]


def follow(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `line` in `folder` as a person would, and load what it wrote."""
    monkeypatch.chdir(folder)
    exec(line, {"torch": torch})
    net = network()
    load_weights(net, folder / "weights.pt")
    assert equal(net, weights())


def trained() -> nn.Module:
    net = network()
    net.load_state_dict(weights())
    return net


ARGUMENTS = argparse.Namespace(lr=0.1)
CASES: dict[str, tuple[Any, str]] = {
    "namespace": ({"epoch": 1, "args": ARGUMENTS, "model": weights()}, "argparse.Namespace"),
    "averaged": ({"args": ARGUMENTS, "ema": weights()}, "argparse.Namespace"),
    "flat": ({**weights(), "args": ARGUMENTS}, "argparse.Namespace"),
    "module": (trained(), "torch.nn.modules.container.Sequential"),
    "module under a key": ({"epoch": 1, "model": trained()}, "torch.nn.modules.container.Sequential"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_the_advice_names_what_is_in_the_way_and_works(
    case: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, needed = CASES[case]
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=zipped)
    line = advice(tmp_path / "old.pt")
    assert f"it needs {needed}, and nothing but tensors" in refusal(tmp_path / "old.pt")
    assert 'torch.load("old.pt"' in line
    follow(line, tmp_path, monkeypatch)


@pytest.mark.parametrize("content", ["tensors", "module"])
def test_a_newer_pickle_protocol(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(weights() if content == "tensors" else trained(), tmp_path / "old.pt", pickle_protocol=4)
    assert ("it has pickle protocol 4" if content == "tensors" else "Sequential") in refusal(tmp_path / "old.pt")
    follow(advice(tmp_path / "old.pt"), tmp_path, monkeypatch)


def test_a_program_gets_no_advice_to_run_it(tmp_path: Path) -> None:
    torch.save({"state_dict": weights(), "extra": Malicious(tmp_path / "victim")}, tmp_path / "w.pt")
    message = refusal(tmp_path / "w.pt")
    assert f"it calls {os.mkdir.__module__}.mkdir" in message
    assert "torch.load" not in message


def test_torchscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x)
            return out

    source, target = Net().eval(), Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        torch.jit.trace(source, torch.ones(1, 3)).save(tmp_path / "old.pt")
    assert "old.pt is TorchScript" in refusal(tmp_path / "old.pt")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(advice(tmp_path / "old.pt"), {"torch": torch})
    load_weights(target, tmp_path / "weights.pt")
    assert equal(target, source.state_dict())


def test_numpy_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "old.npz", **{name: value.numpy() for name, value in weights().items()})
    message = refusal(tmp_path / "old.npz")
    assert "is a NumPy .npz file" in message
    monkeypatch.chdir(tmp_path)
    import safetensors.numpy

    exec(message.split("make one of it: ")[1], {"safetensors": safetensors, "numpy": np})
    net = network()
    load_weights(net, tmp_path / "weights.safetensors")
    assert equal(net, weights())


def test_other_archives(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/readme.txt").write_text("hello")
    shutil.make_archive(str(tmp_path / "w"), "zip", tmp_path / "in")
    assert "without a PyTorch file in it" in refusal(tmp_path / "w.zip")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
def test_cut_short(part: float, zipped: bool, tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(content[: int(len(content) * part)])
    message = refusal(tmp_path / "w.pt")
    assert "is not a whole PyTorch weights file" in message
    assert "it may be truncated" in message
    for word in ("miniz", "()", "EOF", "Weights only", "torch.load"):
        assert word not in message


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.params"])
def test_empty_files(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert f"{name} is empty" in refusal(tmp_path / name)


@pytest.mark.parametrize("content", [b"\x80\x02(.", b"\x80\x02X\xff\xff\xff\x7f."])
def test_pickles_that_make_no_sense(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    assert "is not a whole PyTorch weights file" in refusal(tmp_path / "w.pt")


def test_a_key_that_no_script_has_is_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "weights": weights(), "optimizer": {"state": {}}}, tmp_path / "w.pt")
    message = refusal(tmp_path / "w.pt")
    assert "holds a dict under 'weights', not a tensor" in message
    assert "--key weights picks it" in message
    assert read_checkpoint(tmp_path / "w.pt", "weights").tensors.keys() == weights().keys()
    assert "leave --key out" in refusal(save(tmp_path), key="weights")


def save(folder: Path) -> Path:
    safetensors.torch.save_file(weights(), folder / "w.safetensors")
    return folder / "w.safetensors"


def test_an_archive_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "w.pt")
    assert read_checkpoint(tmp_path / "w.pt").tensors.keys() == weights().keys()
    with zipfile.ZipFile(tmp_path / "w.pt", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data/9", bytes(10**6))
    assert "claims to unpack to" in refusal(tmp_path / "w.pt")
