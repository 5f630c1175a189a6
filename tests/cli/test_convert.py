"""``aff-deploy convert-weights``: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aff_deploy.nets import iaff_resnet_digits, load_weights
from aff_deploy.nets.weight_files import read_checkpoint
from tests.cli.files import listing
from tests.cli.process import error_line, run_all
from tests.nets.foreign import AUTHORS, RECORDED, error_of
from tests.support import randomise_batchnorm

NETWORK = """
from aff_deploy.nets import blocks, cifar

def build(share_global=False, width=16):
    return cifar.preactivation_resnet(blocks.iaff(4, share_global), (1, 1, 1), 10, 1, width=width)
"""
SOURCE = "cifar_iaff_resnet_b1_c1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NETWORK, encoding="utf-8")
    (tmp_path / "in.params").write_bytes((AUTHORS / f"{SOURCE}.params").read_bytes())
    return tmp_path


def test_the_authors_file_becomes_ours(folder: Path) -> None:
    (ran,) = run_all(folder, [["convert-weights", "in.params", "new/out.safetensors", "--network", "net.py:build"]])
    assert ran.returncode == 0, ran.stderr
    assert "new/out.safetensors: build, sha256 " in ran.stdout
    assert "185 tensors from in.params (MXNet)" in ran.stdout
    assert "share_global=False in 3 iAFF modules: the weights are of the authors' MXNet code" in ran.stdout
    assert listing(folder) == ["in.params", "net.py", "new", "new/out.safetensors"]
    out = folder / "new/out.safetensors"
    if sys.platform != "win32":
        # That of any file that this process makes: the umask decides.
        assert out.stat().st_mode == (folder / "net.py").stat().st_mode
    build, recorded = RECORDED[SOURCE]
    network = build()
    assert load_weights(network, out).share_global is False
    assert error_of(network, recorded) <= 1e-5


def test_what_the_error_says_to_give_is_taken(folder: Path) -> None:
    line = ["convert-weights", "in.params", "out.safetensors", "--network", "aff_deploy.nets:iaff_resnet32"]
    sizes = ["--arguments", "layers=[1,1,1]", "--arguments", "num_classes=10", "--arguments", "width=16"]
    (ran,) = run_all(folder, [[*line, *sizes]])
    assert ran.returncode == 0, ran.stderr
    build, recorded = RECORDED[SOURCE]
    network = build()
    load_weights(network, folder / "out.safetensors")
    assert error_of(network, recorded) <= 1e-5


def test_bundled_networks_keys_and_arguments(tmp_path: Path) -> None:
    source = iaff_resnet_digits(num_classes=7, layers=(1, 1, 1))
    randomise_batchnorm(source, 0)
    other = {name: torch.zeros_like(value) for name, value in source.state_dict().items()}
    torch.save({"model": other, "model_ema": source.state_dict()}, tmp_path / "w.pth")
    line = ["convert-weights", "w.pth", "{}.safetensors", "--network", "iaff_resnet_digits"]
    line += ["--arguments", "num_classes=7", "--arguments", "layers=[1,1,1]"]
    cases = [[], ["--key", "model_ema"], ["--arguments", "share_global=true"]]
    lines = [[word.format(number) for word in line] + more for number, more in enumerate(cases)]
    lines.append(["convert-weights", "2.safetensors", "3.safetensors", *line[3:]])
    plain, averaged, shared, again = run_all(tmp_path, lines)
    assert [ran.returncode for ran in (plain, averaged, shared, again)] == [0, 0, 0, 0]
    assert "model was taken, model_ema was not" in plain.stdout
    assert "was not" not in averaged.stdout
    found = [read_checkpoint(tmp_path / f"{number}.safetensors") for number in range(4)]
    assert not any(value.any() for value in found[0].tensors.values())
    for name, value in source.state_dict().items():
        assert np.array_equal(found[1].tensors[name].numpy(), value.numpy())
    # A default is no statement about the weights; an argument is, and stays with them.
    assert [checkpoint.share_global for checkpoint in found] == [None, None, True, True]
    assert "share_global=True in 3 iAFF modules: the file records it; the network was built with False" in again.stdout


def test_what_goes_wrong(folder: Path) -> None:
    (folder / "short.params").write_bytes((folder / "in.params").read_bytes()[:5000])
    (folder / "file").write_text("x")
    (folder / "made.safetensors").mkdir()
    before = listing(folder)
    net = ["--network", "net.py:build"]
    cases: list[tuple[list[str], int, str]] = [
        (["in.params", "out.bin", *net], 2, "ends in .safetensors"),
        (["x.safetensors", "./x.safetensors", *net], 2, "is the input itself"),
        (["in.params", "out.safetensors"], 2, "--network"),
        (["in.params", "out.safetensors", *net, "--arguments", "width"], 2, "write KEY=VALUE"),
        (["in.params", "out.safetensors", *net, "--arguments", "width=1", "--arguments", "width=2"], 2, "each key once"),
        (["in.params", "out.safetensors", *net, "--arguments", "widht=16"], 3, "unexpected keyword argument 'widht'"),
        (["in.params", "out.safetensors", *net, "--arguments", "width=8"], 3, "has shape (16, 3, 3, 3)"),
        (["in.params", "out.safetensors", *net, "--key", "ema"], 3, "has no key 'ema'"),
        (
            ["in.params", "out.safetensors", "--network", "iaff_resnet_digits"],
            3,
            "build the network of the checkpoint, aff_deploy.nets:iaff_resnet32 with layers=[1,1,1], num_classes=10, width=16 "
            "(--arguments KEY=VALUE, once for each)",
        ),
        (["in.params", "out.safetensors", "--network", "iaff_resnet32"], 3, "give aff_deploy.nets:iaff_resnet32"),
        (["in.params", "out.safetensors", *net, "--arguments", "width=ten"], 3, "could not build its network with width='ten'"),
        (["in.params", "out.safetensors", "--network", "iaff_resnet_digit"], 3, "did you mean"),
        (["short.params", "out.safetensors", *net], 3, "not a whole .params file"),
        (["absent.params", "out.safetensors", *net], 3, "no such file"),
        (["in.params", "file/out.safetensors", *net], 3, "a part of the path is a file"),
        (["in.params", "made.safetensors", *net], 3, "it is a folder; give the name of a file"),
    ]
    ran = run_all(folder, [["convert-weights", *words] for words, _, _ in cases])
    for result, (words, code, expected) in zip(ran, cases, strict=True):
        assert expected in error_line(result, code), words
        assert " -o" not in result.stderr
    assert listing(folder) == before


def test_an_existing_file_survives_a_failure(folder: Path) -> None:
    (folder / "out.safetensors").write_text("mine")
    (ran,) = run_all(folder, [["convert-weights", "in.params", "out.safetensors", "--network", "iaff_resnet_digits"]])
    assert ran.returncode == 3
    assert (folder / "out.safetensors").read_text() == "mine"
