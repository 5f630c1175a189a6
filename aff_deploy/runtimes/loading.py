"""An engine on its way from a checked file into memory: library, GPU and tensors fit, and no host code comes along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from aff_deploy.artifact import is_input, sha256
from aff_deploy.engine_file import EngineManifest, check_capability
from aff_deploy.errors import EngineError, UsageError
from aff_deploy.runtimes import shape_text
from aff_deploy.runtimes.backends import Backend, named, parse_capability
from aff_deploy.runtimes.cuda import Cuda
from aff_deploy.spec import ShapeProfile, TensorSpec

if TYPE_CHECKING:
    import tensorrt as trt

DTYPES = {
    **{"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "UINT8": "uint8"},
    **{"INT32": "int32", "INT64": "int64", "BOOL": "bool"},
}
"""TensorRT's names of the types that inputs and outputs may have."""


def backend_of(manifest: EngineManifest) -> Backend:
    """The backend that a manifest names.

    Raises:
        EngineError: there is no such backend.
    """
    try:
        return named(manifest.backend)
    except UsageError as error:
        raise EngineError(f"{manifest.path}: {error.message}", fix=error.fix) from None


def check_gpu(manifest: EngineManifest, backend: Backend, capability: tuple[int, int]) -> None:
    """Hold engine and library against the GPU that is here.

    Raises:
        EngineError: the library has no engines for it, or this one was not built for it.
    """
    here = f"{capability[0]}.{capability[1]}"
    newest = max((parse_capability(text) for text in backend.compute_capabilities), default=capability)
    if backend.compute_capabilities and capability < newest and here not in backend.compute_capabilities:
        raise EngineError(
            f"{backend.title} runs on no GPU of compute capability {here}, which is what is here",
            fix=f"build it with TensorRT: {manifest.rebuild(backend='tensorrt')}",
        )
    check_capability(manifest, capability)


class Reasons:
    """The errors that the library has logged: its calls return None or False, and say why there."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def reason(self) -> str:
        """The first of them since the last call, in one line: later ones follow from it."""
        text = " ".join(self._lines[0].split()) if self._lines else "it gives no reason"
        self._lines.clear()
        return text


@dataclass
class Deserialized:
    """An engine in memory, with what must outlive it."""

    reasons: Reasons
    log: trt.ILogger
    runtime: trt.Runtime | None
    engine: trt.ICudaEngine | None

    def release(self) -> None:
        """Free the engine, then its runtime; the log goes last, with this object."""
        self.engine = None
        self.runtime = None


def plugin_of(manifest: EngineManifest, given: Path | None) -> Path | None:
    """The plugin library that an engine needs: `given`, or the one beside the engine; None where it needs none.

    Raises:
        EngineError: it is not there, or not the library that the engine was built with.
    """
    needed = manifest.facts.get("plugin")
    if not isinstance(needed, dict):
        return None
    library = given or manifest.path.with_name(Path(str(needed.get("file"))).name)
    if not is_input(library):
        raise EngineError(f"{manifest.path} needs the plugin library {library}, which is not there", fix="name it with plugin=")
    if sha256(library) != needed.get("sha256"):
        raise EngineError(
            f"{library} is another plugin library than {manifest.path} was built with",
            fix=f"build it again: {manifest.rebuild()}",
        )
    return library


def deserialize(
    module: Any, plan: bytes, device: Cuda, manifest: EngineManifest, title: str, plugin: Path | None = None
) -> Deserialized:
    """The engine of `plan`, whose manifest was checked. Host code in it is refused.

    Args:
        module: the backend's.
        plan: the serialised engine.
        device: where it will run.
        manifest: for messages.
        title: what messages call the library.
        plugin: a library of plugins to register first.

    Raises:
        EngineError: the library does not load it, with its reason.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = module
    lines: list[str] = []

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                lines.append(msg)

    reasons, log = Reasons(lines), Log()
    runtime = trt.Runtime(log)
    # An engine may carry a library of its own, which would run here with the rights of this process.
    runtime.engine_host_code_allowed = False
    with device.turn():
        if plugin is not None and runtime.get_plugin_registry().load_library(str(plugin)) is None:
            raise EngineError(
                f"{title} does not load the plugins of {plugin}: {reasons.reason()}", fix="build the library again"
            )
        # The stubs leave out that it may be None.
        engine = cast("trt.ICudaEngine | None", runtime.deserialize_cuda_engine(plan))
    if engine is None:
        raise EngineError(
            f"{title} does not load {manifest.path}: {reasons.reason()}", fix=f"build it again here: {manifest.rebuild()}"
        )
    return Deserialized(reasons, log, runtime, engine)


