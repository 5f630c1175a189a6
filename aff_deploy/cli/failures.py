"""A command that failed, for a person (one line on stderr) and for a program (one JSON document on stdout)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import typer

from aff_deploy.artifact import reason_of
from aff_deploy.cli.remedies import in_options_of
from aff_deploy.cli.streams import printable
from aff_deploy.errors import AffDeployError

EXIT_BUG = 70
MAX_MESSAGE = 1000
"""Characters of an error, whose end says what to do."""
EXTRA_OF = {"torch": "cpu", "onnxscript": "cpu", "onnxruntime": "cpu", "PIL": "images"}


@dataclass(frozen=True)
class Failure:
    """What ``--json`` says of it under ``error``: the error's class, what is wrong, what to do, and the exit code."""

    kind: str
    message: str
    fix: str
    exit: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        text = f"{self.message}; {self.fix}" if self.fix else self.message
        return " ".join(text.split())


def describe_failure(error: BaseException, command: str, options: Callable[[], Mapping[str, Sequence[str]]]) -> Failure | None:
    """What to say of an error that ended `command`, or None where it is a bug of ours.

    Args:
        error: whatever was raised.
        command: that ran.
        options: of every command, by its name; asked only where they are needed.
    """
    if isinstance(error, AffDeployError):
        fix = in_options_of(command, error.fix, options()) if "--" in error.fix else error.fix
        return Failure(type(error).__name__, error.message, fix, error.exit_code)
    if isinstance(error, typer.TyperException):
        wrong = error.exit_code == 2
        message = " ".join(error.format_message().split())
        return Failure("UsageError", message.rstrip(".") if wrong else message, "see --help" if wrong else "", error.exit_code)
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is not None:
            fix = f"pip install 'aff-deploy[{extra}]'"
            return Failure("MissingDependency", f"{error.name} is not installed", fix, 4)
    if not isinstance(error, Exception):
        # Ours are none of these: SystemExit, KeyboardInterrupt and their like come out of a network's code.
        what = f"code that the command ran ended it by {type(error).__name__}"
        return Failure("NetworkError", what, "take that out of the network, or of what it imports", 3)
    if isinstance(error, MemoryError):
        return Failure("MemoryError", "there is not enough memory for this", "use a machine with more, or smaller shapes", 4)
    if isinstance(error, OSError):
        # What is expected to be refused is told better where it is met.
        at = f" at {error.filename}" if error.filename is not None else ""
        return Failure("OSError", f"the system refused{at}: {reason_of(error)}", "check the path and the place", 3)
    return None


def bug(error: BaseException) -> Failure:
    """What to say of an error that is none of the person's."""
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return Failure("Bug", what, "this is a bug in aff-deploy: please report it with the lines on stderr", EXIT_BUG)


def interruption(exit_code: int) -> Failure:
    """What to say where a signal ended the command."""
    return Failure("Interrupted", "interrupted", "", exit_code)


def is_asked(words: Sequence[str], *options: str) -> bool:
    """Whether one of the options stands on a command line, wherever; behind ``--`` they are names of files."""
    end = words.index("--") if "--" in words else len(words)
    return any(word in options for word in words[:end])


def without(words: Sequence[str], *options: str) -> list[str]:
    """The command line without options that are accepted anywhere on it."""
    end = words.index("--") if "--" in words else len(words)
    return [word for i, word in enumerate(words) if i >= end or word not in options]


def print_error(failure: Failure) -> None:
    print("error: " + printable(str(failure), MAX_MESSAGE), file=sys.stderr)
