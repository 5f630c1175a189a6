"""Kernels compiled ahead of time, without a GPU, to PTX that a launcher loads.

The text depends on nothing but the kernels' source, the call, the block sizes, the capability and Triton's
version: debug information, in which paths of this machine would stand, is taken out. What was compiled
once is kept, by content, in the user's cache folder.

Below compute capability 90 the PTX is for ``compute_XX`` and runs on XX and everything later; from 90 on
Triton writes for one architecture alone (``sm_90a``). The versions of PTX are old, since a driver refuses any that
is newer than itself: 8.0, which every driver of CUDA 12 loads, or the oldest that has the architecture.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from aff_deploy.artifact import cache_folder, confine_libraries, staged_file
from aff_deploy.errors import MissingDependency, OutputError, UsageError
from aff_deploy.ops.launch import CONTRACT, KERNELS, Blocks, Call, choose_blocks, constants, options

PTX_VERSIONS = {80: 80, 86: 80, 89: 80, 90: 80, 100: 86, 120: 87}
"""PTX version by compute capability: 80 stands for 8.0, which every driver of CUDA 12 loads."""

_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_FLOATS = ("hidden", "partial", "logits")  # whatever the I/O type
_SIZES = ("images", "positions", "tiles", "splits", "chunk", "rows")

_NOISE = re.compile(
    r"^[ \t]*\.(?:file|loc)\b[^\n]*\n"  # where a line came from
    r"|^[ \t]*\.section[ \t]+\.debug_\w+[^{]*\{[^}]*\}[^\n]*\n"
    r"|^\$L__(?:tmp|func_begin|func_end)\d+:[^\n]*\n"
    r"|[ \t]*//[^\n]*$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class KernelImage:
    """A compiled kernel and how to launch it.

    Attributes:
        kernel: its name, and the entry's in the text.
        ptx: PTX text, ASCII.
        capability: that it was compiled for.
        threads: of a block.
        shared: bytes of dynamic shared memory.
        sizes: block sizes and promises that the grid and the checks depend on, as `launch_sizes` orders them.
    """

    kernel: str
    ptx: str
    capability: int
    threads: int
    shared: int
    sizes: tuple[int, ...]


def launch_sizes(call: Call, blocks: Blocks, kernel: str) -> tuple[int, ...]:
    """What a launcher must know of a kernel.

    For ``aff_context`` block_i, block_p, block_k and the promised divisor of positions; for ``aff_reduce``
    block_c and block_e; for ``aff_fuse`` span_c, block_p and the divisor.
    """
    multiple = call.multiple if call.layout == "linear" else 1
    return {
        "aff_context": (blocks.context_i, blocks.context_p, blocks.context_k, multiple),
        "aff_reduce": (blocks.logits_c, blocks.inner_elements),
        "aff_fuse": (blocks.fuse_span, blocks.fuse_p, multiple),
    }[kernel]


def compile_call(
    call: Call, capability: int = 80, *, blocks: Blocks | None = None, cache: Path | None = None
) -> tuple[KernelImage, ...]:
    """The kernels of a call, in the order of their launches.

    Args:
        call: what they are for.
        capability: compute capability, major * 10 + minor, one of `PTX_VERSIONS`.
        blocks: block sizes; None for those of `choose_blocks`, which launchers expect.
        cache: folder to keep them in; None for ``kernels`` in our cache.

    Raises:
        MissingDependency: Triton is not installed.
        UsageError: no kernels for that capability, or Triton is set to interpret.
    """
    if capability not in PTX_VERSIONS:
        known = ", ".join(map(str, PTX_VERSIONS))
        raise UsageError(f"no kernels for compute capability {capability}", fix=f"choose among {known}")
    blocks = choose_blocks(call) if blocks is None else blocks
    confine_libraries()
    folder = cache_folder("kernels") if cache is None else cache
    return tuple(_image(call, blocks, kernel, capability, folder) for kernel in KERNELS)


def _image(call: Call, blocks: Blocks, kernel: str, capability: int, folder: Path) -> KernelImage:
    signature, attributes = _signature(call, kernel)
    chosen = {**options(blocks, kernel), "ptx_version": PTX_VERSIONS[capability]}
    fixed = constants(call, blocks)[kernel]
    version, source = _compiler()
    content = [CONTRACT, version, source, kernel, signature, fixed, chosen, capability]
    kept = folder / f"{hashlib.sha256(json.dumps(content).encode()).hexdigest()}.json"
    compiled = _kept(kept)
    if compiled is None:
        compiled = _compiled(kernel, signature, attributes, fixed, chosen, capability)
        # Where nothing can be kept, as in some containers, it is compiled each time.
        with contextlib.suppress(OSError, OutputError):
            folder.mkdir(parents=True, exist_ok=True)
            with staged_file(kept) as path:
                path.write_text(json.dumps({**compiled, "sha256": _sum(compiled)}), encoding="ascii")
    threads = 32 * chosen["num_warps"]
    return KernelImage(kernel, compiled["ptx"], capability, threads, compiled["shared"], launch_sizes(call, blocks, kernel))


def _kept(path: Path) -> dict[str, Any] | None:
    """What was compiled before; whatever is not exactly that is compiled again."""
    try:
        kept = json.loads(path.read_text(encoding="ascii"))
        return kept if _sum(kept) == kept["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _sum(compiled: dict[str, Any]) -> str:
    return hashlib.sha256(f"{compiled['shared']} {compiled['ptx']}".encode()).hexdigest()


def _signature(call: Call, kernel: str) -> tuple[dict[str, str], dict[tuple[int], list[list[object]]]]:
    """Types of a kernel's parameters in order, and that all pointers are multiples of 16 bytes."""
    types = {}
    for name in parameters(kernel):
        if name in _SIZES:
            types[name] = "i32"
        elif name == "scale":
            types[name] = "fp32"
        else:
            types[name] = "*fp32" if name in _FLOATS else f"*{_DTYPES[call.dtype]}"
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind.startswith("*")}
    return types, aligned