@dataclass(frozen=True)
class Tensor:
    """An input or output as the engine describes it; -1 is a dynamic size."""

    mode: str
    shape: tuple[int, ...]
    dtype: str
    on_host: bool


def tensors_of(engine: trt.ICudaEngine) -> dict[str, Tensor]:
    """The engine's inputs and outputs by name."""
    found = {}
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        dtype = engine.get_tensor_dtype(name).name
        mode, shape = engine.get_tensor_mode(name).name, sizes(engine.get_tensor_shape(name))
        found[name] = Tensor(mode, shape, DTYPES.get(dtype, dtype), bool(engine.is_shape_inference_io(name)))
    return found


def check_tensors(found: Mapping[str, Tensor], manifest: EngineManifest) -> None:
    """Hold the engine's inputs and outputs against the manifest's.

    Raises:
        EngineError: names, ranks, sizes or dtypes differ, or one is a shape on the host.
    """
    if on_host := [name for name, tensor in found.items() if tensor.on_host]:
        raise EngineError(
            f"{manifest.path} takes or gives the shape {on_host[0]!r} as values on the host, which is not supported",
            fix="make the shape a constant of the network",
        )
    fix = f"build it again: {manifest.rebuild()}"
    said = {
        spec.name: Tensor(mode, tuple(d if isinstance(d, int) else -1 for d in spec.shape), spec.dtype, False)
        for mode, specs in (("INPUT", manifest.inputs), ("OUTPUT", manifest.outputs))
        for spec in specs
    }
    for name in {**said, **found}:
        here, there = said.get(name), found.get(name)
        if here is None or there is None:
            where = "its manifest, not the engine" if there is None else "the engine, not its manifest"
            raise EngineError(f"{manifest.path}: {where}, has the tensor {name!r}", fix=fix)
        if (here.mode, here.dtype) != (there.mode, there.dtype) or not _agree(here.shape, there.shape):
            raise EngineError(f"{manifest.path} has {name!r} as {_text(there)}, its manifest as {_text(here)}", fix=fix)


def _text(tensor: Tensor) -> str:
    return f"{tensor.mode.lower()} {shape_text(tensor.shape)} {tensor.dtype}"


def sizes(dims: Any) -> tuple[int, ...]:
    """A shape of the library's as a tuple; -1 is a size not known yet."""
    return tuple(int(size) for size in dims)


def _agree(there: tuple[int, ...], said: tuple[int, ...]) -> bool:
    """Whether two shapes can be one; -1 is any size."""
    return len(there) == len(said) and all(a == b or -1 in (a, b) for a, b in zip(there, said, strict=True))


def profiles_of(engine: trt.ICudaEngine, inputs: Sequence[TensorSpec]) -> tuple[ShapeProfile, ...]:
    """The engine's shape profiles; a static input has its one shape in each."""
    found = []
    for index in range(max(1, engine.num_optimization_profiles)):
        rows: dict[str, list[tuple[int, ...]]] = {}
        for spec in inputs:
            if -1 in sizes(engine.get_tensor_shape(spec.name)):
                rows[spec.name] = [sizes(shape) for shape in engine.get_tensor_profile_shape(spec.name, index)]
            else:
                rows[spec.name] = [sizes(engine.get_tensor_shape(spec.name))] * 3
        low, usual, high = ({name: shapes[i] for name, shapes in rows.items()} for i in range(3))
        found.append(ShapeProfile(low, usual, high))
    return tuple(found)
