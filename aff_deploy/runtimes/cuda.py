"""What running an engine asks of CUDA, by way of PyTorch: memory, a stream, graphs."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aff_deploy.errors import DataError, MissingDependency
from aff_deploy.runtimes import Array, numpy_dtype
from aff_deploy.spec import TensorSpec

if TYPE_CHECKING:
    import torch


def _has_driver() -> bool:
    """Whether an NVIDIA driver is here: asked first, because PyTorch takes seconds to load."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _no_gpu(reason: str) -> MissingDependency:
    return MissingDependency(
        f"an engine runs on an NVIDIA GPU, and none is usable here{f' ({reason})' if reason else ''}",
        fix="run it on a machine with an NVIDIA GPU, its driver and a PyTorch built for CUDA",
    )


class Cuda:
    """One GPU and a stream of its own: all that is asked of CUDA here, through PyTorch.

    Raises:
        MissingDependency: there is no PyTorch, no GPU, or none of that number.
    """

    def __init__(self, index: int) -> None:
        if not _has_driver():
            raise _no_gpu("no NVIDIA driver is installed")
        try:
            import torch
        except ImportError:
            raise MissingDependency("PyTorch is not installed, which holds the memory of engines", extra="gpu") from None
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            here = torch.cuda.is_available()
        if not here:
            reason = " ".join(str(said[-1].message).split()) if said else ""
            if torch.version.cuda is None:
                reason = "this PyTorch is built without CUDA"
            raise _no_gpu(reason)
        if not 0 <= index < torch.cuda.device_count():
            raise MissingDependency(
                f"there is no GPU {index} here", fix=f"GPUs are numbered from 0 to {torch.cuda.device_count() - 1}"
            )
        self.device = torch.device("cuda", index)
        self.capability: tuple[int, int] = torch.cuda.get_device_capability(self.device)
        self._stream: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream.cuda_stream)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Work on our stream: after all that the caller's stream holds now, before all that it is given later."""
        import torch

        with torch.cuda.device(self.device):
            callers = torch.cuda.current_stream(self.device)
            self._stream.wait_stream(callers)
            try:
                with torch.cuda.stream(self._stream):
                    yield
            finally:
                callers.wait_stream(self._stream)

    def hand_over(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
        """Keep memory that two streams use from being given away while one of them still does."""
        import torch

        for tensor in inputs:
            if tensor.is_cuda:
                tensor.record_stream(self._stream)
        for tensor in outputs:
            tensor.record_stream(torch.cuda.current_stream(self.device))

    def empty(self, shape: Sequence[int], dtype: str) -> torch.Tensor:
        """Memory on the GPU, unset."""
        import torch

        return torch.empty(tuple(shape), dtype=getattr(torch, dtype), device=self.device)

    def synchronize(self) -> None:
        """Wait until our stream is empty."""
        self._stream.synchronize()

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        """What `launch` puts on our stream, as a CUDA graph; the result replays it.

        Raises:
            RuntimeError: something in it cannot be captured.
        """
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            launch()

        # It runs on the current stream, which during a turn is ours.
        def replay() -> None:
            graph.replay()

        return replay


def host_tensor(array: Array) -> torch.Tensor:
    """A numpy array as a tensor on the CPU; memory is shared where PyTorch may write to it."""
    import torch

    shareable = array.flags.writeable and array.flags.c_contiguous
    return torch.from_numpy(array if shareable else np.array(array, order="C"))


def any_tensor(name: str, value: Any) -> torch.Tensor:
    """A tensor as it is, or one over the memory of anything with ``__dlpack__``.

    Raises:
        DataError: `value` is neither, or its memory cannot be shared.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, np.ndarray):
        return host_tensor(value)
    if not hasattr(value, "__dlpack__"):
        raise DataError(f"input {name!r} got a {type(value).__name__}", fix="give a tensor or an array with __dlpack__")
    try:
        tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"the memory of input {name!r} cannot be shared: {reason}", fix="give a tensor of PyTorch") from None
    return tensor


def shadow(name: str, tensor: torch.Tensor, inputs: Sequence[TensorSpec]) -> Array:
    """An array of the tensor's shape and dtype without its values, for `check_feeds`.

    Raises:
        DataError: the dtype is one that numpy lacks, and not the input's.
    """
    found = str(tensor.dtype).removeprefix("torch.")
    wanted = next((spec.dtype for spec in inputs if spec.name == name), found)
    try:
        dtype = np.dtype(found) if found != wanted else numpy_dtype(found)
    except TypeError:
        raise DataError(f"input {name!r} got dtype {found}", fix=f"expected {wanted}") from None
    return np.broadcast_to(np.zeros((), dtype), tuple(tensor.shape))


def placed(tensor: torch.Tensor, spec: TensorSpec, device: torch.device) -> torch.Tensor:
    """The tensor on `device`, contiguous, in the input's dtype; itself where it is all that."""
    import torch

    return tensor.to(device=device, dtype=getattr(torch, spec.dtype)).contiguous()
