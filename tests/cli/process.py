"""The command line as a subprocess, and what a failed one must look like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def runner(folder: Path) -> Run:
    """A function that runs ``aff-deploy WORDS...`` in `folder`; keywords are environment variables."""

    def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "aff_deploy", *map(str, words)],
            cwd=folder,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "120", **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


DRIVER = """
import contextlib, io, json, sys
from aff_deploy.cli import main
results = []
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    code = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as end:
            code = end.code
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


def run_all(folder: Path, lines: Sequence[Sequence[str]]) -> list[subprocess.CompletedProcess[str]]:
    """Several command lines one after the other in one process, so that torch is imported once."""
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(lines),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    results = json.loads(ran.stdout)
    return [subprocess.CompletedProcess(words, *result) for words, result in zip(lines, results, strict=True)]


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
