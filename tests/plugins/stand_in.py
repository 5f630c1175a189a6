"""The stand-in for CUDA's driver, opened from Python: compiled kernels run on a CPU, with every access to memory checked.

`plugins/tests/ptx/machine.h` says what it executes and what it does not show.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from aff_deploy.ops.compile import KernelImage, parameters
from aff_deploy.ops.launch import Blocks, Call, Geometry, geometry
from tests.plugins.building import build, configure

_ATTRIBUTE_DYNAMIC_SHARED = 8
SIZES = ("images", "positions", "tiles", "splits", "chunk", "rows")
Pointer = ctypes.c_uint64


class DriverError(Exception):
    """What the driver said: a result, and what was wrong."""


@dataclass(frozen=True)
class Counts:
    """What a launch executed, in instructions of a warp; passes through the banks of shared memory, and the fewest possible."""

    instructions: int
    products: int
    shared_turns: int
    shared_turns_least: int


@dataclass(frozen=True)
class Sectors:
    """Sectors of 32 bytes of one tensor: read and written by warps, and fetched by blocks, each once."""

    read: int
    fetched: int
    written: int


def build_stand_in(folder: Path) -> Path:
    """Compile the stand-in, optimised, into `folder`; skips by name without a compiler."""
    configure(folder, "-DCMAKE_BUILD_TYPE=Release")
    build(folder, "fake_cuda")
    return library_in(folder)


def library_in(folder: Path) -> Path:
    """Where `build_stand_in` puts it."""
    return folder / "tests" / "fake" / "libcuda.so.1"


class StandIn:
    """A device whose memory is the host's, in the calling thread.

    Args:
        library: `libcuda.so.1` as `build_stand_in` makes it.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.stand_in_fault.restype = ctypes.c_char_p
        self._loaded: dict[KernelImage, ctypes.c_void_p] = {}
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self._call("cuCtxSetCurrent", context)
        self._stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(self._stream), 1)

    def _call(self, name: str, *arguments: object, log: ctypes.Array[ctypes.c_char] | None = None) -> None:
        result = getattr(self._library, name)(*arguments)
        if result != 0:
            words = log.value if log is not None else self._library.stand_in_fault()
            raise DriverError(f"{name} gave {result}: {words.decode()}")

    def allocate(self, size: int) -> Pointer:
        """`size` bytes that nobody has written yet."""
        pointer = Pointer()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer

    def free(self, pointer: Pointer) -> None:
        self._call("cuMemFree_v2", pointer)

    def upload(self, tensor: torch.Tensor) -> Pointer:
        """A copy of the tensor's memory, in its order."""
        size = tensor.numel() * tensor.element_size()
        pointer = self.allocate(size)
        self._call("cuMemcpyHtoD_v2", pointer, ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(size))
        return pointer

    def download(self, pointer: Pointer, into: torch.Tensor) -> None:
        size = into.numel() * into.element_size()
        self._call("cuMemcpyDtoH_v2", ctypes.c_void_p(into.data_ptr()), pointer, ctypes.c_size_t(size))

    def sectors(self, pointer: Pointer) -> Sectors:
        """Of an allocation, since it was made."""
        counts = (ctypes.c_uint64 * 3)()
        self._library.stand_in_traffic(pointer, counts)
        return Sectors(*counts)

    def _function(self, image: KernelImage) -> ctypes.c_void_p:
        if image in self._loaded:
            return self._loaded[image]
        self._library.stand_in_set_capability(*divmod(image.capability, 10))
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        log = ctypes.create_string_buffer(8192)
        options = (ctypes.c_int * 2)(5, 6)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), len(log))
        text = image.ptx.encode("ascii")
        self._call("cuModuleLoadDataEx", ctypes.byref(module), text, 2, options, values, log=log)
        self._call("cuModuleGetFunction", ctypes.byref(function), module, image.kernel.encode())
        if image.shared > 48 * 1024:
            self._call("cuFuncSetAttribute", function, _ATTRIBUTE_DYNAMIC_SHARED, image.shared)
        self._loaded[image] = function
        return function

    def launch(self, image: KernelImage, grid: int, arguments: Sequence[ctypes._SimpleCData[object]]) -> Counts:
        """Run one kernel; DriverError says which access was wrong, and where."""
        addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(value) for value in arguments))
        sizes = (grid, 1, 1, image.threads, 1, 1, image.shared)
        self._call("cuLaunchKernel", self._function(image), *sizes, self._stream, addresses, None)
        counts = (ctypes.c_uint64 * 4)()
        self._library.stand_in_counts(counts)
        return Counts(*counts)


