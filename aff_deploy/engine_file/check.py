"""What an engine must pass before a library sees a byte of it."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from aff_deploy.artifact import is_input, open_input, reason_of, sha256
from aff_deploy.engine_file.manifest import HEAD_BYTES, EngineManifest, read_engine_manifest
from aff_deploy.errors import EngineError, ModelError
from aff_deploy.spec import Precision


@dataclass(frozen=True)
class LoadedEngine:
    """The bytes that were checked, to be deserialised as they are, and their manifest."""

    plan: bytes
    manifest: EngineManifest


def check_engine(
    path: Path,
    *,
    onnx: Path | None = None,
    backend: str | None = None,
    library_version: str | None = None,
    compute_capability: tuple[int, int] | None = None,
    precision: Precision | None = None,
) -> EngineManifest:
    """Make every check of this file that the arguments allow; what is None is not compared.

    Args:
        path: the engine; its manifest lies beside it. The two may be renamed together.
        onnx: the model that it must have been built from. By default the file that the manifest names, where
            one lies beside the engine.
        backend, library_version: what would run it.
        compute_capability: of the GPU that would run it, as (8, 9).
        precision: that it must be proven to have.

    Raises:
        EngineError: naming what does not fit and the command that builds a fitting one.
        ModelError: `onnx` is not there.
    """
    manifest = load_engine(path, onnx=onnx).manifest
    if backend is not None:
        check_library(manifest, backend, library_version)
    if compute_capability is not None:
        check_capability(manifest, compute_capability)
    if precision is not None:
        check_precision(manifest, precision)
    return manifest


def load_engine(path: Path, *, onnx: Path | None = None) -> LoadedEngine:
    """The engine's bytes, read once: those that are returned are those that were hashed.

    Raises:
        EngineError: no or a damaged manifest; an engine that is empty, cut, altered, another, or stale.
        ModelError: `onnx` is not there.
    """
    manifest = read_engine_manifest(path)
    plan = read_plan(path, manifest)
    check_onnx(manifest, onnx)
    return LoadedEngine(plan, manifest)


def read_plan(path: Path, manifest: EngineManifest) -> bytes:
    """The engine's bytes, if they are those that its manifest describes.

    Raises:
        EngineError: the file is empty, cut, longer, altered or another.
    """
    expected: int = manifest.facts["bytes"]
    again = f"copy it again with its manifest, or build it again: {manifest.rebuild()}"
    try:
        with open_input(path, error=EngineError, fix="give the path of an engine") as file:
            size = os.fstat(file.fileno()).st_size
            # A file of another size is refused by its head: what a stranger put there is not read whole.
            plan = file.read(expected if size == expected else min(size, HEAD_BYTES))
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {reason_of(error)}", fix="check the file") from None
    size = len(plan) if size == expected else size
    head = min(HEAD_BYTES, expected)
    same_head = hashlib.sha256(memoryview(plan)[:head]).hexdigest() == manifest.facts["head_sha256"]
    if size == 0:
        raise EngineError(f"{path} is empty", fix=again)
    if size < expected and (same_head or size < head):
        raise EngineError(f"{path} is cut short: {size} of {expected} bytes are there", fix=again)
    if not same_head:
        raise EngineError(f"{path} is another file than the engine that its manifest describes", fix=again)
    if size > expected:
        raise EngineError(f"{path} has {size - expected} bytes after the engine's end", fix=again)
    if hashlib.sha256(plan).hexdigest() != manifest.facts["sha256"]:
        raise EngineError(f"{path} was altered after it was built: its SHA-256 is not the manifest's", fix=again)
    return plan


def check_onnx(manifest: EngineManifest, onnx: Path | None = None) -> None:
    """Hold the engine against the ONNX file it came from: `onnx`, or the one beside it, where there is one.

    The typed file that was made of the ONNX file on the way is accepted too.

    Raises:
        EngineError: the file is not the one that the engine was built from.
        ModelError: `onnx` is not there.
    """
    if onnx is not None and not is_input(onnx):
        raise ModelError(f"{onnx} does not exist or is not a file", fix="give the ONNX file that the engine was built from")
    source = onnx or manifest.onnx
    if source is None or not is_input(source):
        return
    recorded = manifest.facts["onnx"]
    found = sha256(source)
    changed = [] if found in (recorded["sha256"], manifest.facts["typed"]["sha256"]) else [source]
    if found == recorded["sha256"]:
        # Weights in files of their own do not show in the hash of the model.
        beside = {source.with_name(name): expected for name, expected in recorded.get("companions", {}).items()}
        changed += [path for path, expected in beside.items() if is_input(path) and sha256(path) != expected]
    if changed:
        raise EngineError(
            f"{manifest.path} is stale: it was built from another {changed[0].name} than {changed[0]}",
            fix=f"build it again: {manifest.rebuild(onnx=source)}",
        )


def check_library(manifest: EngineManifest, backend: str, version: str | None = None) -> None:
    """Hold the engine against the library that would run it.

    A library runs the engines of its own version. TensorRT also runs those of earlier versions that were built
    version-compatible.

    Args:
        manifest: of the engine.
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        version: of the library, as ``10.13.0.35``; None compares the backend alone.

    Raises:
        EngineError: the library will not run it.
    """
    if backend != manifest.backend:
        raise EngineError(
            f"{manifest.path} was built with {manifest.backend}, which {backend} cannot run",
            fix=f"run it with {manifest.backend}, or build it again without --backend {manifest.backend}",
        )
    built = manifest.library_version
    if version is None or version == built:
        return
    compatible = manifest.version_compatible and backend == "tensorrt"
    if compatible and _numbers(version) >= _numbers(built):
        return
    raise EngineError(
        f"{manifest.path} was built with {backend} {built}, here is {version}",
        fix=f"build it again here: {manifest.rebuild()}",
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def check_capability(manifest: EngineManifest, capability: tuple[int, int]) -> None:
    """Hold the engine against the GPU that would run it.

    Raises:
        EngineError: it was not built for the GPU's compute capability.
    """
    for text in manifest.compute_capabilities:
        major, minor = text.rstrip("+").split(".")
        built = (int(major), int(minor))
        if capability == built or (text.endswith("+") and capability >= built):
            return
    here = f"{capability[0]}.{capability[1]}"
    options = f"--compute-capability {here}" if manifest.backend == "tensorrt-rtx" else ""
    raise EngineError(
        f"{manifest.path} was built for compute capability {', '.join(manifest.compute_capabilities)}, this GPU has {here}",
        fix=f"build it for this GPU: {manifest.rebuild(options=options)}",
    )


def check_precision(manifest: EngineManifest, precision: Precision) -> None:
    """Hold the engine against the precision that is wanted.

    Raises:
        EngineError: another was read back from it, or none could be.
    """
    if manifest.proven is precision:
        return
    said = f"is {manifest.proven}" if manifest.proven else f"has no proof of its precision (asked was {manifest.asked})"
    raise EngineError(
        f"{manifest.path} {said}, wanted is {precision}", fix=f"build it again: {manifest.rebuild(precision=precision)}"
    )
