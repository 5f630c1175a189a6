"""The manifest that lies beside each file that is written, and in each folder.

The manifest of ``model.onnx`` is ``model.onnx.json``: what the file is (sha256), what it was made
from, with which versions, and what was proven about it. That of a folder is ``manifest.json`` in it, and
lists the folder's files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from aff_deploy.artifact.reading import is_input, open_input, read_json
from aff_deploy.errors import InputError

MANIFEST_FORMAT = 1
FOLDER_MANIFEST = "manifest.json"
RECORDED_PACKAGES = ("aff-deploy", "torch", "onnx", "onnxscript", "onnxruntime", "onnx-graphsurgeon", "numpy")
AGAIN = "make the file again, or delete its manifest"
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Artifact:
    """A file that was written, and its manifest."""

    path: Path
    manifest: Mapping[str, Any]


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        InputError: it is not there, or no regular file.
    """
    digest = hashlib.sha256()
    with open_input(path) as file:
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
        InputError: it is no manifest of ours, or speaks of another file than the one that is there.
    """
    beside = manifest_path(path)
    if not beside.exists():
        return None
    manifest = read_json(beside, what="manifest", fix=AGAIN)
    if not is_file_manifest(manifest):
        raise InputError(f"manifest {beside} is not one that aff-deploy wrote", fix=AGAIN)
    for file, expected in _described(path, manifest):
        if not is_input(file) or sha256(file) != expected:
            raise InputError(
                f"{file} is not the file that its manifest describes", fix="make it again, or delete the stale manifest"
            )
    return manifest


def is_file_manifest(document: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a manifest that `write_manifest` wrote, by the types of what stands in it."""
    companions, source = document.get("companions", {}), document.get("source", {})
    texts = (document.get("file"), document.get("sha256"), document.get("network", ""))
    return (
        _is_ours(document)
        and all(isinstance(text, str) for text in texts)
        and _SHA256.fullmatch(document["sha256"]) is not None
        and isinstance(companions, dict)
        and all(isinstance(value, str) for value in companions.values())
        and isinstance(source, dict)
        and all(isinstance(value, (str, type(None))) for value in source.values())
    )


def _is_ours(document: Mapping[str, Any]) -> bool:
    made_with = document.get("versions")
    return document.get("format") == MANIFEST_FORMAT and isinstance(made_with, dict) and "python" in made_with


def listed_files(folder: Path) -> frozenset[str] | None:
    """The names of the files that the manifest of `folder` lists, itself among them; None where it is not ours."""
    path = folder / FOLDER_MANIFEST
    if not is_input(path):
        return None
    try:
        document = read_json(path, what="manifest", fix=AGAIN, noted=False)
    except InputError:
        return None
    files = document.get("files")
    if not _is_ours(document) or not isinstance(document.get("name"), str) or not isinstance(files, dict):
        return None
    if any(Path(name).name != name or name in ("", ".", "..") for name in files):
        return None
    return frozenset({*files, FOLDER_MANIFEST})


def owned_beside(path: Path) -> frozenset[str]:
    """Names of the files beside `path` that a former run wrote together with it: its manifest, and what that lists."""
    beside = manifest_path(path)
    if not is_input(beside):
        return frozenset()
    try:
        document = read_json(beside, what="manifest", fix=AGAIN, noted=False)
    except InputError:
        return frozenset()
    if not is_file_manifest(document):
        return frozenset()
    return frozenset({beside.name, *document.get("companions", {})})


def _described(path: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[Path, object]]:
    """The files that a manifest vouches for, none outside its folder, with their hashes."""
    yield path, manifest.get("sha256")
    for name, expected in manifest.get("companions", {}).items():
        yield path.with_name(Path(name).name or path.name), expected


def write_manifest(path: Path, facts: Mapping[str, Any], *, companions: Sequence[Path] = ()) -> dict[str, Any]:
    """Write the manifest of the file at `path` beside it and return it.

    Args:
        path: the file.
        facts: what to say of it.
        companions: files beside it that were written with it (external weights); their hashes are recorded too.
    """
    manifest = {"format": MANIFEST_FORMAT, "file": path.name, "sha256": sha256(path), "bytes": path.stat().st_size}
    manifest["companions"] = {companion.name: sha256(companion) for companion in companions}
    manifest |= {"versions": versions(), **facts}
    manifest_path(path).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def write_folder_manifest(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``manifest.json`` into a staged folder whose other files are all there, and return it.

    Args:
        folder: from `staging.staged_folder`.
        facts: what to say of it; ``name`` is needed.
    """
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    manifest = {"format": MANIFEST_FORMAT, **facts, "files": files, "versions": versions()}
    text = json.dumps(manifest, indent=2, allow_nan=False)
    (folder / FOLDER_MANIFEST).write_text(text + "\n", encoding="utf-8")
    return manifest