_PARAMETERS = {
    "aff_context": "x y a w1 b1 v1 hidden inner partial images positions tiles splits chunk",
    "aff_reduce": "hidden b1 inner partial c1 v2 c2 logits images positions splits rows",
    "aff_fuse": "x y inner w2 b2 logits out positions tiles scale",
}


def parameters(kernel: str) -> tuple[str, ...]:
    """Names of a kernel's run-time parameters, in order. In PTX two pointers follow, which are null."""
    return tuple(_PARAMETERS[kernel].split())


@lru_cache(maxsize=1)
def _compiler() -> tuple[str, str]:
    """Triton's version, and a hash of the kernels' source."""
    try:
        import triton
    except ImportError:
        raise MissingDependency("compiling kernels needs triton", extra="kernels") from None
    if triton.knobs.runtime.interpret:
        raise UsageError("kernels cannot be compiled while they are interpreted", fix="unset TRITON_INTERPRET")
    source = [Path(__file__).with_name(name).read_bytes() for name in ("kernels.py", "tiles.py")]
    return triton.__version__, hashlib.sha256(b"".join(source)).hexdigest()


def _compiled(
    kernel: str,
    signature: dict[str, str],
    attributes: dict[tuple[int], list[list[object]]],
    fixed: dict[str, int | bool | str],
    options: dict[str, Any],
    capability: int,
) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from aff_deploy.ops import kernels

    function = getattr(kernels, kernel)
    types = {name: signature.get(name, "constexpr") for name in function.arg_names}
    source = ASTSource(function, types, fixed, attributes)
    try:
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    except OSError as error:
        raise UsageError(
            f"Triton cannot keep what it compiles: {error}", fix="set TRITON_CACHE_DIR to a folder that can be written"
        ) from error
    return {"ptx": "\n".join(_lines(made.asm["ptx"])) + "\n", "shared": int(made.metadata.shared)}


def _lines(ptx: str) -> Iterator[str]:
    """The text without debug information, comments and empty lines."""
    return (line.rstrip() for line in _NOISE.sub("", ptx).splitlines() if line.strip())
