"""Outputs that appear whole or not at all: written in a hidden folder beside their place, and moved there in the end.

Such a folder is locked for as long as its process lives. One that is not was left by a killed run, and the
next run to the same place removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from aff_deploy.artifact.claims import refuse_link
from aff_deploy.artifact.interruption import making_folder, note_written, undisturbed
from aff_deploy.artifact.manifest import listed_files, owned_beside
from aff_deploy.artifact.reading import reason_of
from aff_deploy.errors import OutputError, UsageError

if sys.platform != "win32":  # where what killed runs leave stays
    import fcntl

MOVE_IT = "move it away, or give the output another name"


def _output_error(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {reason_of(error)}", fix="choose another output path, or free the place")


def check_writable(path: Path, *sidecars: str) -> None:
    """Fail now, before the work, if the file `path` could not be created later. Leaves nothing behind.

    Args:
        path: the file.
        sidecars: what is written beside it: its name lengthened by ``.json`` and the like.

    Raises:
        OutputError: with the reason.
        UsageError: `path` is a symbolic link, or a sidecar would replace a file that is not ours.
    """
    refuse_link(path)
    try:
        _check_kind(path)
        for sidecar in sidecars:
            _check_replaceable(path.with_name(path.name + sidecar), path)
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _output_error(path, error) from None


def _check_kind(path: Path) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise OutputError(f"cannot write {path}: it is a folder", fix="give the name of a file")
    if not stat.S_ISREG(mode):
        raise OutputError(
            f"cannot write {path}: it is a device or a pipe, and would be replaced", fix="give the name of a file"
        )


def _check_replaceable(beside: Path, path: Path) -> None:
    """Refuse to replace a file beside the output `path` that no former run wrote with it."""
    try:
        mode = os.lstat(beside).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode) or beside.name not in owned_beside(path):
        raise UsageError(f"{beside} is in the way of {path}, and was not made by aff-deploy", fix=MOVE_IT)


@contextlib.contextmanager
def _stage_beside(target: Path) -> Iterator[Path]:
    """A folder beside `target`, removed in the end; with it go parent folders that were made for nothing."""
    try:
        with contextlib.ExitStack() as stack:
            with undisturbed():
                made = [parent for parent in target.absolute().parents if not parent.exists()]
                making = stack.enter_context(making_folder(made))
                target.parent.mkdir(parents=True, exist_ok=True)
                _clear_leftovers(target)
                fresh = target.parent / f"{_prefix(target)}{secrets.token_hex(4)}.new"
                # As any other folder, so that the umask decides who may look into what it becomes.
                fresh.mkdir()
                making.folder = fresh.absolute()
                stack.callback(_unlock, _lock(fresh))
                # Only now does it look like one that might have been left.
                stage = fresh.with_suffix(".partial")
                os.rename(fresh, stage)
                making.folder = stage.absolute()
            yield stage
    except OSError as error:
        raise _output_error(target, error) from None


def _prefix(target: Path) -> str:
    """What the names of stages of `target` begin with; of one length, as the target's own may be the longest possible."""
    return f".aff-deploy-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]}-"


def _lock(folder: Path, *, wait: bool = False) -> int | None:
    """A lock on a folder that ends with the process, as a file descriptor; None where it is taken or there are none."""
    if sys.platform == "win32":
        return None
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(number)
        return None
    return number


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _clear_leftovers(target: Path) -> None:
    """Remove what killed runs left of `target`; a former folder that one had already put aside comes back."""
    if sys.platform == "win32":
        return
    for path in target.parent.glob(f"{_prefix(target)}*"):
        if path.suffix not in (".partial", ".old") or path.lstat().st_uid != os.geteuid():
            continue
        with contextlib.suppress(OSError):
            if (lock := _lock(path)) is None:
                continue
            try:
                if path.suffix == ".old" and not target.exists():
                    os.rename(path, target)
                elif path.suffix == ".old":
                    _discard(path)
                else:
                    shutil.rmtree(path)
            finally:
                os.close(lock)


def _discard(folder: Path) -> None:
    """Remove a former output: the files that its manifest lists, and the folder if that leaves it empty."""
    for name in listed_files(folder) or ():
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes `target` when the block ends well, and vanishes otherwise.

    The block writes its manifest (`manifest.write_folder_manifest`). An existing `target` is replaced only if
    it is empty, or holds such a manifest and no other files than those that this lists.

    Raises:
        OutputError: `target` cannot be written.
        UsageError: it is a symbolic link, or holds what is not ours to remove.
    """
    check_replaceable_folder(target)
    with _stage_beside(target) as stage:
        yield stage
        with undisturbed():
            # Again: the work took its time.
            check_replaceable_folder(target)
            _replace(target, stage)
            note_written(target)


def check_replaceable_folder(target: Path) -> None:
    """Refuse to replace a folder that is not a former output of ours, or holds anything beside it.

    Raises:
        OutputError, UsageError: as `staged_folder`.
    """
    refuse_link(target)
    try:
        mode = os.lstat(target).st_mode
        there = sorted(os.listdir(target)) if stat.S_ISDIR(mode) else None
    except FileNotFoundError:
        return
    except OSError as error:
        raise _output_error(target, error) from None
    if there is None:
        raise OutputError(f"cannot write {target}: it is a file", fix="give a folder with -o")
    if not there:
        return
    listed = listed_files(target)
    if listed is None:
        raise UsageError(
            f"{target} is not empty and was not made by aff-deploy ({there[0]})", fix="give a new or empty folder with -o"
        )
    for name in there:
        if name not in listed or not stat.S_ISREG(os.lstat(target / name).st_mode):
            raise UsageError(f"{target / name} would be lost: it was not made by aff-deploy", fix=MOVE_IT)


def _replace(target: Path, stage: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        os.rename(stage, target)
        return
    # Locked, so that nobody takes it for what a killed run left while it is put aside.
    lock = _lock(target, wait=True)
    retired = stage.with_suffix(".old")
    try:
        os.rename(target, retired)
        try:
            os.rename(stage, target)
        except OSError:
            os.rename(retired, target)
            raise
        _discard(retired)
    finally:
        _unlock(lock)


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A path to write to, in a folder beside `path`; moved into place when the block ends well.

    Files that the block leaves next to it (external data, manifest) move with it, the staged file
    itself last, so that whoever sees the file sees its companions too. None of them replaces a file that no
    former run wrote there.

    Raises:
        OutputError: the place cannot be written.
        UsageError: `path` is a symbolic link, or a file that is not ours is in the way of a companion.
    """
    check_writable(path)
    with _stage_beside(path) as stage:
        yield stage / path.name
        companions = [item for item in sorted(stage.iterdir()) if item.name != path.name]
        with undisturbed():
            refuse_link(path)
            for item in companions:
                _check_replaceable(path.parent / item.name, path)
            for item in [*companions, stage / path.name]:
                os.replace(item, path.parent / item.name)
            note_written(path)
