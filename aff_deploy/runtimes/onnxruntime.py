"""ONNX Runtime: runs a model file on the CPU, or wherever its execution providers reach."""

from __future__ import annotations

import importlib
import mmap
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from aff_deploy.artifact import check_input, confine_libraries, open_input, scratch_folder
from aff_deploy.errors import MissingDependency, ModelError
from aff_deploy.runtimes import Array, Feeds, check_feeds, shape_text
from aff_deploy.runtimes.memory import map_weights, release_memory
from aff_deploy.spec import MAX_RANK, TensorSpec

if TYPE_CHECKING:
    import onnx

CPU = ("CPUExecutionProvider",)
WRONG_OPTIMIZERS = ["ReluQuantRewrite"]
"""Of ONNX Runtime 1.32: it drops a Relu in front of a QuantizeLinear to fp8, without a warning."""

TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
ONNX_BFLOAT16 = 16
_RESTING = object()
LOOP = b'"\x04Loop'
"""How a node of that type is written: the number of the field and its kind, the length of the text, the text."""
MAX_LOOP_SECONDS = 30


def import_onnxruntime(module: str = "onnxruntime") -> Any:
    """ONNX Runtime, or a module inside it, imported when it is needed, and here alone.

    Raises:
        MissingDependency: it is not installed.
    """
    confine_libraries()
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingDependency("onnxruntime is not installed", extra="cpu") from None


def has_loop(model: str | bytes) -> bool:
    """Whether a model, by its path or serialised, may hold a Loop, whose end nothing but running it can tell."""
    if isinstance(model, bytes):
        return LOOP in model
    with open_input(Path(model), error=ModelError) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(LOOP) >= 0


def available_providers() -> tuple[str, ...]:
    """The execution providers of the installed ONNX Runtime, in its order of preference.

    Raises:
        MissingDependency: onnxruntime is not installed.
    """
    return tuple(import_onnxruntime().get_available_providers())


def _reason(error: Exception) -> str:
    """ONNX Runtime's message in one line, without its own prefix and stack trace."""
    text = str(error).split("Stacktrace:")[0]
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    return " ".join(text.split()) or type(error).__name__


def _spec(value: Any) -> TensorSpec:
    if value.type not in TYPES:
        raise ModelError(f"input {value.name!r} is a {value.type}", fix=f"supported are {', '.join(TYPES)}")
    if len(value.shape) > MAX_RANK:
        raise ModelError(f"input {value.name!r} has {len(value.shape)} dimensions", fix=f"at most {MAX_RANK} are supported")
    # A dimension without a size or a name is free; names of our own keep two of them apart.
    shape = tuple(d if isinstance(d, int) else d or f"{value.name}_dim{i}" for i, d in enumerate(value.shape))
    if any(isinstance(d, int) and d < 1 for d in shape):
        raise ModelError(f"input {value.name!r} has shape {shape_text(shape)}", fix="dimensions must be positive or named")
    return TensorSpec(value.name, shape, TYPES[value.type])


