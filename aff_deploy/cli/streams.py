"""One filter for all that a command prints: names come from strangers' files, and a terminal obeys what it is sent.

Control characters, and those that reorder or hide what stands beside them, are written as escapes; so is what
the stream's encoding cannot write. A line has a limit.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, NoReturn, TextIO

from aff_deploy.artifact import reason_of
from aff_deploy.errors import OutputError

MAX_LINE = 4000
"""Characters of a line that a person is shown; a JSON document has none."""
MAX_CELL = 200
"""Characters of a name in a table."""

_UNSAFE = re.compile(
    # C0 but for tab and newline, DEL and C1; marks of direction; lone surrogates; line ends that are not "\n".
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str, most: int = MAX_LINE) -> str:
    """`text` with control characters as escapes, and the middle left out of each line that is too long."""
    text = _UNSAFE.sub(_escape, text)
    return text if len(text) <= most else "\n".join(_shortened(line, most) for line in text.split("\n"))


def cell(value: object) -> str:
    """`value` as one line of a table."""
    return printable(str(value).replace("\n", "\\n").replace("\t", "\\t"), MAX_CELL)


def _shortened(line: str, most: int) -> str:
    if len(line) <= most:
        return line
    # The end of a message says what to do.
    tail = most // 3
    return f"{line[: most - tail - 5]} ... {line[-tail:]}"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class SafeStream:
    """A text stream that passes on what `printable` makes of it.

    Args:
        stream: what is written to; None where the program was started without it.
        name: for the message.
        required: whether it matters that text arrives. Where not, a stream that fails is given up.
    """

    def __init__(self, stream: TextIO | None, name: str, *, required: bool) -> None:
        self.unfiltered = stream
        self._name = name
        self._required = required
        self._failed: OutputError | None = None

    def write(self, text: str) -> int:
        # Some ask by empty text, or empty bytes, what kind of stream it is.
        if shown := printable(text):
            self.write_raw(shown)
        return len(text)

    def write_raw(self, text: str) -> None:
        """Pass on text that needs no filter."""
        with self._told():
            if self.unfiltered is None:
                raise OSError(None, "it is closed")
            encoding = getattr(self.unfiltered, "encoding", None) or "utf-8"
            self.unfiltered.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def flush(self) -> None:
        with self._told():
            if self.unfiltered is not None:
                self.unfiltered.flush()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            silence(self.unfiltered)
            if self._required:
                raise
        except (OSError, ValueError) as error:
            if not self._required:
                return
            silence(self.unfiltered)
            reason = reason_of(error) if isinstance(error, OSError) else "it is closed"
            self._failed = OutputError(f"cannot write to {self._name}: {reason}", fix="redirect it to where there is room")
        if self._failed is not None:
            raise self._failed

    def isatty(self) -> bool:
        return self.unfiltered is not None and self.unfiltered.isatty()

    def writable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unfiltered, name)


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Let all that the block prints go through the filter."""
    _occupy_standard_streams()
    out, err = sys.stdout, sys.stderr
    sys.stdout = SafeStream(out, "stdout", required=True)
    sys.stderr = SafeStream(err, "stderr", required=False)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def _occupy_standard_streams() -> None:
    """Open the standard streams that are closed on nothing, or the next file that is opened would be taken for one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def silence(stream: TextIO | None) -> None:
    """Drop what a stream still holds, whose reader has gone or has no room: the interpreter would complain once more."""
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def leave(code: int) -> NoReturn:
    """End the process now: a library that unloads takes its time, in which a signal or a crash would be the exit code."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OutputError, BrokenPipeError, ValueError):  # somebody may have closed it
            stream.flush()
    os._exit(code)
