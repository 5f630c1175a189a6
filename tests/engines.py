"""Engine files to test with: bytes that no library wrote, and the manifest that belongs to them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from aff_deploy.artifact import staged_file
from aff_deploy.engine_file import write_engine

PLAN = b"vtrt" + np.random.default_rng(0).bytes(100_000)
ONNX = b"the model that the engine was built from"


def engine_facts(**changes: Any) -> dict[str, Any]:
    """Facts of a dynamic fp16 engine of one input x and one output y."""
    facts = {
        "backend": "tensorrt-rtx",
        "library_version": "1.7.1.116",
        "compute_capabilities": ["8.0", "8.9", "12.0+"],
        "precision": {"asked": "fp16", "proven": "fp16"},
        "onnx": {"file": "m.onnx", "sha256": hashlib.sha256(ONNX).hexdigest()},
        "typed": {"sha256": hashlib.sha256(b"typed").hexdigest(), "precision": "fp16"},
        "inputs": [{"name": "x", "shape": ["n", 3], "dtype": "float32"}],
        "outputs": [{"name": "y", "shape": ["n", 3], "dtype": "float32"}],
        "profiles": [{"min": {"x": [1, 3]}, "opt": {"x": [4, 3]}, "max": {"x": [8, 3]}}],
        "options": {"version_compatible": False},
        "checks": [{"check": "parity", "on": "typed ONNX, CPU", "passed": True}],
        "seconds": {"build": 1.5},
        "weights_bytes": 12,
    }
    return {**facts, **changes}


def write_test_engine(path: Path, plan: bytes = PLAN, **changes: Any) -> dict[str, Any]:
    """An engine at `path` with its manifest, the ONNX file beside it."""
    with staged_file(path) as staged:
        manifest = write_engine(plan, staged, engine_facts(**changes))
    path.with_name("m.onnx").write_bytes(ONNX)
    return manifest
