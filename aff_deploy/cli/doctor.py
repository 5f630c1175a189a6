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
    ("safetensors", "safetensors", "", "weights"),
    ("torch", "torch", "cpu", "networks: export, deploy, validate, convert-weights"),
    ("onnxscript", "onnxscript", "cpu", "export, deploy"),
    ("onnxruntime", "onnxruntime", "cpu", "export, deploy, validate, build-engine, optimize --verify"),
    ("tensorrt-rtx-cu13", "tensorrt_rtx", "rtx", "engines: build-engine, deploy"),
    ("tensorrt", "tensorrt", "gpu", "engines, on a GPU: build-engine, deploy"),
    ("triton", "triton", "kernels", "optimize --plugin, build-engine --plugin, kernels in PyTorch"),
    ("pillow", "PIL", "images", "data from folders of images"),
)
USED_PROVIDERS = ("CPUExecutionProvider",)
"""What ONNX Runtime is asked to run on; it may offer more."""
GPU = "a GPU"
# command, the modules that it needs, or a GPU
COMMANDS = (
    ("optimize, inspect", ("onnx", "onnx_graphsurgeon")),
    ("optimize --verify", ("onnx", "onnx_graphsurgeon", "onnxruntime")),
    ("optimize --plugin", ("onnx", "onnx_graphsurgeon", "triton")),
    ("export", ("torch", "onnxscript", "onnxruntime")),
    ("validate, deploy", ("torch", "onnxscript", "onnxruntime")),
    ("build-engine (TensorRT-RTX)", ("onnxruntime", "tensorrt_rtx")),
    ("build-engine (TensorRT)", ("onnxruntime", "tensorrt", GPU)),
    ("running an engine (TensorRT-RTX)", ("torch", "tensorrt_rtx", GPU)),
    ("running an engine (TensorRT)", ("torch", "tensorrt", GPU)),
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
    print(f"  GPUs      {document['gpus'] or 'none'}: an engine runs on one; all else runs without")
    if document["providers"]:
        used = ", ".join(name for name in document["providers"] if name in USED_PROVIDERS)
        print(f"  providers {used}: what ONNX Runtime is used with here")
    for line in document["missing"]:
        print(f"to get the rest: {line}")


def diagnose() -> dict[str, Any]:
    """The document of ``doctor --json``; imports none of what it looks for, save ONNX Runtime for its providers."""
    here = {module: _is_here(module) for _, module, _, _ in PACKAGES}
    gpus = count_gpus()
    ready = {**here, GPU: gpus > 0}
    missing = sorted({extra for _, module, extra, _ in PACKAGES if not here[module]} - (set() if gpus else {"gpu"}))
    return {
        "aff_deploy": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "executable": sys.executable,
        "packages": [
            {"name": name, "version": _version(name) if here[module] else None, "extra": extra or None, "used_by": used_by}
            for name, module, extra, used_by in PACKAGES
        ],
        "commands": {name: all(ready[thing] for thing in needed) for name, needed in COMMANDS},
        "gpus": gpus,
        "providers": _providers() if here["onnxruntime"] else [],
        "missing": [f"pip install 'aff-deploy[{extra}]'" if extra else "pip install aff-deploy" for extra in missing],
    }


def count_gpus() -> int:
    """NVIDIA GPUs that the driver offers here, without PyTorch: 0 where there is no driver."""
    import ctypes

    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value


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
