"""How the kernels are launched: block sizes from a small table, grids and workspace by formula.

The C++ launcher computes the same grids from the numbers that a model carries; docs/kernels.md states the
formulas for both. Nothing here needs Triton or a GPU.

How the table was found: by counting, NOT by timing, since no GPU was at hand. The compiled kernels were executed
on a CPU (tests/plugins/stand_in.py), which counts instructions, sectors of memory and bank conflicts, and
assembled, which gives registers; docs/benchmarks/kernel_counts.md has the result.

* Every product has positions first: each warp then has its own positions, and adds x and y up for itself alone.
  With channels first the warps repeated each other's sums, three times the instructions at C = 2048.
* A tile of positions re-reads weights and inner values from the L2 cache. The wider a tile, the less of that:
  128 where I/O is 16 bits and C is small, so that many positions are to be expected.
* Networks make C large where maps are small (7 x 7, 14 x 14). A tile never crosses images, and a map of 49
  positions wastes 23 % of 64 and 62 % of 128; hence 64, and fewer channels in a program of `aff_fuse`, so
  that a single image still gives tens of programs.
* Of linear tensors whose rows are not multiples of 16 bytes, each thread holds many pointers and narrow loads:
  half the channels at a time keep it at 150 to 190 registers instead of 250. So does a smaller tile where inner
  values are read in several steps.
* fp32 products are three products of tf32 (``input_precision="tf32x3"``), accurate to some 22 bits for numbers of
  1e-33 to 3.4e38. IEEE's own, which tensor cores do not have, took twelve times the passes through shared memory.
  They hold more registers: smaller blocks.
* Every entry was assembled by ptxas for sm_80 to sm_120: no register is spilt, and no kernel takes more
  than the 99 KiB of shared memory that a block may have on sm_86, sm_89 and sm_120 (tests/ops).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from aff_deploy.ops.operator import Branch, Gate, Variant

CONTRACT = 2
"""Version of what kernels and launchers agree on: argument lists, grids, workspace, attribute names."""

REGISTERS = 255
"""Most registers that a thread may have."""

MAX_SPLITS = 16
WANTED_PROGRAMS = 256
"""Channels of the context are split until about so many programs run: twice the cores of a large GPU."""

MAX_CHANNELS, MAX_POSITIONS = 4096, 2**24
ALIGNED = 64
"""Workspace sections begin at multiples of so many fp32 elements."""

DType = Literal["float32", "float16", "bfloat16"]
Layout = Literal["linear", "channels_last"]
KernelContext = Literal["sum", "self", "explicit", "concat"]

DTYPES: tuple[DType, ...] = ("float32", "float16", "bfloat16")
LAYOUTS: tuple[Layout, ...] = ("linear", "channels_last")
ACTIVATIONS = ("Relu", "Silu")
GATES: tuple[Gate, ...] = ("Sigmoid", "HardSigmoid")


KERNELS = ("aff_context", "aff_reduce", "aff_fuse")
"""Their names, in the order of their launches; `aff_reduce` is not launched where its grid is empty."""


@dataclass(frozen=True)
class Call:
    """What kernels are compiled for: a variant of the operator with its sizes, type and layout.

    Attributes:
        channels, inter: C of x, y and the output; channels between the two convolutions of a branch.
        context_channels: A, of what the attention looks at.
        context: ``concat`` reads x and y as the two halves of a context of 2 C channels.
        multiple: a power of two that divides the number of positions of every input; only ``linear`` gains by it.
    """

    channels: int
    inter: int
    context_channels: int
    dtype: DType
    layout: Layout = "linear"
    context: KernelContext = "sum"
    blend: bool = True
    branches: tuple[Branch, ...] = ("local", "global")
    activation: str = "Relu"
    gate: Gate = "Sigmoid"
    multiple: int = 1


@dataclass(frozen=True)
class Blocks:
    """Block sizes of the kernels, and the warps of each; ``_i`` inner channels, ``_p`` positions, ``_k`` channels of a."""

    context_i: int
    context_p: int
    context_k: int
    context_warps: int
    fuse_span: int
    fuse_c: int
    fuse_p: int
    fuse_i: int
    fuse_warps: int
    logits_c: int = 64
    logits_i: int = 64
    logits_rows: int = 16
    inner_parts: int = 8
    inner_elements: int = 256
    reduce_warps: int = 4
    stages: int = 3


_SMALL_MAPS = Blocks(64, 64, 32, 4, 128, 32, 64, 128, 4)

# By width of a number in bits, C up to so many, and layout.
_TABLE: tuple[tuple[int, int, tuple[Layout, ...], Blocks], ...] = (
    (16, 512, LAYOUTS, Blocks(64, 128, 32, 8, 256, 32, 128, 64, 8)),
    (16, 1024, LAYOUTS, _SMALL_MAPS),
    (16, 8192, ("linear",), _SMALL_MAPS),
    (16, 8192, ("channels_last",), replace(_SMALL_MAPS, context_i=128)),
    (32, 8192, LAYOUTS, Blocks(32, 64, 16, 4, 128, 32, 64, 32, 4)),
)


def unsupported(variant: Variant, channels: int, context_channels: int) -> str:
    """Why the kernels cannot do a call, or nothing."""
    if variant.split:
        return "its two shares are separate outputs"
    if variant.activation not in ACTIVATIONS:
        return f"its activation is {variant.activation}, and kernels have {' and '.join(ACTIVATIONS)}"
    if channels > MAX_CHANNELS:
        return f"it has {channels} channels, and kernels go up to {MAX_CHANNELS}"
    if context_channels > 2 * MAX_CHANNELS:
        return f"its context has {context_channels} channels, and kernels go up to {2 * MAX_CHANNELS}"
    return ""


def choose_blocks(call: Call) -> Blocks:
    """The table's entry for a call, cut down to what its sizes can fill (powers of two, at least 16)."""
    bits = 32 if call.dtype == "float32" else 16
    entry = next(
        blocks for width, most, layouts, blocks in _TABLE if width == bits and call.channels <= most and call.layout in layouts
    )
    if call.layout == "linear" and call.multiple * bits < 128:
        entry = replace(entry, context_k=16, fuse_c=16)
    if bits == 16 and call.inter > entry.fuse_i:
        entry = replace(entry, fuse_i=64, fuse_c=16)
    inner, span = _power(call.inter), _power(call.channels)
    fuse_c = min(entry.fuse_c, span)
    return Blocks(
        context_i=min(entry.context_i, inner),
        context_p=entry.context_p,
        context_k=min(entry.context_k, _power(call.context_channels)),
        context_warps=entry.context_warps,
        fuse_span=max(fuse_c, min(entry.fuse_span, span)),
        fuse_c=fuse_c,
        fuse_p=entry.fuse_p,
        fuse_i=min(entry.fuse_i, inner),
        fuse_warps=entry.fuse_warps,
        logits_c=min(entry.logits_c, span),
        logits_i=min(entry.logits_i, inner),
        stages=entry.stages,
    )


