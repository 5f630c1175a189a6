"""Files that appear whole or not at all, and the manifest that lies beside each.

The manifest of ``model.onnx`` is ``model.onnx.json``: what the file is (sha256), what it was made
from, with which versions, and what was proven about it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from aff_deploy.errors import InputError, OutputError

MANIFEST_FORMAT = 1
RECORDED_PACKAGES = ("aff-deploy", "torch", "onnx", "onnxscript", "onnxruntime", "onnx-graphsurgeon", "numpy")


@dataclass(frozen=True)
class Artifact:
    """A file that was written, and its manifest."""

    path: Path
    manifest: Mapping[str, Any]


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of the interpreter and of the packages that shape an artefact, where installed."""
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def manifest_path(path: Path) -> Path:
    """Where the manifest of `path` lies."""
    return path.with_name(path.name + ".json")


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest beside `path`, or None where there is none.

    Raises:
        InputError: it is not JSON, or speaks of another file than the one that is there.
    """
    beside = manifest_path(path)
    if not beside.is_file():
        return None
    try:
        manifest = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"manifest {beside} cannot be read ({error})", fix="make the file again, or delete its manifest"
        ) from None
    if not isinstance(manifest, dict):
        raise InputError(f"manifest {beside} is not a JSON object", fix="make the file again, or delete its manifest")
    for file, expected in _described(path, manifest):
        if not file.is_file() or sha256(file) != expected:
            raise InputError(
                f"{file} is not the file that its manifest describes", fix="make it again, or delete the stale manifest"
            )
    return manifest


def _described(path: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[Path, object]]:
    """The files that a manifest vouches for, none outside its folder, with their hashes."""
    yield path, manifest.get("sha256")
    companions = manifest.get("companions")
    for name, expected in companions.items() if isinstance(companions, dict) else ():
        yield path.with_name(Path(name).name or path.name), expected


def _output_error(path: Path, error: OSError) -> OutputError:
    reasons = {
        errno.ENOSPC: "no space is left on the device",
        errno.EACCES: "permission denied",
        errno.EROFS: "the file system is read-only",
        errno.ENOTDIR: "a part of the path is a file",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return OutputError(f"cannot write {path}: {reason}", fix="choose another output path, or free the place")


def check_writable(path: Path) -> None:
    """Fail now, before the work, if the file `path` could not be created later. Leaves nothing behind.

    Raises:
        OutputError: with the reason.
    """
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder", fix="give the name of a file")
    if path.exists() and not path.is_file():
        raise OutputError(
            f"cannot write {path}: it is a device or a pipe, and would be replaced", fix="give the name of a file"
        )
    try:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _output_error(path, error) from None


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back for a moment in which there is no good place to stop."""
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
def _stage_beside(target: Path) -> Iterator[Path]:
    """A private folder beside `target`, removed in the end; with it go parent folders that were made for nothing."""
    made: list[Path] = []
    stage: Path | None = None
    try:
        with _undisturbed():
            made = [parent for parent in target.absolute().parents if not parent.exists()]
            target.parent.mkdir(parents=True, exist_ok=True)
            stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
            stage.chmod(0o755)
        yield stage
    except OSError as error:
        raise _output_error(target, error) from None
    finally:
        with _undisturbed():
            if stage is not None:
                shutil.rmtree(stage, ignore_errors=True)
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()


@contextlib.contextmanager
def staged_folder(target: Path, *, marker: str) -> Iterator[Path]:
    """A folder to fill that becomes `target` when the block ends well, and vanishes otherwise.

    An existing `target` is replaced only if it is empty or holds the file `marker`, which is what
    tells our own output from a folder of someone else's.

    Raises:
        OutputError: `target` cannot be written, or is a folder that is not ours to replace.
    """
    if target.exists():
        if not target.is_dir():
            raise OutputError(f"cannot write {target}: it is a file", fix="give a folder with -o")
        if any(target.iterdir()) and not (target / marker).is_file():
            raise OutputError(f"{target} is not empty and was not made by aff-deploy", fix="give a new or empty folder with -o")
    with _stage_beside(target) as stage:
        yield stage
        with _undisturbed():
            retired = stage.with_suffix(".old")
            if target.exists():
                os.rename(target, retired)
            try:
                os.rename(stage, target)
            except OSError:
                if retired.exists():
                    os.rename(retired, target)
                raise
            shutil.rmtree(retired, ignore_errors=True)


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A path to write to, in a private folder beside `path`; moved into place when the block ends well.

    Files that the block leaves next to it (external data, manifest) move with it, the staged file
    itself last, so that whoever sees the file sees its companions too.

    Raises:
        OutputError: the place cannot be written.
    """
    check_writable(path)
    with _stage_beside(path) as stage:
        yield stage / path.name
        companions = [item for item in sorted(stage.iterdir()) if item.name != path.name]
        with _undisturbed():
            for item in [*companions, stage / path.name]:
                os.replace(item, path.parent / item.name)


def write_manifest(path: Path, facts: Mapping[str, Any], *, companions: Sequence[Path] = ()) -> dict[str, Any]:
    """Write the manifest of the file at `path` beside it and return it.

    Args:
        path: the file.
        facts: what to say of it.
        companions: files beside it that it needs (external weights); their hashes are recorded too.
    """
    manifest = {"format": MANIFEST_FORMAT, "file": path.name, "sha256": sha256(path), "bytes": path.stat().st_size}
    manifest["companions"] = {companion.name: sha256(companion) for companion in companions}
    manifest |= {"versions": versions(), **facts}
    manifest_path(path).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest
