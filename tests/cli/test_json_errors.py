"""``--json`` is one JSON document on stdout, on failure too; and what ``--quiet`` leaves on stderr."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from aff_deploy.cli import doctor, main
from tests.cli.files import save_model
from tests.engines import write_test_engine
from tests.networks import RECIPE, write_network

FAILURES = {
    "no such command": (["frobnicate"], "UsageError", 2, "see --help"),
    "no such option": (["inspect", "x.onnx", "--frob"], "UsageError", 2, "see --help"),
    "missing option": (["export", "a:b"], "UsageError", 2, "see --help"),
    "no recipe": (["deploy"], "UsageError", 2, "aff_resnet_digits"),
    "unknown recipe": (["deploy", "aff_resnet", "-o", "out"], "RecipeError", 3, "did you mean"),
    "no file": (["inspect", "nope.onnx"], "ModelError", 3, "give the path of an .onnx file"),
    "no deployment": (["inspect", "net"], "InputError", 3, "deploy wrote"),
    "folder to validate": (["validate", "net", "--against", "x.onnx"], "InputError", 3, "give an ONNX file"),
    "input as output": (["optimize", "x.onnx", "-o", "x.onnx"], "UsageError", 2, ""),
    "no inputs": (["export", "net/net.py:build", "-o", "y.onnx"], "UsageError", 2, "--input NAME:1x3x224x224"),
    "no network": (["build-engine", "nope", "-o", "y.engine"], "NetworkError", 3, "recipe.toml"),
    "unready recipe": (["deploy", "net", "-o", "out"], "RecipeError", 3, "[[inputs]] 'image'"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a model, and a network whose recipe asks for an engine of sizes that it does not name."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "x.onnx")
    free = RECIPE.replace('"batch", 4, 6, 6]', '"batch", 4, "h", "w"]')
    lines = [line for line in free.splitlines() if not line.startswith(("min =", "opt =", "max ="))]
    write_network(tmp_path / "net", "\n".join(lines) + '\n[engine]\nbackend = "tensorrt-rtx"\n')
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str, str]:
    """Exit code, stdout and stderr of a command line, in this process."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    return (ended.value.code, *capsys.readouterr())


@pytest.mark.parametrize(("words", "kind", "code", "way"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_one_document(
    words: list[str], kind: str, code: int, way: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if words[0] == "deploy" and kind == "RecipeError" and "net" in words:
        pytest.importorskip("tensorrt_rtx")
    before = sorted(folder.rglob("*"))
    ended, out, err = run(capsys, *words, "--json")
    error = json.loads(out)["error"]
    assert json.loads(out) == {"error": error}
    assert (error["kind"], error["exit"], ended) == (kind, code, code)
    assert way in error["fix"]
    assert error["message"]
    assert error["fix"] not in error["message"] or not error["fix"]
    assert err.splitlines()[-1].startswith(f"error: {error['message'].split()[0]}")
    assert run(capsys, *words)[1] == ""
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts] == before


def test_a_bug_is_a_document_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda: 1 / 0)
    code, out, err = run(capsys, "doctor", "--json")
    assert (code, json.loads(out)["error"]["kind"], json.loads(out)["error"]["exit"]) == (70, "Bug", 70)
    assert "ZeroDivisionError" in json.loads(out)["error"]["message"]
    assert "Traceback" in err


def test_a_check_that_failed_keeps_its_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = save_model(folder / "other.onnx")
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.full((2, 3), 2, np.float32), "w"))
    onnx.save(other, folder / "other.onnx")
    code, out, _ = run(capsys, "validate", "x.onnx", "--against", "other.onnx", "--json")
    found = json.loads(out)
    assert (code, found["passed"], found["error"]["kind"], found["error"]["exit"]) == (1, False, "CheckFailed", 1)
    code, out, _ = run(capsys, "validate", "x.onnx", "--against", "x.onnx", "--json")
    assert (code, json.loads(out)["passed"], "error" in json.loads(out)) == (0, True, False)


def test_an_engine_that_cannot_be_loaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_test_engine(folder / "m.engine")
    (folder / "m.engine").write_bytes(b"vtrt")
    code, out, _ = run(capsys, "inspect", "m.engine", "--json")
    found = json.loads(out)
    assert (code, found["error"]["exit"], found["error"]["message"]) == (3, 3, found["problem"])
    assert found["intact"] is False


def test_an_engine_is_not_validated_without_its_gpu(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    from aff_deploy.runtimes.backends import TENSORRT_RTX, version

    write_test_engine(folder / "m.engine", library_version=version(TENSORRT_RTX))
    code, _, err = run(capsys, "validate", "m.engine", "--against", "x.onnx")
    assert (code, "NVIDIA GPU" in err) == (4, True)
    assert err.rstrip().endswith("see what was proven of it when it was built: aff-deploy inspect m.engine")


def test_behind_two_dashes_stand_names_of_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "inspect", "--", "--json")
    assert (code, out) == (3, "")
    assert "cannot read --json" in err


@pytest.mark.parametrize("place", [0, 1, 4])
def test_quiet_leaves_errors(place: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["optimize", "x.onnx", "-o", "y.onnx"]
    words.insert(place, "-q" if place else "--quiet")
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert "y.onnx" in out
    assert "read x.onnx" in run(capsys, "optimize", "x.onnx", "-o", "y.onnx")[2]
    code, _, err = run(capsys, "optimize", "nope.onnx", "-o", "y.onnx", "--quiet")
    assert (code, err.startswith("error: cannot read nope.onnx"), err.count("\n")) == (3, True, 1)


def test_what_was_made_is_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_network(tmp_path / "net", RECIPE + "\n[engine]\nenabled = false\n")
    code, out, _ = run(capsys, "export", "net", "-o", "y.onnx", "--json")
    assert (code, json.loads(out)["file"]) == (0, "y.onnx")
    code, out, _ = run(capsys, "deploy", "net", "-o", "out", "--json", "-q")
    found = json.loads(out)
    assert (code, found["folder"], found["name"], found["validation"]["passed"]) == (0, "out", "tiny", True)
    assert found["engine"] == {"built": False, "why": "the recipe says enabled = false"}
    code, out, _ = run(capsys, "inspect", "out", "--json")
    assert (code, json.loads(out)["manifest"]["created"]) == (0, found["created"])


@pytest.mark.parametrize("raised", ["SystemExit(0)", "KeyboardInterrupt()", "GeneratorExit()"])
def test_a_network_that_ends_the_program_is_no_success(raised: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        f"import torch\nclass N(torch.nn.Module):\n    def forward(self, x):\n        raise {raised}\ndef build(): return N()\n"
    )
    (folder / "ends.py").write_text(code, encoding="utf-8")
    ended, out, err = run(capsys, "validate", "x.onnx", "--against", "ends.py:build", "--json")
    error = json.loads(out)["error"]
    assert (ended, error["exit"], error["kind"]) == (3, 3, "NetworkError")
    assert "Traceback" not in err
