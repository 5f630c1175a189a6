"""What is missing (4), bugs (70), interruption (130, 143), and a reader that has gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.files import listing, save_model
from tests.cli.process import error_line
from tests.networks import write_network

WITHOUT = "import sys\nfor name in {names!r}: sys.modules[name] = None\nfrom aff_deploy.cli import main\nmain({words!r})"


@pytest.mark.parametrize(
    ("names", "words", "missing"),
    [
        (["torch"], ["export", "aff_resnet50", "-o", "x.onnx"], "PyTorch"),
        (["torch"], ["deploy", "aff_resnet50", "-o", "x"], "PyTorch"),
        (["torch"], ["validate", "x.onnx", "--against", "aff_resnet50"], "PyTorch"),
        (["onnxruntime"], ["validate", "x.onnx", "--against", "x.onnx"], "onnxruntime"),
        (["onnxruntime"], ["optimize", "x.onnx", "-o", "y.onnx", "--verify"], "onnxruntime"),
    ],
)
def test_a_missing_package_is_exit_4_with_the_pip_line(
    names: list[str], words: list[str], missing: str, tmp_path: Path
) -> None:
    save_model(tmp_path / "x.onnx")
    code = WITHOUT.format(names=names, words=words)
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    line = error_line(ran, 4)
    assert missing in line
    assert line.endswith("pip install 'aff-deploy[cpu]'")
    assert listing(tmp_path) == ["x.onnx"]


def test_optimize_and_inspect_need_neither_torch_nor_onnxruntime(tmp_path: Path) -> None:
    save_model(tmp_path / "x.onnx")
    for words in (["optimize", "x.onnx", "-o", "y.onnx"], ["inspect", "x.onnx"]):
        code = WITHOUT.format(names=["torch", "onnxruntime", "onnxscript"], words=words)
        ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr


def test_a_bug_keeps_its_traceback_and_is_no_users_code() -> None:
    code = "import aff_deploy.cli.doctor as d\nd.diagnose = lambda: 1 / 0\nfrom aff_deploy.cli import main\nmain(['doctor'])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 70
    assert "ZeroDivisionError" in ran.stderr
    assert "bug in aff-deploy" in ran.stderr


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    ran = subprocess.run(
        f"{sys.executable} -m aff_deploy --help | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert ran.returncode in (0, 141)
    assert ran.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("words", [["deploy", "net", "-o", "made/out"], ["export", "net/recipe.toml", "-o", "made/x.onnx"]])
def test_an_interruption_leaves_nothing(number: signal.Signals, words: list[str], tmp_path: Path) -> None:
    write_network(tmp_path / "net")
    source = tmp_path / "net/net.py"
    # The network says when it is being built, in the middle of the work, and then waits to be interrupted.
    source.write_text(
        source.read_text().replace(
            "def build():",
            "def build():\n    import pathlib, time\n"
            "    pathlib.Path('building').touch()\n"
            # As some libraries do: whatever a signal raised would be lost here.
            "    while True:\n        try: time.sleep(60)\n        except BaseException: pass",
        )
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "aff_deploy", *words],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):
        if (tmp_path / "building").exists():
            break
        time.sleep(0.05)
    process.send_signal(number)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    assert out == ""
    assert "Traceback" not in err
    assert "interrupted" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["building", "net"]
