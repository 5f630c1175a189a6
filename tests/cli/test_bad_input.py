"""The list of things that go wrong: one line, the right exit code, nothing written."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.cli.files import listing, save_model
from tests.cli.process import Run, error_line, run_all
from tests.networks import RECIPE, write_network


def test_onnx_files(run: Run, tmp_path: Path) -> None:
    whole = save_model(tmp_path / "whole.onnx").SerializeToString()
    (tmp_path / "short.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.onnx").write_text("not a model\n" * 50)
    (tmp_path / "empty.onnx").touch()
    save_model(tmp_path / "missing.onnx", weight="nowhere")
    cyclic = save_model(tmp_path / "cyclic.onnx")
    cyclic.graph.node[0].input[1] = "z"
    onnx.save(cyclic, tmp_path / "cyclic.onnx")
    outside = save_model(tmp_path / "outside.onnx")
    tensor = outside.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    (tmp_path / "outside.onnx").write_bytes(outside.SerializeToString())
    before = listing(tmp_path)
    cases = {
        "absent.onnx": "no such file",
        "short.onnx": "short.onnx",
        "text.onnx": "not an ONNX model",
        "empty.onnx": "empty.onnx",
        "missing.onnx": "'nowhere'",
        "cyclic.onnx": "cycle",
        "outside.onnx": "outside the model's folder",
    }
    lines = [["optimize", name, "-o", "new/out.onnx"] for name in cases] + [["inspect", name, "--json"] for name in cases]
    for ran, expected in zip(run_all(tmp_path, lines), [*cases.values()] * 2, strict=True):
        assert expected in error_line(ran, 3)
    assert "cycle" in error_line(run("validate", "cyclic.onnx", "--against", "whole.onnx"), 3)
    assert listing(tmp_path) == before


def test_outputs(run: Run, tmp_path: Path) -> None:
    save_model(tmp_path / "model.onnx")
    write_network(tmp_path / "net")
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/mine.txt").write_text("x")
    before = listing(tmp_path)
    assert "a part of the path is a file" in error_line(run("optimize", "model.onnx", "-o", "file/out.onnx"), 3)
    assert "it is a folder" in error_line(run("optimize", "model.onnx", "-o", "folder"), 3)
    assert "it is a folder" in error_line(run("export", "net/net.py:build", "-o", "folder"), 3)
    assert "was not made by aff-deploy" in error_line(run("deploy", "net", "-o", "folder"), 2)
    assert "it is a file" in error_line(run("deploy", "net", "-o", "file"), 3)
    assert listing(tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's file size")
def test_a_full_disk(tmp_path: Path) -> None:
    save_model(tmp_path / "model.onnx")
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from aff_deploy.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "main(['optimize', 'model.onnx', '-o', 'new/out.onnx'])"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "cannot write new/out.onnx" in error_line(ran, 3)
    assert listing(tmp_path) == ["model.onnx"]


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


def test_networks_and_weights(tmp_path: Path) -> None:
    write_network(tmp_path)
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps({"w": Bomb()}))
    (tmp_path / "junk.safetensors").write_bytes(b"\xff" * 64)
    np.savez(tmp_path / "x.npz", image=np.zeros((1, 4, 6, 6), np.float32))
    before = listing(tmp_path)
    tail = ("-o", "new/x.onnx", "--input", "image:1x4x6x6")
    cases: list[tuple[tuple[str, ...], int, str]] = [
        (("export", "net.py:not_a_module", *tail), 3, "returned a int, not a torch.nn.Module"),
        (("export", "net.py:buidl", *tail), 3, "did you mean build"),
        (("export", "net.py:Failing", *tail), 3, "no forward today"),
        (("export", "absent.py:build", *tail), 3, "absent.py"),
        (("export", "no_such_module:build", *tail), 3, "no_such_module"),
        (("export", "aff_resnet51", *tail), 3, "aff_resnet50"),
        (("export", "net.py:build", *tail, "--weights", "bomb.pt"), 3, "bomb.pt"),
        (("export", "net.py:build", *tail, "--weights", "junk.safetensors"), 3, "junk.safetensors"),
        (("export", "net.py:build", *tail, "--weights", "absent.pt"), 3, "absent.pt"),
        (("export", "net.py:build", "-o", "new/x.onnx", "--input", "image:1x5x6x6"), 3, "1x5x6x6"),
        (("export", "net.py:build", *tail, "--dynamic", "imag:0=n"), 2, "imag"),
        (("export", "net.py:build", *tail, "--opset", "9"), 2, "opset 9"),
    ]
    for ran, (words, code, expected) in zip(run_all(tmp_path, [words for words, _, _ in cases]), cases, strict=True):
        assert expected in error_line(ran, code), words
    assert listing(tmp_path) == before


def test_weights_of_another_network(run: Run, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    write_network(tmp_path)
    tensors = {"conv.weight": np.zeros((8, 4, 3, 3), np.float32), "extra.thing": np.zeros(2, np.float32)}
    save_file(tensors, tmp_path / "w.safetensors")
    line = error_line(run("export", "recipe.toml", "-o", "x.onnx", "--weights", "w.safetensors"), 3)
    assert "conv.bias" in line
    assert "extra.thing" in line


def test_recipes(run: Run, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"x")
    table = f'[weights]\nfile = "w.safetensors"\nsha256 = "{"0" * 64}"\n'
    write_network(tmp_path / "a", RECIPE + "[toleranse.fp32]\natol = 1\n")
    write_network(tmp_path / "b", RECIPE + table.replace("w.safetensors", "../w.safetensors"))
    write_network(tmp_path / "c", RECIPE + table)
    (tmp_path / "c/w.safetensors").write_bytes(b"x")
    before = listing(tmp_path)
    assert "did you mean 'tolerance'?" in error_line(run("deploy", "a", "-o", "out"), 3)
    assert "stay inside" in error_line(run("deploy", "b", "-o", "out"), 3)
    assert "sha256" in error_line(run("deploy", "c/recipe.toml", "-o", "out"), 3)
    assert "did you mean aff_resnet32?" in error_line(run("deploy", "aff_resnet33", "-o", "out"), 3)
    assert listing(tmp_path) == before


def test_debug_shows_the_traceback_and_keeps_the_code(run: Run) -> None:
    ran = run("inspect", "absent.onnx", "--debug")
    assert ran.returncode == 3
    assert "Traceback" in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith("error: ")
