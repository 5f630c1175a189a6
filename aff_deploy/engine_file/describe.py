"""What can be said of an engine without a GPU and without its library."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from aff_deploy.artifact import is_input, open_input, sha256
from aff_deploy.engine_file.check import check_onnx, read_plan
from aff_deploy.engine_file.manifest import read_engine_manifest
from aff_deploy.errors import EngineError

MAGIC = {b"ftrt": "TensorRT", b"vtrt": "TensorRT-RTX"}
"""The first four bytes of an engine, by the library that wrote it."""


SUFFIXES = (".engine", ".plan", ".trt")


def is_engine(path: Path) -> bool:
    """Whether a file is meant as an engine: by its name, or by its first bytes."""
    if path.suffix in SUFFIXES or not is_input(path):
        return path.suffix in SUFFIXES
    with open_input(path) as file:
        return file.read(4) in MAGIC


def describe_engine(path: Path) -> dict[str, Any]:
    """The document of ``inspect model.engine --json``; nothing of the engine is run.

    Returns:
        ``file``, ``bytes``, ``sha256``; ``written_by``, the library that its first bytes name, or None; ``intact``,
        whether it is the engine that its manifest describes; ``problem`` and ``fix``, why it would not be loaded;
        ``proven``, what holds of these very bytes: precision and checks, None unless intact; ``onnx``, ``same``,
        ``changed`` or ``absent`` for the file it was built from; and ``manifest``, the document beside it, where it
        can be believed.

    Raises:
        EngineError: there is no such file, or it cannot be read.
    """
    with open_input(path, error=EngineError, fix="give the path of an engine") as file:
        magic = file.read(4)
        size = os.fstat(file.fileno()).st_size
    found = {"file": str(path), "bytes": size, "sha256": sha256(path)}
    document: dict[str, Any] = {**found, "written_by": MAGIC.get(magic), "intact": False, "problem": None, "fix": None}
    document |= {"proven": None, "onnx": "absent", "manifest": None}
    try:
        manifest = read_engine_manifest(path)
        document["manifest"] = dict(manifest.facts)
        read_plan(path, manifest)
        document["intact"] = True
        proven = manifest.proven
        document["proven"] = {"precision": proven and str(proven), "checks": manifest.facts["checks"]}
        document["onnx"] = "same" if manifest.onnx is not None and is_input(manifest.onnx) else "absent"
        check_onnx(manifest)
    except EngineError as error:
        document |= {"problem": error.message, "fix": error.fix}
        if document["intact"]:
            document["onnx"] = "changed"
    return document
