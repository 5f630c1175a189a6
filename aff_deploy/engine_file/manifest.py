"""The manifest of an engine: written, read again, and every field of it held to its type."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aff_deploy.artifact import MANIFEST_FORMAT, MAX_JSON, is_input, manifest_path, read_json, write_manifest
from aff_deploy.errors import AffDeployError, EngineError
from aff_deploy.spec import Precision, ShapeProfile, TensorSpec

HEAD_BYTES = 64 * 2**10
"""So much of an engine's beginning is hashed by itself: it tells a cut file from another file."""
OWN = ("format", "file", "sha256", "bytes", "companions", "versions", "head_sha256", "seal")
"""Keys of a manifest that are computed here; the caller's facts may not carry them."""


@dataclass(frozen=True)
class EngineManifest:
    """What the manifest of an engine says.

    Attributes:
        path: of the engine.
        facts: the whole document.
        backend, library_version: what built it.
        compute_capabilities: GPU architectures it was built for, as ``8.9``; ``8.0+`` is 8.0 and later.
        asked, proven: the precision that was requested, and the one read back from the engine (None: could not be).
        inputs, outputs: names, shapes (a name for a dynamic dimension) and dtypes; examples are the first profile's ``opt``.
        profiles: the ranges of dynamic shapes; empty where all shapes are static.
    """

    path: Path
    facts: Mapping[str, Any]
    backend: str
    library_version: str
    compute_capabilities: tuple[str, ...]
    asked: Precision
    proven: Precision | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[ShapeProfile, ...]

    @property
    def version_compatible(self) -> bool:
        """Whether it was built to run on later versions of its library too."""
        return bool(self.facts["options"].get("version_compatible", False))

    @property
    def onnx(self) -> Path | None:
        """Where the ONNX file that it was built from would lie beside it; None if it was built from none."""
        name = self.facts["onnx"].get("file")
        return self.path.with_name(name) if name else None

    def rebuild(
        self, *, onnx: Path | None = None, precision: Precision | None = None, backend: str = "", options: str = ""
    ) -> str:
        """The command line that builds this engine again."""
        words = ["aff-deploy", "build-engine", str(onnx or self.onnx or "MODEL.onnx"), "-o", str(self.path)]
        words += ["--backend", backend or self.backend]
        precision = precision or self.asked
        words += [f"--{precision}"] if precision is not Precision.FP32 else []
        words += ["--calib", "DATA.npz"] if precision in (Precision.INT8, Precision.FP8) else []
        if len(self.profiles) == 1 and any(spec.is_dynamic for spec in self.inputs):
            for kind, shapes in vars(self.profiles[0]).items():
                for name, shape in shapes.items():
                    words += [f"--{kind}-shapes", f"{name}:{'x'.join(map(str, shape))}"]
        return shlex.join(words) + (f" {options}" if options else "")


