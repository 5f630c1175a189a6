"""``aff-deploy doctor``: what this machine can do, and what would let it do more."""

from __future__ import annotations

import platform
import sys
from importlib import metadata, util
from typing import Any

from aff_deploy import __version__
from aff_deploy.cli.console import print_json, table
from aff_deploy.cli.options import Json

# package, importable module, the extra that brings it, what it is for
PACKAGES = (
    ("numpy", "numpy", "", "everything"),
    ("onnx", "onnx", "", "everything"),
    ("onnx-graphsurgeon", "onnx_graphsurgeon", "", "optimize"),
    ("polygraphy", "polygraphy", "", "optimize"),
    ("safetensors", "safetensors", "", "weights"),
    ("torch", "torch", "cpu", "export, validate, deploy"),
    ("onnxscript", "onnxscript", "cpu", "export, deploy"),
    ("onnxruntime", "onnxruntime", "cpu", "validate, deploy, optimize --verify"),
    ("tensorrt-rtx-cu13", "tensorrt_rtx", "rtx", "build-engine"),
    ("tensorrt", "tensorrt", "gpu", "build-engine, running engines"),
    ("triton", "triton", "kernels", "optimize --plugin, build-engine --plugin, kernels in PyTorch"),
    ("pillow", "PIL", "images", "build-engine --calib FOLDER"),
)
# command, the modules that it needs
COMMANDS = (
    ("optimize, inspect", ("onnx", "onnx_graphsurgeon")),
    ("optimize --verify", ("onnx", "onnx_graphsurgeon", "onnxruntime")),
    ("optimize --plugin", ("onnx", "onnx_graphsurgeon", "triton")),
    ("export", ("torch", "onnxscript", "onnxruntime")),
    ("validate, deploy", ("torch", "onnxscript", "onnxruntime")),
    ("build-engine (TensorRT-RTX)", ("onnxruntime", "tensorrt_rtx")),
    ("build-engine (TensorRT)", ("onnxruntime", "tensorrt")),
)


def doctor(as_json: Json = False) -> None:
    """Show what works here, and what is missing."""
    document = diagnose()
    if as_json:
        print_json(document)
        return
    print(f"aff-deploy {document['aff_deploy']}, Python {document['python']}, {document['platform']}")
    rows = [(p["name"], p["version"] or "missing", p["used_by"]) for p in document["packages"]]
    print(table(rows, ("package", "version", "used by")))
    print(table([(name, "ready" if ready else "not here") for name, ready in document["commands"].items()], ("command", "")))
    if document["providers"]:
        print(f"  ONNX Runtime runs on: {', '.join(document['providers'])}")
    for line in document["missing"]:
        print(f"to get the rest: {line}")


def diagnose() -> dict[str, Any]:
    """The document of ``doctor --json``; imports none of what it looks for, save ONNX Runtime for its providers."""
    here = {module: _is_here(module) for _, module, _, _ in PACKAGES}
    missing = sorted({extra for _, module, extra, _ in PACKAGES if not here[module]})
    return {
        "aff_deploy": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "executable": sys.executable,
        "packages": [
            {"name": name, "version": _version(name) if here[module] else None, "extra": extra or None, "used_by": used_by}
            for name, module, extra, used_by in PACKAGES
        ],
        "commands": {name: all(here[module] for module in needed) for name, needed in COMMANDS},
        "providers": _providers() if here["onnxruntime"] else [],
        "missing": [f"pip install 'aff-deploy[{extra}]'" if extra else "pip install aff-deploy" for extra in missing],
    }


def _is_here(module: str) -> bool:
    spec = util.find_spec(module)
    # Type stubs alone leave a folder of the module's name, with nothing to import.
    return spec is not None and spec.origin is not None


def _version(package: str) -> str:
    # onnxruntime-gpu and the like provide the same module under another name.
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        others = (d for d in metadata.distributions() if d.name.startswith(f"{package}-"))
        return next((f"{d.version} ({d.name})" for d in others), "unknown")


def _providers() -> list[str]:
    # Imported where it is looked at: a broken installation is something that this command must survive.
    try:
        from aff_deploy.runtimes.onnxruntime import available_providers

        return list(available_providers())
    except Exception:
        return []
