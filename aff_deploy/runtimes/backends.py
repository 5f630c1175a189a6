"""TensorRT and TensorRT-RTX: one API, and the one table of what differs."""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import dataclass
from types import ModuleType

from aff_deploy.errors import MissingDependency, UsageError


@dataclass(frozen=True)
class Backend:
    """A library that builds and runs engines."""

    name: str
    """What ``--backend`` and manifests call it."""
    title: str
    """What messages call it."""
    module: str
    """The Python module, imported by `load` alone."""
    package: str
    """The registry's package that brings the module."""
    extra: str
    """The extra of aff-deploy that brings the package."""
    oldest: int
    """The oldest major version that the calls made here fit."""
    plugins: bool
    """Takes plugins. Where not, none may even be registered: parsing a node that resolves to one aborts the process."""
    timing_cache: bool
    """Takes a timing cache. Where not, setting one asks for a GPU."""
    hardware_compatibility: bool
    """Can make an engine for other GPUs than the one it builds on."""
    version_compatible: bool
    """Can make an engine that later versions run. TensorRT-RTX has the flag, but not the library that it asks for."""
    strip_weights: bool
    """Can leave the weights out. TensorRT-RTX has the flag, but without a GPU the build fails."""
    needs_gpu_to_build: bool
    compiles_at_run_time: bool
    """Finishes its kernels when an engine is first run: has a cache for them, and captures CUDA graphs itself."""
    compute_capabilities: tuple[str, ...]
    """GPU architectures that an engine can be built for, as ``8.9``; empty where it is built for the GPU that is there."""
    default_capabilities: tuple[str, ...]
    """Those of an engine for which none were named; ``12.0+`` is 12.0 and later."""


TENSORRT = Backend(
    name="tensorrt",
    title="TensorRT",
    module="tensorrt",
    package="tensorrt",
    extra="gpu",
    oldest=10,
    plugins=True,
    timing_cache=True,
    hardware_compatibility=True,
    version_compatible=True,
    strip_weights=True,
    needs_gpu_to_build=True,
    compiles_at_run_time=False,
    compute_capabilities=(),
    default_capabilities=(),
)
TENSORRT_RTX = Backend(
    name="tensorrt-rtx",
    title="TensorRT-RTX",
    module="tensorrt_rtx",
    package="tensorrt-rtx-cu13",
    extra="rtx",
    oldest=1,
    plugins=False,
    timing_cache=False,
    hardware_compatibility=False,
    version_compatible=False,
    strip_weights=False,
    needs_gpu_to_build=False,
    compiles_at_run_time=True,
    compute_capabilities=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
    default_capabilities=("8.0", "8.6", "8.9", "12.0+"),
)
FIRST_FP8_CAPABILITY = (8, 9)
"""The oldest GPU architecture that computes in fp8."""
BACKENDS = (TENSORRT, TENSORRT_RTX)
"""In order of preference."""


def is_installed(backend: Backend) -> bool:
    """Whether the backend's module can be found; it is not imported."""
    spec = importlib.util.find_spec(backend.module)
    # A package of type stubs leaves a folder of the module's name, which Python takes for a namespace package.
    return spec is not None and spec.origin is not None


def named(name: str) -> Backend:
    """The backend of that name, installed or not.

    Raises:
        UsageError: there is none.
    """
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise UsageError(f"there is no backend {name!r}", fix=f"use {' or '.join(b.name for b in BACKENDS)}")


def find_backend(name: str | None = None) -> Backend:
    """The backend of that name; by default the first of `BACKENDS` that is installed. Imports nothing.

    Raises:
        UsageError: there is no backend of that name.
        MissingDependency: it, or any, is not installed.
    """
    if name is not None:
        backend = named(name)
        if not is_installed(backend):
            raise MissingDependency(f"{backend.title} is not installed", extra=backend.extra)
        return backend
    for backend in BACKENDS:
        if is_installed(backend):
            return backend
    titles = " nor ".join(backend.title for backend in BACKENDS)
    lines = " or ".join(f"pip install 'aff-deploy[{backend.extra}]'" for backend in reversed(BACKENDS))
    raise MissingDependency(f"neither {titles} is installed", fix=lines)


def load(backend: Backend) -> ModuleType:
    """The backend's module, imported.

    A caller lets mypy check its calls against TensorRT's stubs, which fit both::

        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = load(backend)

    Raises:
        MissingDependency: it is not installed, its library cannot be loaded, or it is too old.
    """
    if not is_installed(backend):
        raise MissingDependency(f"{backend.title} is not installed", extra=backend.extra)
    mend = f"pip install --force-reinstall '{backend.package}>={backend.oldest}'"
    try:
        module = importlib.import_module(backend.module)
    except Exception as error:  # the module only fetches its library: what it raises without one depends on the loader
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MissingDependency(f"{backend.title} is installed but does not load ({reason})", fix=mend) from error
    if (found := version_of(module)).split(".")[0].isdecimal() and int(found.split(".")[0]) < backend.oldest:
        raise MissingDependency(f"{backend.title} {found} is too old", fix=mend)
    return module


def version(backend: Backend) -> str:
    """The version of the backend's library, as ``1.7.1.116``; imports it.

    Raises:
        MissingDependency: as `load`.
    """
    return version_of(load(backend))


def version_of(module: ModuleType) -> str:
    """The version that a loaded backend module states, ``unknown`` if none."""
    return str(getattr(module, "__version__", "unknown"))


def parse_capability(text: str) -> tuple[int, int]:
    """``8.9`` as (8, 9).

    Raises:
        UsageError: the text is not of that form.
    """
    match = re.fullmatch(r"(\d{1,3})\.(\d)", text.strip())
    if match is None:
        raise UsageError(f"cannot read compute capability {text!r}", fix="write it as 8.9")
    return int(match[1]), int(match[2])


def capability_member(text: str) -> str:
    """``8.9`` as ``SM89``, the name in TensorRT-RTX's ``ComputeCapability``."""
    major, minor = parse_capability(text)
    return f"SM{major}{minor}"
