"""Nothing leaves the output and our cache: no telemetry, no files of libraries in the user's folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.networks import write_network

# Commands of one process, so that PyTorch, ONNX Runtime, TensorRT-RTX and Triton are each loaded once.
DRIVER = """
import sys
from aff_deploy.cli import main
for words in (
    ["doctor"],
    ["export", "net.py:build", "-o", "m.onnx", "--input", "image:2x4x6x6"],
    ["optimize", "m.onnx", "-o", "o.onnx", "--verify"],
    ["optimize", "m.onnx", "-o", "p.onnx", "--plugin"],
    ["validate", "o.onnx", "--against", "net.py:build"],
    ["build-engine", "m.onnx", "-o", "e.engine", "--fp16"],
):
    try:
        main(words)
    except SystemExit as end:
        if end.code not in (0, 4):
            sys.exit(f"{words}: {end.code}")
"""


def test_home_and_tmp_hold_nothing_afterwards(tmp_path: Path) -> None:
    write_network(tmp_path)
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    # Telemetry that writes here would write through the link.
    (scratch / ".ses").symlink_to("../victim")
    (tmp_path / "victim").write_text("precious")
    places = ("CI", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH", "ORT_DISABLE_TELEMETRY")
    environment = {name: value for name, value in os.environ.items() if name not in places}
    environment |= {"HOME": str(home), "TMPDIR": str(scratch), "AFF_DEPLOY_CACHE": str(tmp_path / "cache")}
    ran = subprocess.run([sys.executable, "-c", DRIVER], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "victim").read_text() == "precious"
    assert [path.name for path in (*home.rglob("*"), *scratch.rglob("*"))] == [".ses"]
    assert not (tmp_path / "__pycache__").exists()