def _power(size: int) -> int:
    """The smallest power of two that holds `size`, at least the 16 that a product of matrices needs."""
    return max(16, 1 << (size - 1).bit_length())


@dataclass(frozen=True)
class Geometry:
    """Grids and workspace of one launch.

    `inner`, `partial`, `logits` are where the workspace's sections begin, in fp32 elements; `hidden` begins it.
    """

    tiles: int
    splits: int
    chunk: int
    fuse_tiles: int
    grids: dict[str, int]
    inner: int
    partial: int
    logits: int
    workspace: int

    @property
    def rows(self) -> int:
        """Partial sums for each image."""
        return self.tiles * self.splits


def geometry(call: Call, blocks: Blocks, images: int, positions: int) -> Geometry:
    """The launch for `images` of `positions` each, both at least 1."""
    inter_blocks = _cdiv(call.inter, blocks.context_i)
    tiles = _cdiv(positions, blocks.context_p)
    wanted = min(MAX_SPLITS, max(1, WANTED_PROGRAMS // (images * tiles * inter_blocks)))
    wanted = min(wanted, _cdiv(call.context_channels, blocks.context_k))
    chunk = _cdiv(_cdiv(call.context_channels, wanted), blocks.context_k) * blocks.context_k
    splits = _cdiv(call.context_channels, chunk)
    fuse_tiles = _cdiv(positions, blocks.fuse_p)
    with_local, with_global = ("local" in call.branches), ("global" in call.branches)
    values = images * call.inter * positions if with_local else 0
    parts = splits * values if splits > 1 else 0
    inner = _aligned(parts)
    partial = inner + _aligned(_cdiv(values * (4 if call.dtype == "float32" else 2), 4))
    logits = partial + _aligned(images * tiles * splits * call.inter if with_global else 0)
    return Geometry(
        tiles=tiles,
        splits=splits,
        chunk=chunk,
        fuse_tiles=fuse_tiles,
        grids={
            "aff_context": images * tiles * splits * inter_blocks,
            "aff_reduce": with_global * images * _cdiv(call.channels, blocks.logits_c)
            + (_cdiv(values, blocks.inner_elements) if parts else 0),
            "aff_fuse": images * fuse_tiles * _cdiv(call.channels, blocks.fuse_span),
        },
        inner=inner,
        partial=partial,
        logits=logits,
        workspace=logits + _aligned(images * call.channels if with_global else 0),
    )


def largest_divisor(positions: int) -> int:
    """The largest power of two, up to 16, that divides a number of positions."""
    return min(16, positions & -positions)


def _cdiv(size: int, by: int) -> int:
    return -(-size // by)


def _aligned(size: int) -> int:
    return _cdiv(size, ALIGNED) * ALIGNED


def constants(call: Call, blocks: Blocks) -> dict[str, dict[str, int | bool | str]]:
    """The compile-time constants of each kernel."""
    both = {"CHANNELS": call.channels, "INTER": call.inter}
    branches = {"LOCAL": "local" in call.branches, "GLOBAL": "global" in call.branches}
    linear = {"LINEAR": call.layout == "linear"}
    layout = {**linear, "MULTIPLE": call.multiple if call.layout == "linear" else 1}
    activation = {"ACTIVATION": call.activation}
    return {
        "aff_context": {
            **both,
            "CONTEXT_CHANNELS": call.context_channels,
            "CONTEXT": call.context,
            **branches,
            **activation,
            **layout,
            "BLOCK_I": blocks.context_i,
            "BLOCK_P": blocks.context_p,
            "BLOCK_K": blocks.context_k,
        },
        "aff_reduce": {
            **both,
            **branches,
            **activation,
            **linear,
            "BLOCK_C": blocks.logits_c,
            "BLOCK_I": blocks.logits_i,
            "BLOCK_R": blocks.logits_rows,
            "BLOCK_S": blocks.inner_parts,
            "BLOCK_E": blocks.inner_elements,
        },
        "aff_fuse": {
            **both,
            "BLEND": call.blend,
            **branches,
            "GATE": call.gate,
            **layout,
            "SPAN_C": blocks.fuse_span,
            "BLOCK_C": blocks.fuse_c,
            "BLOCK_P": blocks.fuse_p,
            "BLOCK_I": blocks.fuse_i,
        },
    }


def options(blocks: Blocks, kernel: str) -> dict[str, int | bool]:
    """Triton's options for a program of `kernel`, the same ahead of time and in PyTorch.

    ``maxnreg`` is said since ptxas else spills a few registers now and then, to run more threads. ``aff_reduce`` adds
    products up across lanes: fused, each lane would round its own product differently, and which of the results is
    stored is the hardware's choice.
    """
    count = {"aff_context": blocks.context_warps, "aff_reduce": blocks.reduce_warps, "aff_fuse": blocks.fuse_warps}
    fused = kernel != "aff_reduce"
    return {"num_warps": count[kernel], "num_stages": blocks.stages, "maxnreg": REGISTERS, "enable_fp_fusion": fused}
