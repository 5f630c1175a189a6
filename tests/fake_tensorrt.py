"""A stand-in for the TensorRT module and for CUDA: engines that double their input, on the host's memory."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

import torch

Shape = tuple[int, ...]


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    BF16 = 7
    FP8 = 8


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    INFO = 3


@dataclass
class Library:
    """One fake library: how its engines look, what was asked of it, and what it is told to fail at."""

    version: str = "10.13.0.35"
    dtype: str = "FLOAT"
    width: int = 3
    profiles: Sequence[tuple[Shape, Shape, Shape]] = (((1, 3), (4, 3), (8, 3)),)
    names: tuple[str, str] = ("x", "y")
    shape_on_host: bool = False
    data_dependent: bool = False
    fail: set[str] = field(default_factory=set)
    events: list[Any] = field(default_factory=list)
    contexts: list[weakref.ref[Context]] = field(default_factory=list)
    cache: bytes | None = None

    def module(self) -> Any:
        return SimpleNamespace(
            __version__=self.version,
            ILogger=ILogger,
            Runtime=lambda log: Runtime(self, log),
            CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"),
        )

    def born(self, thing: Any, name: str) -> None:
        self.events.append(name)
        weakref.finalize(thing, self.events.append, f"no {name}")


class ILogger:
    Severity = Severity

    def log(self, severity: Severity, msg: str) -> None: ...


class Runtime:
    def __init__(self, library: Library, log: ILogger) -> None:
        self.library, self.logger, self.engine_host_code_allowed = library, log, True
        library.born(self, "runtime")

    def get_plugin_registry(self) -> Any:
        return SimpleNamespace(load_library=self._load_library)

    def _load_library(self, path: str) -> object:
        self.library.events.append(("plugins", path))
        return None if "plugins" in self.library.fail else object()

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        self.library.events.append(("host code", self.engine_host_code_allowed, plan))
        if "deserialize" in self.library.fail:
            self.logger.log(Severity.INFO, "Loaded engine size: 2 MiB")
            self.logger.log(Severity.ERROR, "the magic\ntag is wrong")
            self.logger.log(Severity.ERROR, "a consequence of it")
            return None
        return Engine(self.library, self.logger)


class Engine:
    def __init__(self, library: Library, log: ILogger) -> None:
        self.library, self.logger = library, log
        self.num_io_tensors, self.num_optimization_profiles = 2, len(library.profiles)
        library.born(self, "engine")

    def get_tensor_name(self, index: int) -> str:
        return self.library.names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == self.library.names[0] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self.library.dtype]

    def get_tensor_shape(self, name: str) -> Shape:
        dynamic = any(low[0] != high[0] for low, _, high in self.library.profiles)
        return (-1 if dynamic else self.library.profiles[0][0][0], self.library.width)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[Shape]:
        return list(self.library.profiles[index])

    def is_shape_inference_io(self, name: str) -> bool:
        return self.library.shape_on_host

    def create_execution_context(self, config: Any = None) -> Context | None:
        if "context" in self.library.fail:
            self.logger.log(Severity.ERROR, "out of memory")
            return None
        context = Context(self.library, self.logger, config)
        self.library.contexts.append(weakref.ref(context))
        return context

    def create_runtime_config(self) -> Config:
        return Config(self.library)


class Context:
    def __init__(self, library: Library, log: ILogger, config: Any) -> None:
        self.library, self.logger, self.config = library, log, config
        self.profile = 0
        self.shape: Shape = ()
        self.addresses: dict[str, int] = {}
        self.runs = 0
        library.born(self, "context")

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return "profile" not in self.library.fail

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        if "shape" in self.library.fail:
            self.logger.log(Severity.ERROR, "no such shape")
            return False
        low, _, high = self.library.profiles[self.profile]
        assert all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)), "outside the profile"
        self.shape = shape
        return True

    def get_tensor_shape(self, name: str) -> Shape:
        return (-1, self.library.width) if self.library.data_dependent else self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return "address" not in self.library.fail

    def execute_async_v3(self, stream: int) -> bool:
        if "execute" in self.library.fail:
            self.logger.log(Severity.ERROR, "illegal memory access")
            return False
        assert stream == Host.stream
        self.runs += 1
        given, result = (self.view(name) for name in self.library.names)
        result.copy_(given * 2)
        return True

    def view(self, name: str) -> torch.Tensor:
        import ctypes

        dtype = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16}[self.library.dtype]
        count = self.shape[0] * self.shape[1]
        buffer = (ctypes.c_char * (count * dtype.itemsize)).from_address(self.addresses[name])
        return torch.frombuffer(buffer, dtype=dtype).reshape(self.shape)


class Config:
    def __init__(self, library: Library) -> None:
        self.library, self.cuda_graph_strategy = library, "off"

    def create_runtime_cache(self) -> Cache:
        return Cache(self.library)

    def set_runtime_cache(self, cache: Cache) -> bool:
        self.library.events.append("cache set")
        return True


class Cache:
    def __init__(self, library: Library) -> None:
        self.library = library

    def deserialize(self, blob: bytes) -> bool:
        self.library.cache = blob
        return True

    def serialize(self) -> bytearray:
        return bytearray(b"kernels")


class Host:
    """The host's memory in the place of a GPU; a captured graph is the launch itself."""

    stream = 7

    def __init__(self, index: int, capability: tuple[int, int] = (8, 9), capturable: bool = True) -> None:
        self.device, self.capability, self.capturable = torch.device("cpu"), capability, capturable
        self.depth = 0
        self.handed: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def empty(self, shape: Sequence[int], dtype: str) -> torch.Tensor:
        assert self.depth == 1, "memory is taken on our stream"
        return torch.full(tuple(shape), float("nan"), dtype=getattr(torch, dtype))

    def hand_over(self, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        self.handed.append((inputs, outputs))

    def synchronize(self) -> None: ...

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        if not self.capturable:
            raise RuntimeError("operation not permitted when stream is capturing")
        return launch