def bfloat16_bits(array: Array) -> Array:
    """float32 as the 16 bits of the nearest bfloat16 (ties to even), numpy having no such type."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.asarray(np.where(np.isnan(array), quiet, rounded).astype(np.uint16))


class OnnxRuntimeRunner:
    """Runs an ONNX model.

    Args:
        model: a file (external data is found beside it), or a model in memory, whose large weights go through
            a file in the system's temporary folder: of a message ONNX Runtime makes three copies, of a mapped file none.
        weights: initializers that a model in memory lacks.
        frugal: little memory rather than speed: nodes run in the order of the graph, what they make is given back
            once it is read, and weights are not copied into other layouts.
        providers: execution providers in order of preference.
        threads: threads within an operator; ONNX Runtime's choice by default.

    Raises:
        MissingDependency: onnxruntime, or a provider, is not here.
        ModelError: the model cannot be loaded, with ONNX Runtime's reason.
        OutputError: the temporary folder has no room for the weights.
    """

    def __init__(
        self,
        model: Path | onnx.ModelProto,
        *,
        weights: Iterable[onnx.TensorProto] = (),
        frugal: bool = False,
        providers: Sequence[str] = CPU,
        threads: int | None = None,
    ) -> None:
        ort = import_onnxruntime()
        if absent := [p for p in providers if p not in ort.get_available_providers()]:
            raise MissingDependency(f"ONNX Runtime here has no {', '.join(absent)}", extra="gpu")
        options = ort.SessionOptions()
        # Whatever it would log as an error it also raises.
        options.log_severity_level = 4
        # Threads that spin while they wait gain little here, and on a busy machine cost many times the work itself.
        for pool in ("intra_op", "inter_op"):
            options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
        if frugal:
            options.enable_cpu_mem_arena = False
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        self._path = model if isinstance(model, Path) else None
        self._label = "the model" if self._path is None else str(model)
        self._options, self._providers = options, list(providers)
        if isinstance(model, Path):
            check_input(model, error=ModelError, fix="give the path of an ONNX file")
            source: str | bytes = str(model)
            session = self._load(source)
        else:
            with scratch_folder() as folder:
                options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
                source = map_weights(model, weights, folder)
                session = self._load(source)
        self.name = "ONNX Runtime"
        self._loops = has_loop(source)
        self._session: Any = session
        self._inputs = tuple(_spec(value) for value in session.get_inputs())
        self._bfloat16 = any(v.type == "tensor(bfloat16)" for v in (*session.get_inputs(), *session.get_outputs()))
        if odd := [v for v in session.get_outputs() if v.type not in TYPES]:
            raise ModelError(f"output {odd[0].name!r} is a {odd[0].type}", fix=f"supported are {', '.join(TYPES)}")
        self._outputs = tuple(value.name for value in session.get_outputs())

    def _load(self, source: str | bytes) -> Any:
        create = import_onnxruntime().InferenceSession
        try:
            session = create(source, self._options, providers=self._providers, disabled_optimizers=WRONG_OPTIMIZERS)
        except Exception as error:  # its exceptions share no base class
            raise ModelError(
                f"ONNX Runtime cannot load {self._label}: {_reason(error)}", fix="check or export the model again"
            ) from None
        release_memory()
        return session

    def rest(self) -> None:
        """Give memory back until the next inference, which loads the model again; of a model in memory, do nothing."""
        if self._path is not None and self._session is not None:
            self._session = _RESTING
            release_memory()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        return self._outputs

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        """The outputs by name; bfloat16 ones come as float32.

        Raises:
            DataError: the feeds do not fit the inputs.
            ModelError: the model failed while running.
        """
        if self._session is None:
            raise RuntimeError("this runner is closed")
        if self._session is _RESTING:
            self._session = self._load(str(self._path))
        check_feeds(self._inputs, feeds)
        try:
            values = self._run_in_time(feeds) if self._loops else self._run(feeds)
        except ModelError:
            raise
        except Exception as error:
            given = ", ".join(f"{name} {shape_text(array.shape)}" for name, array in feeds.items())
            raise ModelError(f"ONNX Runtime failed on {given} in {self._label}: {_reason(error)}") from None
        return dict(zip(self._outputs, values, strict=True))

    def _run_in_time(self, feeds: Feeds) -> list[Array]:
        """As `_run`, for a model that a file can tell to run for ever."""
        options = import_onnxruntime().RunOptions()
        outcome: list[list[Array] | Exception] = []

        def work() -> None:
            try:
                outcome.append(self._run(feeds, options))
            except Exception as error:
                outcome.append(error)

        thread = threading.Thread(target=work, name="onnxruntime")
        thread.start()
        try:
            thread.join(MAX_LOOP_SECONDS)
            late = thread.is_alive()
        finally:
            options.terminate = True
            thread.join()
        if late:
            raise ModelError(
                f"{self._label} still loops after {MAX_LOOP_SECONDS} s", fix="bound its loops, or give smaller inputs"
            )
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    def _run(self, feeds: Feeds, options: Any = None) -> list[Array]:
        if not self._bfloat16:
            arrays: list[Array] = self._session.run(self._outputs, dict(feeds), options)
            return arrays
        ort = import_onnxruntime()
        values = {}
        for spec in self._inputs:
            array = feeds[spec.name]
            if spec.dtype == "bfloat16":
                values[spec.name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bfloat16_bits(array), ONNX_BFLOAT16)
            else:
                values[spec.name] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        results = self._session.run_with_ort_values(self._outputs, values, options)
        return [_to_float32(value) if value.data_type() == "tensor(bfloat16)" else value.numpy() for value in results]

    def __enter__(self) -> OnnxRuntimeRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        self._session = None
        release_memory()


def _to_float32(value: Any) -> Array:
    """A bfloat16 OrtValue on the CPU, widened from its 16 bits."""
    import ctypes

    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    bits = np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(value.data_ptr()))
    return np.asarray((bits.astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(shape))