@dataclass(frozen=True)
class Run:
    """What became of one call of the operator.

    Attributes:
        out: the output, as x.
        counts: by kernel.
        sectors: by tensor, weights and the workspace's three parts among them.
        plan: the launch.
    """

    out: torch.Tensor
    counts: dict[str, Counts]
    sectors: dict[str, Sectors]
    plan: Geometry


def run_call(
    device: StandIn, images: Sequence[KernelImage], call: Call, blocks: Blocks, inputs: dict[str, torch.Tensor], scale: float
) -> Run:
    """Launch the kernels of a call one after another.

    Args:
        images: as `compile_call` gives them for `call`.
        blocks: those that they were compiled with.
        inputs: x, y, a and the weights, as `tests.ops.kernel_cases.inputs_of` names them.
    """
    x = inputs["x"]
    memory_format = torch.channels_last if call.layout == "channels_last" else torch.contiguous_format
    positions = math.prod(x.shape[2:])
    plan = geometry(call, blocks, x.shape[0], positions)
    used = {"x", *["y"] * (call.blend or call.context in ("sum", "concat")), *["a"] * (call.context == "explicit")}
    given = {"x": "x", "y": "y", "a": "a"}
    for branch, prefix, bias in (("local", "w", "b"), ("global", "v", "c")):
        for number in "12":
            given[f"{prefix}{number}"], given[f"{bias}{number}"] = f"{branch}_w{number}", f"{branch}_b{number}"
        used |= {f"{branch}_{part}{number}" for part in "wb" for number in "12" if branch in call.branches}
    pointers: dict[str, Pointer] = {}
    for name, source in given.items():
        tensor = inputs.get(source)
        if source in used and tensor is not None:
            plain = tensor.contiguous(memory_format=memory_format) if name in ("x", "y", "a") else tensor.contiguous()
            pointers[name] = device.upload(plain)
        else:
            pointers[name] = Pointer(0)
    # Allocations of their own, so that what runs over from one into the next is seen.
    sizes = {"hidden": plan.inner, "inner": plan.partial - plan.inner}
    sizes |= {"partial": plan.logits - plan.partial, "logits": plan.workspace - plan.logits}
    pointers |= {name: device.allocate(4 * size) if size else Pointer(0) for name, size in sizes.items()}
    out = torch.empty_like(x, memory_format=memory_format)
    pointers["out"] = device.allocate(out.numel() * out.element_size())
    counts = {}
    for image in images:
        if plan.grids[image.kernel] == 0:
            continue
        tiles = plan.tiles if image.kernel == "aff_context" else plan.fuse_tiles
        numbers = {"images": x.shape[0], "positions": positions, "tiles": tiles, "splits": plan.splits}
        numbers |= {"chunk": plan.chunk, "rows": plan.rows}
        arguments = [
            ctypes.c_int32(numbers[name]) if name in SIZES else ctypes.c_float(scale) if name == "scale" else pointers[name]
            for name in parameters(image.kernel)
        ]
        # Triton's own two.
        arguments += [Pointer(0), Pointer(0)]
        counts[image.kernel] = device.launch(image, plan.grids[image.kernel], arguments)
    device.download(pointers["out"], out)
    sectors = {name: device.sectors(pointer) for name, pointer in pointers.items() if pointer.value}
    for pointer in pointers.values():
        if pointer.value:
            device.free(pointer)
    return Run(out, counts, sectors, plan)
