"""Running the command line as people do: as a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.process import Run, runner


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """``run("inspect", "x.onnx")`` in an empty folder; the result has returncode, stdout, stderr."""
    return runner(tmp_path)
