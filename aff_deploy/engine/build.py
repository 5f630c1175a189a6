"""ONNX file to engine, by TensorRT or TensorRT-RTX: the calls are the same, and what differs stands in `Backend`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aff_deploy.artifact import read_input, staged_file
from aff_deploy.engine.complaints import build_failure, parse_failure
from aff_deploy.engine.listing import Listing, read_inspector, read_log
from aff_deploy.engine.options import BuildOptions
from aff_deploy.engine.progress import Phases
from aff_deploy.errors import EngineError
from aff_deploy.runtimes.backends import Backend, capability_member, load
from aff_deploy.spec import ShapeProfile

if TYPE_CHECKING:
    import tensorrt

WEIGHTS_LINE = "Total Weights Memory:"
LISTING_LINE = "Layers:"
MAX_CACHE_BYTES = 2**30
POLL = 0.05
"""Seconds between two looks at whether a person wants to stop."""


@dataclass(frozen=True)
class Plan:
    """A serialised engine, in memory, and what its builder said of it.

    Attributes:
        plan: the engine's bytes; a buffer that the library owns.
        listings: what it holds, one a GPU architecture for which the builder made an engine of its own.
        weight_bytes: size of the weights of one engine, where the builder told.
        warnings: the builder's, each once.
        seconds: time by stage (``parse``, ``build``).
    """

    plan: Any
    listings: tuple[Listing, ...]
    weight_bytes: int | None
    warnings: tuple[str, ...]
    seconds: dict[str, float]


@dataclass
class _Log:
    """What the library said, sorted."""

    errors: list[str] = field(default_factory=list)
    warnings: dict[str, None] = field(default_factory=dict)
    listings: list[str] = field(default_factory=list)
    weight_bytes: int | None = None

    def take(self, severity: str, message: str) -> None:
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(message)
        elif severity == "WARNING":
            self.warnings[message] = None
        elif message.startswith(LISTING_LINE):
            self.listings.append(message)
        elif message.startswith(WEIGHTS_LINE):
            size = message.removeprefix(WEIGHTS_LINE).split()[0]
            self.weight_bytes = int(size) if size.isdecimal() else self.weight_bytes


def build_plan(
    model: Path,
    backend: Backend,
    profiles: Sequence[ShapeProfile] = (),
    options: BuildOptions | None = None,
    *,
    progress: Callable[[str], None] | None = None,
) -> Plan:
    """Build an engine from an ONNX file.

    The library works in a thread of its own, so that this one can be interrupted: whatever is raised
    here while it works cancels the build, and goes on once the library has stopped.

    Args:
        model: an ONNX file; its types are the engine's (networks are strongly typed).
        backend: who builds.
        profiles: shapes of every input, one entry a profile; none where all are static.
        options: checked against `backend` by `check_options`.
        progress: called with the builder's phase, at most twice a second, from the building thread.

    Raises:
        EngineError: the parser or the builder refuses the model, naming the node where it is known.
        MissingDependency: the backend cannot be loaded here, or needs a GPU that is not there.
    """
    cancelled = threading.Event()
    outcome: list[Plan | BaseException] = []

    def work() -> None:
        try:
            outcome.append(_build(model, backend, profiles, options or BuildOptions(), progress, cancelled))
        except BaseException as error:
            outcome.append(error)

    load(backend)  # here: an import that a signal interrupts in another thread would leave the module half made
    thread = threading.Thread(target=work, name="engine-builder")
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL)
    except BaseException:
        cancelled.set()
        thread.join()
        raise
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return result


def _build(
    model: Path,
    backend: Backend,
    profiles: Sequence[ShapeProfile],
    options: BuildOptions,
    progress: Callable[[str], None] | None,
    cancelled: threading.Event,
) -> Plan:
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = load(backend)
    log = _Log()
    logger = _logger(backend, log)
    builder = _builder(backend, logger, log)
    if options.plugin is not None and builder.get_plugin_registry().load_library(str(options.plugin)) is None:
        raise build_failure(backend, log.errors or [f"the plugin library {options.plugin} does not load"])
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    start = time.perf_counter()
    if not parser.parse_from_file(str(model)):
        raise parse_failure(backend, [parser.get_error(i) for i in range(parser.num_errors)], log.errors)
    parsed = time.perf_counter()
    config = builder.create_builder_config()
    _configure(config, backend, options)
    for profile in profiles:
        shapes = builder.create_optimization_profile()
        for name in profile.opt:
            bounds = (trt.Dims(list(bound[name])) for bound in (profile.min, profile.opt, profile.max))
            shapes.set_shape(name, *bounds)
        if config.add_optimization_profile(shapes) < 0:
            raise build_failure(backend, log.errors)
    config.progress_monitor = _monitor(backend, Phases(progress), cancelled)
    cache = _read_timing_cache(config, options.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None or cancelled.is_set():
        raise build_failure(backend, log.errors)
    built = time.perf_counter()
    if cache is not None and options.timing_cache is not None:
        with staged_file(options.timing_cache) as staged:
            staged.write_bytes(cache.serialize())
    return Plan(
        plan=plan,
        listings=_listings(backend, logger, plan, log),
        weight_bytes=log.weight_bytes,
        warnings=tuple(log.warnings),
        seconds={"parse": round(parsed - start, 3), "build": round(built - parsed, 3)},
    )


def _logger(backend: Backend, log: _Log) -> tensorrt.ILogger:
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = load(backend)

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: tensorrt.ILogger.Severity, msg: str) -> None:
            log.take(severity.name, msg)

    return Logger()


def _monitor(backend: Backend, phases: Phases, cancelled: threading.Event) -> tensorrt.IProgressMonitor:
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = load(backend)

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            phases.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()


def _builder(backend: Backend, logger: tensorrt.ILogger, log: _Log) -> tensorrt.Builder:
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = load(backend)
    try:
        return trt.Builder(logger)
    except (TypeError, RuntimeError):  # what the bindings raise where the library returned nothing: no GPU, no driver
        raise build_failure(backend, log.errors) from None


def _configure(config: tensorrt.IBuilderConfig, backend: Backend, options: BuildOptions) -> None:
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = load(backend)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    flags = (
        (trt.BuilderFlag.TF32, options.tf32),
        (trt.BuilderFlag.VERSION_COMPATIBLE, options.version_compatible),
        # The lean runtime that would travel in the engine is code for the host, and running an engine refuses such.
        (trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME, options.version_compatible),
        (trt.BuilderFlag.STRIP_PLAN, options.strip_weights),
    )
    for flag, wanted in flags:
        (config.set_flag if wanted else config.clear_flag)(flag)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if backend.hardware_compatibility:
        config.hardware_compatibility_level = {
            "none": trt.HardwareCompatibilityLevel.NONE,
            "ampere+": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
            "same-compute-capability": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
        }[options.hardware_compatibility]
    if options.compute_capabilities:
        # TensorRT-RTX alone has these, and the stubs are TensorRT's.
        rtx: Any = trt
        target: Any = config
        target.num_compute_capabilities = len(options.compute_capabilities)
        for i, capability in enumerate(options.compute_capabilities):
            target.set_compute_capability(getattr(rtx.ComputeCapability, capability_member(capability)), i)


def _read_timing_cache(config: tensorrt.IBuilderConfig, path: Path | None) -> tensorrt.ITimingCache | None:
    if path is None:
        return None
    known = b""
    if path.exists():
        known = read_input(path, what="timing cache", error=EngineError, most=MAX_CACHE_BYTES, fix="name another")
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise EngineError(f"timing cache {path} is of another GPU or version", fix="delete it, or name another")
    return cache


def _listings(backend: Backend, logger: tensorrt.ILogger, plan: Any, log: _Log) -> tuple[Listing, ...]:
    """From the inspector where the engine can be loaded here, else from the builder's own report."""
    if not backend.needs_gpu_to_build:
        return tuple(read_log(message) for message in log.listings)
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = load(backend)
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise build_failure(backend, log.errors)
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return (read_inspector(text),)
