"""A process that has imported what the commands import, and forks itself for each command line.

Importing PyTorch takes longer than most commands do. A line of JSON comes for each: its words, the folder and the
environment to run in, and the files for what it prints; its exit code is the answer.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

# Not ONNX Runtime: it starts a thread, and the fork of a process that has some may wait for ever.
HEAVY = ("onnx_graphsurgeon", "onnxscript", "safetensors.torch", "torch._dynamo")
SECONDS = 240
"""Until a command is killed."""


def serve() -> list[str] | None:
    """The words of a command line, in the fork that is to run it; None when no more come."""
    for line in sys.stdin:
        request = json.loads(line)
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
        else:
            become(request)
            return list(request["words"])
    return None


def become(request: dict[str, Any]) -> None:
    """What a process of its own would be from its start."""
    for number, path, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY),
        (2, request["stderr"], os.O_WRONLY),
    ):
        opened = os.open(path, mode)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["aff-deploy", *request["words"]]
    sys.path.insert(0, request["folder"])
    signal.alarm(SECONDS)


def run(words: list[str]) -> NoReturn:
    """Run the command line, and go without taking PyTorch down piece by piece, which takes longer than the command."""
    from aff_deploy.cli import main

    code: object = 0
    try:
        main(words)
    except SystemExit as end:
        code = end.code or 0
    assert isinstance(code, int)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    del sys.path[0]
    for name in HEAVY:
        importlib.import_module(name)
    gc.freeze()
    threads = Path("/proc/self/task")
    assert not threads.exists() or len(list(threads.iterdir())) == 1, "an import started a thread"
    words = serve()
    if words is None:
        os._exit(0)
    run(words)
