"""Folders that must not outlive the work, however it ends; and moments in which it may not end."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_still = threading.RLock()
"""Held where there is no good place to stop."""


@dataclass(eq=False)
class Making:
    """A folder that vanishes in the end, if it was made yet, and the parents that were made for it, nearest first."""

    parents: Sequence[Path] = ()
    folder: Path | None = None


_making: list[Making] = []
_written: list[Path] = []


def abandon_stages() -> tuple[Path, ...]:
    """Remove all that is being made, for a process that ends now: nothing can be staged or moved afterwards.

    Returns:
        The outputs that were already in their place.
    """
    _still.acquire()
    for making in _making:
        _remove(making)
    return tuple(_written)


def note_written(path: Path) -> None:
    """Say that an output is in its place."""
    _written.append(path)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back for a moment in which there is no good place to stop."""
    with _still:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        held: list[int] = []

        def hold(number: int, frame: FrameType | None) -> None:
            held.append(number)

        former = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            if held:
                signal.raise_signal(held[0])


@contextlib.contextmanager
def making_folder(parents: Sequence[Path] = ()) -> Iterator[Making]:
    """Remove in the end the folder that the block names, and those of `parents` that are empty."""
    making = Making(parents)
    _making.append(making)
    try:
        yield making
    finally:
        with undisturbed():
            _remove(making)
            _making.remove(making)


def _remove(making: Making) -> None:
    # More than once: another thread of a process that ends may still be writing there.
    for _ in range(20):
        if making.folder is None:
            break
        shutil.rmtree(making.folder, ignore_errors=True)
        if not making.folder.exists():
            break
        time.sleep(0.01)
    for parent in making.parents:
        with contextlib.suppress(OSError):
            parent.rmdir()


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private folder for files between two steps, where the system keeps such; removed in the end."""
    with contextlib.ExitStack() as stack:
        with undisturbed():
            making = stack.enter_context(making_folder())
            folder = making.folder = Path(tempfile.mkdtemp(prefix="aff-deploy-"))
        yield folder
