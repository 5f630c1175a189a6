"""What one command reads and what it writes, kept apart: whichever of the two comes second is refused.

A command claims its outputs before the work; every input is noted as it is opened. So no list of inputs has
to be kept complete by hand: a model's external data, a network's source and a recipe's weights are compared
with the outputs because they are read. Outside `kept_apart` nothing is compared: a program may well write a
file and read it again.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from aff_deploy.errors import UsageError


@dataclass(frozen=True)
class _Place:
    """A path as it was given, with what makes it the same as another."""

    given: Path
    real: str
    inode: tuple[int, int] | None

    def is_same(self, other: _Place) -> bool:
        return self.real == other.real or (self.inode is not None and self.inode == other.inode)

    def holds(self, other: _Place) -> bool:
        return other.real.startswith(self.real.rstrip(os.sep) + os.sep)


@dataclass
class _Command:
    reads: list[_Place] = field(default_factory=list)
    files: list[_Place] = field(default_factory=list)
    folders: list[_Place] = field(default_factory=list)


_command: ContextVar[_Command | None] = ContextVar("command", default=None)


@contextlib.contextmanager
def kept_apart() -> Iterator[None]:
    """Within this block no file is both read and written; inside another such block it is that one."""
    if _command.get() is not None:
        yield
        return
    token = _command.set(_Command())
    try:
        yield
    finally:
        _command.reset(token)


def note_read(path: Path) -> None:
    """Say that `path`, a file or the folder of several, is read.

    Raises:
        UsageError: it is an output of the same command.
    """
    if (command := _command.get()) is None:
        return
    place = _place(path)
    for output in command.files:
        if output.is_same(place):
            raise _conflict(output, place)
    for output in command.folders:
        if output.is_same(place) or output.holds(place):
            raise _conflict(output, place)
    command.reads.append(place)


def claim_file(path: Path, *sidecars: str, updating: bool = False) -> None:
    """Say that the file `path` will be written, and with it `path` lengthened by each of the `sidecars`.

    Args:
        path: the output.
        sidecars: such as ``.json``.
        updating: the file is read as well, because it is kept up to date, like a cache.

    Raises:
        UsageError: one of them is read by the same command, or is a symbolic link; or `path` has no name.
    """
    if not path.name:
        raise UsageError(f"{os.fspath(path)!r} names no file", fix="give the name of a file")
    for output in (path, *(path.with_name(path.name + suffix) for suffix in sidecars)):
        refuse_link(output)
        if (command := _command.get()) is None:
            continue
        place = _place(output)
        for read in (*command.reads, *command.files):
            if place.is_same(read):
                raise _conflict(place, read)
        if any(folder.holds(place) for folder in command.folders):
            continue
        # An updated file is kept from all others as an input is, and may be read.
        (command.reads if updating else command.files).append(place)


def claim_folder(path: Path) -> None:
    """Say that the folder `path` will be written whole.

    Raises:
        UsageError: the same command reads something in it, or it is a symbolic link.
    """
    refuse_link(path)
    if (command := _command.get()) is None:
        return
    place = _place(path)
    for read in command.reads:
        if place.is_same(read) or place.holds(read):
            raise _conflict(place, read)
    command.folders.append(place)


def refuse_link(path: Path) -> None:
    """Refuse to write `path` where it is a symbolic link: what it points to is not what was named.

    Raises:
        UsageError: saying where the link points.
    """
    try:
        linked = stat.S_ISLNK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return
    if linked:
        real = os.path.realpath(path)
        fix = "give another name" if os.path.islink(real) else f"give the path itself: {real}"
        raise UsageError(f"cannot write {path}: it is a symbolic link", fix=fix)


def _place(path: Path) -> _Place:
    try:
        found = os.stat(path)
        inode = (found.st_dev, found.st_ino) if found.st_ino else None
    except (OSError, ValueError):
        inode = None
    return _Place(path, os.path.realpath(path), inode)


def _conflict(output: _Place, source: _Place) -> UsageError:
    if output.given == source.given:
        return UsageError(f"{output.given} is the input itself and would be replaced", fix="give the output another name")
    said = f"the output {output.given} would replace {source.given}, which is used"
    return UsageError(said, fix="give the output another name")
