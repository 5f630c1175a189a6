"""The command line as a process, and what a failed one must look like."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@cache
def _server() -> subprocess.Popen[str]:
    """The one `server.py` of this test process."""
    command = [sys.executable, str(Path(__file__).with_name("server.py"))]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.communicate)
    return server


def runner(folder: Path) -> Run:
    """A function that runs ``aff-deploy WORDS...`` in `folder`; keywords are environment variables.

    Each is a process of its own, forked from one that has imported PyTorch already.
    """

    def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        with TemporaryDirectory() as scratch:
            printed = {name: Path(scratch, name) for name in ("stdout", "stderr")}
            for path in printed.values():
                path.touch()
            request = {
                "words": [str(word) for word in words],
                "folder": str(folder),
                "environment": {**os.environ, "NO_COLOR": "1", "COLUMNS": "120", **environment},
                **{name: str(path) for name, path in printed.items()},
            }
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            code = int(server.stdout.readline())
            out, err = (path.read_text(encoding="utf-8") for path in printed.values())
        return subprocess.CompletedProcess(request["words"], code, out, err)

    return run


def run_all(folder: Path, lines: Sequence[Sequence[str]]) -> list[subprocess.CompletedProcess[str]]:
    """Several command lines one after the other."""
    run = runner(folder)
    return [run(*words) for words in lines]


def error_line(ran: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line of a failed command, which has no traceback and left stdout empty, or with one document for --json."""
    assert ran.returncode == code, ran.stderr
    assert "Traceback" not in ran.stderr
    if "--json" in ran.args:
        assert json.loads(ran.stdout)["error"]["exit"] == code
    else:
        assert ran.stdout == ""
    lines = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ran.stderr
    assert ran.stderr.splitlines()[-1] == lines[0]
    return lines[0]
