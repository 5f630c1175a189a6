"""TensorRT and TensorRT-RTX: runs an engine on a GPU, after its manifest was checked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from aff_deploy.artifact import read_input, staged_file
from aff_deploy.engine_file import check_library, check_precision, load_engine
from aff_deploy.errors import EngineError
from aff_deploy.runtimes import Array, Feeds, check_feeds, shape_text
from aff_deploy.runtimes.backends import load, version_of
from aff_deploy.runtimes.cuda import Cuda, any_tensor, host_tensor, placed, shadow
from aff_deploy.runtimes.loading import (
    backend_of,
    check_gpu,
    check_tensors,
    deserialize,
    plugin_of,
    profiles_of,
    sizes,
    tensors_of,
)
from aff_deploy.runtimes.profiles import choose_profile
from aff_deploy.spec import Precision, TensorSpec

if TYPE_CHECKING:
    import tensorrt as trt
    import torch

Shapes: TypeAlias = "tuple[tuple[int, ...], ...]"

MAX_CACHE_BYTES = 2**30
GRAPH_BYTES = 2**25
"""Unasked, a CUDA graph is captured only where inputs and outputs together are no larger: each is copied once more then."""
GRAPHS = 8
"""So many different shapes are captured; each holds an execution context of its own."""


@dataclass(frozen=True)
class _Captured:
    """A CUDA graph of one shape. Its context is its own: changing a context spoils the graphs captured from it."""

    replay: Callable[[], None]
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    context: trt.IExecutionContext


class TensorRTRunner:
    """Runs an engine. One thread at a time; others wait.

    Args:
        engine: the file, its manifest beside it.
        onnx: the model that it must have been built from; by default the one beside it, where it lies there.
        precision: that it must be proven to have.
        device: number of the GPU.
        plugin: library of the plugin that the engine was built with; by default the one beside it.
        cuda_graph: replay a CUDA graph instead of launching kernels one by one. A shape is captured when it comes the
            second time, `GRAPHS` shapes at most. None: where inputs and outputs have at most `GRAPH_BYTES`, on
            TensorRT; TensorRT-RTX captures by itself, and does so only on True.
        runtime_cache: file for the kernels that TensorRT-RTX finishes when an engine first runs: read where it
            exists, written on closing. It is code like the engine: use one that you made.

    Raises:
        EngineError: the engine, its manifest, the library, the GPU or the precision does not fit. The files are
            checked first, on a machine without a GPU too.
        MissingDependency: the library, PyTorch or a GPU is not here.
    """

    def __init__(
        self,
        engine: Path,
        *,
        onnx: Path | None = None,
        precision: Precision | None = None,
        device: int = 0,
        plugin: Path | None = None,
        cuda_graph: bool | None = None,
        runtime_cache: Path | None = None,
    ) -> None:
        loaded = load_engine(engine, onnx=onnx)
        if precision is not None:
            check_precision(loaded.manifest, precision)
        self._path = engine
        self._manifest = loaded.manifest
        self._backend = backend_of(loaded.manifest)
        library = plugin_of(loaded.manifest, plugin)
        module: Any = load(self._backend)
        check_library(loaded.manifest, self._backend.name, version_of(module))
        self._device = Cuda(device)
        check_gpu(loaded.manifest, self._backend, self._device.capability)
        self.name = self._backend.title
        self._cuda_graph = cuda_graph
        self._lock = threading.Lock()
        self._seen: dict[Shapes, int] = {}
        self._graphs: dict[Shapes, _Captured] = {}
        self._contexts: dict[int, trt.IExecutionContext] = {}
        self._config: Any = None
        self._cache: Any = None
        self._cache_file = runtime_cache if self._backend.compiles_at_run_time else None
        self._there = deserialize(module, loaded.plan, self._device, loaded.manifest, self.name, library)
        try:
            check_tensors(tensors_of(self._engine), loaded.manifest)
            self._profiles = profiles_of(self._engine, loaded.manifest.inputs)
            if self._backend.compiles_at_run_time:
                self._configure(module)
        except BaseException:
            self._release()
            raise

    @property
    def _engine(self) -> trt.ICudaEngine:
        if self._there.engine is None:
            raise RuntimeError("this runner is closed")
        return self._there.engine

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._manifest.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self._manifest.outputs)

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        """The outputs by name, on the host; bfloat16 ones come as float32.

        Raises:
            DataError: the feeds do not fit the inputs, or lie outside all profiles.
            EngineError: the engine failed while running.
        """
        from aff_deploy.runtimes.pytorch import to_numpy

        check_feeds(self.inputs, feeds)
        results = self.run({name: host_tensor(array) for name, array in feeds.items()})
        return {name: to_numpy(tensor) for name, tensor in results.items()}

    def run(self, tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The outputs by name, on the GPU; they may be used at once on the caller's current stream.

        Args:
            tensors: by input name, PyTorch tensors or anything with ``__dlpack__``, on any device, of the inputs'
                shapes and dtypes (float32 will do for bfloat16). Those on this GPU are not copied if contiguous.

        Raises:
            DataError: they do not fit the inputs, or lie outside all profiles.
            EngineError: the engine failed while running.
        """
        if self._there.engine is None:
            raise RuntimeError("this runner is closed")
        given = {name: any_tensor(name, value) for name, value in tensors.items()}
        check_feeds(self.inputs, {name: shadow(name, tensor, self.inputs) for name, tensor in given.items()})
        given = {spec.name: given[spec.name] for spec in self.inputs}
        index = choose_profile(self._profiles, {name: tuple(tensor.shape) for name, tensor in given.items()})
        with self._lock:
            with self._device.turn():
                ready = {spec.name: placed(given[spec.name], spec, self._device.device) for spec in self.inputs}
                results = self._launch(index, ready)
            self._device.hand_over([*given.values(), *ready.values()], list(results.values()))
        return results

    def _launch(self, index: int, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        shapes = tuple(tuple(tensor.shape) for tensor in inputs.values())
        if shapes not in self._graphs and self._pays(shapes):
            self._capture(index, shapes, inputs)
        if (graph := self._graphs.get(shapes)) is not None:
            for name, tensor in inputs.items():
                graph.inputs[name].copy_(tensor)
            graph.replay()
            # The graph writes to the same place next time; what is handed out must stay as it is.
            return {name: tensor.clone() for name, tensor in graph.outputs.items()}
        if index not in self._contexts:
            self._contexts[index] = self._new_context(index)
        outputs = self._bind(self._contexts[index], inputs)
        self._execute(self._contexts[index])
        self._seen[shapes] = sum(t.numel() * t.element_size() for t in (*inputs.values(), *outputs.values()))
        return outputs

    def _pays(self, shapes: Shapes) -> bool:
        if self._cuda_graph is False or self._backend.compiles_at_run_time or shapes not in self._seen:
            return False
        return len(self._graphs) < GRAPHS and (self._cuda_graph is True or self._seen[shapes] <= GRAPH_BYTES)

    def _capture(self, index: int, shapes: Shapes, inputs: Mapping[str, torch.Tensor]) -> None:
        """Add a graph for `shapes`; where that fails unasked, capture none any more."""
        try:
            context = self._new_context(index)
            own = {name: tensor.clone() for name, tensor in inputs.items()}
            outputs = self._bind(context, own)
            # A context does work of its own in the first run of a shape, which must not get into the graph.
            self._execute(context)
            self._device.synchronize()
            replay = self._device.capture(lambda: self._execute(context))
        except (RuntimeError, EngineError) as error:
            if self._cuda_graph is True:
                reason = " ".join(str(error).split())
                raise EngineError(f"no CUDA graph of {self._path} can be captured: {reason}", fix="run it without") from None
            self._cuda_graph = False
            return
        self._graphs[shapes] = _Captured(replay, own, outputs, context)

    def _new_context(self, index: int) -> trt.IExecutionContext:
        """A context on profile `index`. Memory for its activations is allocated now."""
        given = () if self._config is None else (self._config,)
        context: trt.IExecutionContext | None = self._engine.create_execution_context(*given)
        if context is None:
            raise EngineError(
                f"{self.name} cannot prepare {self._path}: {self._there.reasons.reason()}", fix="free memory of the GPU"
            )
        if self._engine.num_optimization_profiles > 1:
            if not context.set_optimization_profile_async(index, self._device.stream):
                raise EngineError(f"{self.name} cannot use profile {index} of {self._path}: {self._there.reasons.reason()}")
            self._device.synchronize()
        return context

    def _bind(self, context: trt.IExecutionContext, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tell the context shapes and addresses; the outputs that it will fill."""
        for name, tensor in inputs.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise EngineError(f"{self.name} refuses {name} {shape_text(tensor.shape)}: {self._there.reasons.reason()}")
        outputs = {}
        for spec in self._manifest.outputs:
            shape = sizes(context.get_tensor_shape(spec.name))
            if any(size < 0 for size in shape):
                raise EngineError(
                    f"the size of output {spec.name!r} of {self._path} depends on the data, which is not supported",
                    fix="take the operator that chooses by value (NonZero, NonMaxSuppression) out of the network",
                )
            outputs[spec.name] = self._device.empty(shape, spec.dtype)
        for name, tensor in (*inputs.items(), *outputs.items()):
            if not context.set_tensor_address(name, tensor.data_ptr()):
                raise EngineError(f"{self.name} refuses the memory of {name!r}: {self._there.reasons.reason()}")
        return outputs

    def _execute(self, context: trt.IExecutionContext) -> None:
        if not context.execute_async_v3(self._device.stream):
            raise EngineError(f"{self.name} failed while running {self._path}: {self._there.reasons.reason()}")

    def __enter__(self) -> TensorRTRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what runs, keep the runtime cache, and free graphs, contexts, engine and runtime, in that order."""
        with self._lock:
            if self._there.engine is None:
                return
            try:
                self._device.synchronize()
                if self._cache is not None and self._cache_file is not None:
                    with staged_file(self._cache_file) as staged:
                        staged.write_bytes(memoryview(self._cache.serialize()))
            finally:
                self._release()

    def _release(self) -> None:
        self._graphs.clear()
        self._contexts.clear()
        self._cache = self._config = None
        self._there.release()

    def _configure(self, module: Any) -> None:
        """TensorRT-RTX's settings of a run; its stubs are not TensorRT's."""
        engine: Any = self._engine
        self._config = engine.create_runtime_config()
        if self._cuda_graph is True:
            self._config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if self._cache_file is not None:
            self._cache = self._config.create_runtime_cache()
            # One of another version or GPU is not taken over, and in the end replaced.
            if self._cache_file.exists():
                self._cache.deserialize(read_input(self._cache_file, error=EngineError, most=MAX_CACHE_BYTES))
            self._config.set_runtime_cache(self._cache)
