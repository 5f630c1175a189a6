"""What a person may ask of a builder, and which backend can give it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aff_deploy.artifact import is_input, note_read
from aff_deploy.errors import UsageError
from aff_deploy.runtimes.backends import FIRST_FP8_CAPABILITY, Backend, parse_capability
from aff_deploy.spec import Precision

MAX_WORKSPACE = 2**20
"""MiB."""
HardwareCompatibility = Literal["none", "ampere+", "same-compute-capability"]


@dataclass(frozen=True)
class BuildOptions:
    """Settings of a builder; None and empty leave the builder's own default.

    Attributes:
        workspace: scratch memory that a layer may use at run time, in MiB.
        optimization_level: 0 (fast build) to 5 (fast engine).
        hardware_compatibility: whether the engine should run on other GPUs than the one it is built on.
        version_compatible: whether later TensorRT versions should run it.
        timing_cache: file of measured kernel times, read where it exists and written after the build.
        compute_capabilities: which GPUs the engine is for, such as ``("8.6", "8.9")``.
        strip_weights: leave the weights out; they are put in before use.
        plugin: library of the fused operator's TensorRT plugin, built from ``plugins/``.
        tf32: whether float32 convolutions may round their inputs to 10 bits of mantissa.
    """

    workspace: int | None = None
    optimization_level: int | None = None
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    timing_cache: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    strip_weights: bool = False
    plugin: Path | None = None
    tf32: bool = True

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without what was left at its default."""
        chosen: dict[str, Any] = {name: value for name, value in vars(self).items() if value != getattr(DEFAULTS, name)}
        for name in ("timing_cache", "plugin"):
            if isinstance(path := getattr(self, name), Path):
                chosen[name] = path.name
        if self.compute_capabilities:
            chosen["compute_capabilities"] = list(self.compute_capabilities)
        return chosen


DEFAULTS = BuildOptions()


def check_options(options: BuildOptions, backend: Backend, precision: Precision = Precision.FP32) -> None:
    """Refuse before any work what `backend` cannot give, or not in `precision`.

    Raises:
        UsageError: naming the option, and what to do instead.
    """
    for option, fix in _refused(options, backend):
        raise UsageError(f"{option} is not for {backend.title}", fix=fix)
    if options.optimization_level is not None and not 0 <= options.optimization_level <= 5:
        raise UsageError(f"--builder-optimization-level {options.optimization_level} is out of range", fix="give 0 to 5")
    if options.workspace is not None and not 1 <= options.workspace <= MAX_WORKSPACE:
        raise UsageError(f"--workspace {options.workspace} is no size", fix=f"give MiB, 1 to {MAX_WORKSPACE}")
    if options.plugin is not None:
        if not is_input(options.plugin):
            raise UsageError(f"there is no plugin library {options.plugin}", fix="build it: docs/plugin.md says how")
        note_read(options.plugin)
    known = backend.compute_capabilities
    for capability in options.compute_capabilities:
        if capability not in known:
            raise UsageError(
                f"{backend.title} builds no engine for compute capability {capability}", fix=f"it knows {', '.join(known)}"
            )
        if precision is Precision.FP8 and parse_capability(capability) < FIRST_FP8_CAPABILITY:
            raise UsageError(
                f"GPUs of compute capability {capability} have no fp8", fix="leave it out, or use --int8 or --fp16"
            )


def _refused(options: BuildOptions, backend: Backend) -> Iterator[tuple[str, str]]:
    leave_out: Mapping[str, tuple[object, bool, str]] = {
        "--timing-cache": (options.timing_cache, backend.timing_cache, "leave it out: it builds without measuring kernels"),
        "--hardware-compatibility": (
            options.hardware_compatibility != "none",
            backend.hardware_compatibility,
            "leave it out: its engines run on several GPU generations; choose them with --compute-capability",
        ),
        "--version-compatible": (
            options.version_compatible,
            backend.version_compatible,
            "leave it out, and build again for another version",
        ),
        "--plugin": (
            options.plugin,
            backend.plugins,
            "leave it out: it takes no plugins, and expands the fused operator instead",
        ),
        "--strip-weights": (options.strip_weights, backend.strip_weights, "leave it out, or use --backend tensorrt"),
        "--compute-capability": (
            options.compute_capabilities,
            bool(backend.compute_capabilities),
            "leave it out: it builds for the GPU that is here; see --hardware-compatibility",
        ),
    }
    for option, (asked, given, fix) in leave_out.items():
        if asked and not given:
            yield option, fix
