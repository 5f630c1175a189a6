"""An engine and the manifest beside it: written together, and checked before an engine is deserialised.

An engine is executable code. What may be loaded is one that lies beside the manifest it was written with,
byte for byte, and that was built from the ONNX file, with the library, for the GPU and in the precision
that are in play now. The manifest carries a seal, the hash of all else in it, so that an edit by hand shows.
The seal is no signature: whoever replaces both files can compute it. Load engines that you built, or that
came to you by a way you trust.
"""

from __future__ import annotations

from aff_deploy.engine_file.check import (
    LoadedEngine,
    check_capability,
    check_engine,
    check_library,
    check_onnx,
    check_precision,
    load_engine,
)
from aff_deploy.engine_file.describe import describe_engine, is_engine
from aff_deploy.engine_file.manifest import EngineManifest, read_engine_manifest, write_engine

__all__ = [
    "EngineManifest",
    "LoadedEngine",
    "check_capability",
    "check_engine",
    "check_library",
    "check_onnx",
    "check_precision",
    "describe_engine",
    "is_engine",
    "load_engine",
    "read_engine_manifest",
    "write_engine",
]
