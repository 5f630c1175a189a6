"""No command replaces what it reads or what is not its own: exit 2, one line, every file as it was."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from tests.cli.files import save_model
from tests.cli.process import error_line, run_all
from tests.engines import write_test_engine
from tests.networks import RECIPE, write_network


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_external(path: Path) -> None:
    """A model whose weight lies in ``out.onnx.data``."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 3], np.ones((2, 3), np.float32).tobytes(), raw=True)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [2, 3])],
        [value("y", TensorProto.FLOAT, [2, 3])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save_model(model, path, save_as_external_data=True, location="out.onnx.data", size_threshold=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Inputs of every kind, in the places where a careless command would write."""
    save_model(tmp_path / "net.onnx")
    write_external(tmp_path / "large.onnx")
    write_network(tmp_path, RECIPE + '\n[evaluation]\ndata = "eval.npz"\n')
    np.savez(tmp_path / "eval.npz", image=np.zeros((2, 4, 6, 6), np.float32))
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3), np.float32))
    (tmp_path / "helper.py").write_text("from net import build\n")
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    (tmp_path / "theirs.onnx.json").write_text('{"my": 1}')
    (tmp_path / "link.onnx").symlink_to("net.onnx")
    write_test_engine(tmp_path / "engine/e.engine")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/manifest.json").write_text("{}")
    (tmp_path / "site/thesis.txt").write_text("precious")
    return tmp_path


EXPORT = ("--input", "image:1x4x6x6")
BUILD = ("build-engine", "net.onnx")
# The command line, and what its one line names.
CASES = (
    (("optimize", "net.onnx", "-o", "net.onnx"), "net.onnx"),
    (("optimize", "net.onnx", "-o", "./engine/../net.onnx"), "net.onnx"),
    (("optimize", "link.onnx", "-o", "net.onnx"), "link.onnx"),
    (("optimize", "net.onnx", "-o", "link.onnx"), "symbolic link"),
    (("optimize", "net.onnx", "-o", "theirs.onnx"), "theirs.onnx.json"),
    (("optimize", "large.onnx", "-o", "out.onnx"), "out.onnx.data"),
    (("optimize", "large.onnx", "-o", "out.onnx.data"), "out.onnx.data"),
    ((*BUILD, "-o", "net", "--keep-typed"), "net.onnx"),
    ((*BUILD, "-o", "net.onnx"), "net.onnx"),
    ((*BUILD, "-o", "theirs", "--keep-typed"), "theirs.onnx.json"),
    ((*BUILD, "-o", "x.npz", "--fp16", "--data", "x.npz"), "x.npz"),
    ((*BUILD, "-o", "x.npz", "--int8", "--calib", "x.npz"), "x.npz"),
    (("build-engine", "recipe.toml", "-o", "recipe.toml"), "recipe.toml"),
    (("export", "net.py:build", "-o", "net.py", *EXPORT), "net.py"),
    (("export", "helper:build", "-o", "net.py", *EXPORT), "net.py"),
    (("export", "recipe.toml", "-o", "recipe.toml"), "recipe.toml"),
    (("export", "recipe.toml", "-o", "eval.npz"), "eval.npz"),
    (("export", "net.py:build", "-o", "w.pt", "--weights", "w.pt", *EXPORT), "w.pt"),
    (("deploy", "./recipe.toml", "-o", "site"), "was not made by aff-deploy"),
    (("deploy", "./recipe.toml", "-o", "."), "would replace recipe.toml"),
    (("deploy", ".", "-o", "."), "recipe.toml"),
)


def test_outputs_that_would_destroy(folder: Path) -> None:
    before = contents(folder)
    for ran, (words, named) in zip(run_all(folder, [words for words, _ in CASES]), CASES, strict=True):
        assert named in error_line(ran, 2), words
    assert contents(folder) == before
    assert (folder / "link.onnx").is_symlink()


def test_what_a_command_wrote_it_may_write_again(folder: Path) -> None:
    lines = [["optimize", "net.onnx", "-o", "new/out.onnx"], ["optimize", "large.onnx", "-o", "new/out.onnx"]]
    assert [ran.returncode for ran in run_all(folder, [*lines, *lines])] == [0, 0, 0, 0]
    assert sorted(path.name for path in (folder / "new").iterdir()) == ["out.onnx", "out.onnx.json"]