def write_engine(plan: bytes | memoryview, path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write an engine and its manifest ``<name>.json`` into a staged place, and return the manifest.

    Args:
        plan: the serialised engine.
        path: a path from `artifact.staged_file`.
        facts: what to say of the engine, for JSON. Needed are ``backend``, ``library_version``, ``compute_capabilities``,
            ``precision`` {asked, proven}, ``onnx`` {file, sha256}, ``typed`` {sha256, ...}, ``inputs`` and ``outputs``
            [{name, shape, dtype}], ``profiles`` [{min, opt, max}], ``options``, ``checks``, ``seconds`` and
            ``weights_bytes``; ``plugin`` {file, sha256} where there is one.

    Raises:
        ValueError: the facts do not make a manifest that could be read again.
    """
    if taken := [key for key in OWN if key in facts]:
        raise ValueError(f"facts carry {', '.join(taken)}, which the manifest computes itself")
    head = hashlib.sha256(memoryview(plan).cast("B")[:HEAD_BYTES]).hexdigest()
    with open(path, "wb") as file:
        file.write(plan)
    whole = json.loads(json.dumps(dict(facts), allow_nan=False))
    beside = [other for other in sorted(path.parent.iterdir()) if other not in (path, manifest_path(path))]
    manifest = write_manifest(path, {**whole, "head_sha256": head}, companions=beside)
    manifest["seal"] = _seal(manifest)
    _parse(path, manifest)
    text = json.dumps(manifest, indent=2) + "\n"
    if len(text.encode()) > MAX_JSON:
        raise ValueError(f"the manifest has {len(text)} characters, at most {MAX_JSON} bytes are read again")
    manifest_path(path).write_text(text, encoding="utf-8")
    return manifest


def _seal(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_engine_manifest(path: Path) -> EngineManifest:
    """The manifest beside the engine `path`; the engine itself is not read.

    Raises:
        EngineError: there is none, or it is not one, or it was edited by hand.
    """
    again = f"build the engine again: aff-deploy build-engine MODEL.onnx -o {shlex.quote(str(path))}"
    beside = manifest_path(path)
    if not is_input(path):
        raise EngineError(f"{path} does not exist or is not a file", fix="give the path of an engine")
    if not beside.exists():
        raise EngineError(f"{path} has no manifest {beside.name} beside it, so nobody vouches for what it runs", fix=again)
    manifest = read_json(beside, what="manifest", error=EngineError, fix=again)
    try:
        parsed = _parse(path, manifest)
    except ValueError as error:
        raise EngineError(f"manifest {beside} is not an engine's: {error}", fix=again) from None
    if manifest["seal"] != _seal(manifest):
        raise EngineError(f"manifest {beside} was changed after it was written: its seal does not fit", fix=again)
    if parsed.proven not in (None, parsed.asked):
        raise EngineError(f"manifest {beside} says that {parsed.asked} was asked for and {parsed.proven} proven", fix=again)
    return parsed


KINDS: Mapping[str, type] = {
    **{"format": int, "file": str, "sha256": str, "bytes": int, "head_sha256": str, "seal": str},
    **{"backend": str, "library_version": str, "compute_capabilities": list, "precision": dict, "onnx": dict, "typed": dict},
    **{"inputs": list, "outputs": list, "profiles": list, "options": dict, "checks": list, "seconds": dict},
    "weights_bytes": int,
}


def _parse(path: Path, manifest: Mapping[str, Any]) -> EngineManifest:
    """The typed form of a manifest.

    Raises:
        ValueError: a field is missing or of another type, in one line.
    """
    if "format" in manifest and manifest["format"] != MANIFEST_FORMAT:
        raise ValueError(f"its format is {manifest['format']!r}, this aff-deploy reads {MANIFEST_FORMAT}")
    for key, kind in KINDS.items():
        _typed(manifest, key, kind, "")
    for where, key in (
        (manifest, "sha256"),
        (manifest, "head_sha256"),
        (manifest["onnx"], "sha256"),
        (manifest["typed"], "sha256"),
    ):
        if not re.fullmatch("[0-9a-f]{64}", _typed(where, key, str, "")):
            raise ValueError(f"{key!r} is no SHA-256")
    if manifest["bytes"] < 1 or manifest["weights_bytes"] < 0:
        raise ValueError(f"'bytes' is {manifest['bytes']}, 'weights_bytes' {manifest['weights_bytes']}")
    for key in ("backend", "library_version"):
        if not re.fullmatch(r"[\w.+-]{1,64}", manifest[key], re.ASCII):
            raise ValueError(f"{key!r} is {manifest[key][:64]!r}")
    _check_onnx_facts(manifest["onnx"])
    _check_told(manifest)
    capabilities = tuple(manifest["compute_capabilities"])
    if not capabilities or any(not isinstance(c, str) or not re.fullmatch(r"[0-9]{1,3}\.[0-9]\+?", c) for c in capabilities):
        raise ValueError(f"'compute_capabilities' is {list(capabilities)!r}, not a list like ['8.6', '12.0+']")
    precision = manifest["precision"]
    proven = precision.get("proven", "")
    try:
        asked, found = Precision(precision.get("asked")), None if proven is None else Precision(proven)
        inputs = tuple(_spec(value) for value in manifest["inputs"])
        outputs = tuple(_spec(value) for value in manifest["outputs"])
    except AffDeployError as error:
        raise ValueError(error.message) from None
    names = [spec.name for spec in (*inputs, *outputs)]
    if not outputs or len(set(names)) != len(names):
        raise ValueError("its inputs and outputs are not one or more, each of its own name")
    profiles = tuple(_profile(value, inputs) for value in manifest["profiles"])
    if not profiles and any(spec.is_dynamic for spec in inputs):
        raise ValueError("'profiles' is empty, but an input has a dynamic shape")
    if profiles:
        inputs = tuple(TensorSpec(s.name, s.shape, s.dtype, profiles[0].opt[s.name]) for s in inputs)
    backend, version = manifest["backend"], manifest["library_version"]
    return EngineManifest(path, manifest, backend, version, capabilities, asked, found, inputs, outputs, profiles)


def _check_onnx_facts(onnx: Mapping[str, Any]) -> None:
    companions = onnx.get("companions", {})
    if not isinstance(companions, dict):
        raise ValueError("'onnx.companions' is not an object")
    for name in ([] if onnx.get("file") is None else [onnx["file"]]) + list(companions):
        # They become paths to look at, so none may lead out of the engine's folder.
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name or not name.isprintable():
            raise ValueError(f"'onnx' names {name!r}, not a file beside it")


def _check_told(manifest: Mapping[str, Any]) -> None:
    """Hold to its type what is only told to people."""
    for check in manifest["checks"]:
        if not isinstance(check, dict) or not all(isinstance(check.get(key, ""), str) for key in ("what", "on", "against")):
            raise ValueError("'checks' is not a list of objects that say what was compared")
    if not all(isinstance(value, (int, float)) for value in manifest["seconds"].values()):
        raise ValueError("'seconds' holds something else than numbers")
    kept = manifest["typed"].get("kept_wide", [])
    if not isinstance(kept, list) or not all(isinstance(site, dict) for site in kept):
        raise ValueError("'typed.kept_wide' is not a list of objects")
    proof = manifest["precision"].get("proof")
    counts = proof if isinstance(proof, dict) else {"wide_by_design": [], "in_precision": 0, "nodes": 0}
    _typed(counts, "wide_by_design", list, "proof ")
    for key in ("in_precision", "nodes"):
        _typed(counts, key, int, "proof ")


def _typed(where: Mapping[str, Any], key: str, kind: type, prefix: str) -> Any:
    if key not in where:
        raise ValueError(f"{prefix}{key!r} is missing")
    # bool is an int to Python, and no number to a reader.
    if not isinstance(where[key], kind) or isinstance(where[key], bool):
        raise ValueError(f"{prefix}{key!r} is a {type(where[key]).__name__}, not a {kind.__name__}")
    return where[key]


def _spec(value: object) -> TensorSpec:
    if not isinstance(value, dict):
        raise ValueError("an input or output is not an object")
    shape = _typed(value, "shape", list, "tensor ")
    if len(shape) > 8 or any(isinstance(dim, bool) or not isinstance(dim, (int, str)) or dim == "" for dim in shape):
        raise ValueError(f"'shape' is {str(shape)[:80]}: up to eight sizes and names are expected")
    return TensorSpec(_typed(value, "name", str, "tensor "), tuple(shape), _typed(value, "dtype", str, "tensor "))


def _profile(value: object, inputs: tuple[TensorSpec, ...]) -> ShapeProfile:
    if not isinstance(value, dict):
        raise ValueError("a profile is not an object")
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for kind in ("min", "opt", "max"):
        by_name = _typed(value, kind, dict, "profile ")
        shapes[kind] = {spec.name: tuple(_typed(by_name, spec.name, list, f"profile {kind} ")) for spec in inputs}
    for spec in inputs:
        rows = [shapes[kind][spec.name] for kind in ("min", "opt", "max")]
        whole = all(isinstance(d, int) and not isinstance(d, bool) for row in rows for d in row)
        if not whole or any(len(row) != len(spec.shape) for row in rows):
            raise ValueError(f"a profile does not fit input {spec.name!r} of shape {list(spec.shape)}")
        for low, usual, high, dim in zip(*rows, spec.shape, strict=True):
            if not 1 <= low <= usual <= high or (isinstance(dim, int) and (low, high) != (dim, dim)):
                raise ValueError(f"a profile of input {spec.name!r} goes from {low} over {usual} to {high}")
    return ShapeProfile(shapes["min"], shapes["opt"], shapes["max"])
