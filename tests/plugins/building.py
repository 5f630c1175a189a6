"""CMake and a compiler, where there are any."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[2] / "plugins"
NO_HEADERS = "no TensorRT headers: set TENSORRT_ROOT"


def tensorrt_root() -> str:
    """Where TensorRT's headers are, or nothing."""
    return os.environ.get("TENSORRT_ROOT", "")


def cuda_headers() -> Path | None:
    """Triton's own copy of CUDA's headers, or where CUDA_INCLUDE_DIR says."""
    if named := os.environ.get("CUDA_INCLUDE_DIR"):
        return Path(named)
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "backends" / "nvidia" / "include"
    return folder if (folder / "cuda.h").is_file() else None


def configure(folder: Path, *options: str) -> str:
    """Configure into `folder` and return what CMake said; skips by name what cannot be had."""
    for tool in ("cmake", "ctest"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no C++ compiler")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    headers = cuda_headers()
    options = (f"-DCUDA_INCLUDE_DIR={headers}", *options) if headers else options
    return run("cmake", *generator, "-S", str(PLUGINS), "-B", str(folder), *options)


def run(*command: str, cwd: Path | None = None, stdin: str = "", env: dict[str, str] | None = None) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        input=stdin,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


def build(folder: Path, *targets: str) -> None:
    """Compile everything or some targets, with warnings as errors."""
    chosen = ("--target", *targets) if targets else ()
    run("cmake", "--build", str(folder), "--parallel", "2", *chosen)
