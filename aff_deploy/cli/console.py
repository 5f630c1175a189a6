"""What commands say: results on stdout, everything meant for watching on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aff_deploy.artifact import check_writable, claim_file, note_read
from aff_deploy.cli.streams import cell, printable

if TYPE_CHECKING:
    from rich.status import Status

    from aff_deploy.nets.checkpoints import LoadedWeights


MODEL_SIDECARS = (".json", ".data")
"""What `onnx_file.save_onnx` may write beside a model: its manifest, and its weights where they are large."""


def claim_output(output: Path, *sources: Path, sidecars: Sequence[str] = ()) -> None:
    """Fail before the work where `output` could not be written after it, or would replace what is read or is not ours.

    What is read later, such as a recipe's weights, is compared with it then.

    Args:
        output: the file to write.
        sources: what is known to be read.
        sidecars: ``.json`` and the like: what is written beside it, its name lengthened.

    Raises:
        UsageError: `output` or a sidecar is one of the `sources`, a symbolic link, or a sidecar of somebody else.
        OutputError: it cannot be written.
    """
    for source in sources:
        note_read(source)
    claim_file(output, *sidecars)
    check_writable(output, *sidecars)


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Keep stdout for the result while other people's code runs: what it prints goes to stderr, its warnings nowhere."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


def say_notes(loaded: LoadedWeights | None) -> None:
    """Tell on stderr what was chosen while weights were loaded, such as the shared branch of an iAFF."""
    for note in loaded.notes if loaded is not None else ():
        print(f"  note: {note}", file=sys.stderr, flush=True)


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    # Escaped by JSON's own rules, and as long as it is.
    getattr(sys.stdout, "write_raw", sys.stdout.write)(write_json(document))


def write_json(document: Mapping[str, Any]) -> str:
    """The text of a document; a number that JSON cannot write is a bug in what made it."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def table(rows: Sequence[Sequence[object]], heads: Sequence[str] = (), *, indent: str = "  ") -> str:
    """Rows as aligned columns; numbers to the right."""
    lines = [tuple(cell(value) for value in row) for row in ([heads, *rows] if heads else rows)]
    if not lines:
        return ""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    right = [all(isinstance(row[i], (int, float)) for row in rows) and bool(rows) for i in range(len(widths))]
    return "\n".join(
        indent
        + "  ".join(
            text.rjust(width) if flush else text.ljust(width) for text, width, flush in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


class Steps:
    """Shows the stages of a long command on stderr, each with its time; a spinner where stderr is a terminal."""

    quiet = False
    """Of the whole process: --quiet shows none of it."""

    def __init__(self) -> None:
        self._name = ""
        self._start = 0.0
        self._status: Status | None = None

    def __call__(self, name: str) -> None:
        """The stage before is done, and `name` begins."""
        if self.quiet:
            return
        self._finish()
        self._name, self._start = name, time.perf_counter()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.text import Text

            # Its own escapes must reach the terminal. A slow refresh: a busy one takes time from the work it shows.
            console = Console(file=getattr(sys.stderr, "unfiltered", sys.stderr))
            self._status = console.status(Text(printable(name)), refresh_per_second=4)
            self._status.start()

    def detail(self, text: str) -> None:
        """Where the present stage stands."""
        if self.quiet:
            return
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(printable(f"{self._name}: {text}")))
        else:
            print(f"    {text}", file=sys.stderr, flush=True)

    def _finish(self) -> None:
        self._stop()
        if self._name:
            print(f"  {self._name:<58} {time.perf_counter() - self._start:6.1f} s", file=sys.stderr, flush=True)
        self._name = ""

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
        self._status = None

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._finish()
        else:
            self._stop()
