"""Input files, opened as what nobody vouches for: regular files alone, no larger than what can be made of them."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aff_deploy.artifact.claims import note_read
from aff_deploy.errors import InputError

MAX_ARCHIVE_INDEX = 16 * 2**20
"""Bytes of an archive's directory: some hundred thousand members."""
MAX_JSON = 16 * 2**20
"""Bytes of a JSON document."""

_REASONS = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ELOOP: "its symbolic links go in a circle",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "no space is left in the quota",
    errno.EROFS: "the file system is read-only",
}


def reason_of(error: OSError) -> str:
    """Why the system refused, in words that do not depend on the platform."""
    return _REASONS.get(error.errno or 0, "") or error.strerror or " ".join(str(error).split())


def open_input(
    path: Path,
    *,
    what: str = "",
    error: type[InputError] = InputError,
    most: int | None = None,
    fix: str = "give the path of a file",
    noted: bool = True,
) -> io.BufferedReader:
    """Open a file to read its bytes. A device, pipe or socket is refused without waiting for it.

    Args:
        path: the file; symbolic links are followed.
        what: the kind of file, for the message.
        error: raised for all that is wrong with it.
        most: its largest size in bytes.
        fix: the message's way out.
        noted: whether it counts as an input; not so what is only looked at before it is replaced.

    Raises:
        InputError: of the type `error`: it is not there, cannot be read, is no regular file or is too large.
        UsageError: it is an output of the same command.
    """
    name = f"{what} {path}".strip()
    try:
        # Without O_NONBLOCK, opening a pipe would wait for a writer.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as refused:
        reason = reason_of(refused) if isinstance(refused, OSError) else "no file can have that name"
        if isinstance(refused, IsADirectoryError) or os.path.isdir(path):
            reason = "it is a folder"
        raise error(f"cannot read {name}: {reason}", fix=fix) from None
    try:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device, pipe or socket, not a file"
            raise error(f"cannot read {name}: it is {kind}", fix=fix)
        if most is not None and found.st_size > most:
            raise error(f"{name} has {found.st_size} bytes, more than the {most} that are read", fix=fix)
        if noted:
            note_read(path)
        return open(number, "rb")
    except BaseException:
        os.close(number)
        raise


def check_input(
    path: Path,
    *,
    what: str = "",
    error: type[InputError] = InputError,
    most: int | None = None,
    fix: str = "give the path of a file",
) -> int:
    """As `open_input`, for a file that a library opens by its name; returns its size in bytes."""
    with open_input(path, what=what, error=error, most=most, fix=fix) as file:
        return os.fstat(file.fileno()).st_size


def read_input(
    path: Path,
    *,
    what: str = "",
    error: type[InputError] = InputError,
    most: int,
    fix: str = "give the path of a file",
    noted: bool = True,
) -> bytes:
    """The bytes of a file; as `open_input`, with a bound that also holds for a file that grows meanwhile."""
    with open_input(path, what=what, error=error, most=most, fix=fix, noted=noted) as file:
        try:
            content = file.read(most + 1)
        except OSError as refused:
            raise error(f"cannot read {path}: {reason_of(refused)}", fix=fix) from None
    if len(content) > most:
        raise error(f"{path} has more than the {most} bytes that are read", fix=fix)
    return content


def is_input(path: Path) -> bool:
    """Whether `path` is a regular file, whatever else is wrong with its name."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def read_json(path: Path, *, what: str, error: type[InputError] = InputError, fix: str, noted: bool = True) -> dict[str, Any]:
    """The JSON object in a file of at most `MAX_JSON` bytes.

    Raises:
        InputError: of the type `error`: as `open_input`, or it is no JSON object of finite numbers.
    """
    content = read_input(path, what=what, error=error, most=MAX_JSON, fix=fix, noted=noted)
    try:
        document = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as refused:
        reason = "it is nested too deeply" if isinstance(refused, RecursionError) else str(refused)
        raise error(f"{what} {path} is not JSON ({reason})", fix=fix) from None
    if not isinstance(document, dict):
        raise error(f"{what} {path} is not a JSON object", fix=fix)
    return document


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


class _Archive(io.BufferedReader):
    """A file of which no more than an archive's index is read at once, until `opened`."""

    opened = False

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = -1 if size is None else size
        if not self.opened and (wanted < 0 or wanted > MAX_ARCHIVE_INDEX):
            found = super().read(MAX_ARCHIVE_INDEX + 1)
            if len(found) > MAX_ARCHIVE_INDEX:
                raise zipfile.BadZipFile(f"its index has more than {MAX_ARCHIVE_INDEX} bytes")
            return found
        return super().read(wanted)


@contextlib.contextmanager
def open_archive(
    path: Path, *, what: str = "", error: type[InputError] = InputError, most: int, fix: str
) -> Iterator[zipfile.ZipFile]:
    """A zip archive whose index is bounded, so that naming millions of members costs nothing.

    Raises:
        InputError: of the type `error`: as `open_input`.
        zipfile.BadZipFile: it is no whole archive; and what else `zipfile` raises.
    """
    opened = open_input(path, what=what, error=error, most=most, fix=fix)
    with _Archive(opened.detach()) as file, zipfile.ZipFile(file) as archive:
        # Members are read through the same object, and may be larger than the index.
        file.opened = True
        yield archive
