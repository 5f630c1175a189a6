"""What kernels a call of the fused operator would take, or why it must stay in its native form.

Whether the plugin is worth it is decided by bytes moved, in units of T, the bytes of x. That rule is reasoned
and NOT measured. The native form moves, with r = 4, 10.5 T: the sum (3), the pool (1), the first
convolution (1), the values between the convolutions (2 I/C), the logits written and read (2), and the blend
(3). The kernels read x and y twice and write once (5), and write and read the values between.

Both read weights again for every tile of positions, and the kernels read the values between again for every
span of channels. That comes from the L2 cache, which is taken to be twice as fast as memory. A native tile goes
across images, one of the kernels does not: so wide branches on small maps stay native. 2048 channels on 7 x 7
cost 10.8 T against 11.1 T with 128 inner ones, and 31 T against 14.5 T with 512.

Left out: parts of channels that are divided among programs, since small batches are decided by the number of
launches, 3 against 8 to 10; partial sectors at the rows' ends of odd maps, which both forms have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from onnx import NodeProto, TensorProto, TypeProto

from aff_deploy.onnx_file import static_shape
from aff_deploy.ops import Variant
from aff_deploy.ops.launch import LAYOUTS, MAX_POSITIONS, Call, DType, choose_blocks, largest_divisor, unsupported
from aff_deploy.passes.functions import attributes, variant_of

L2_SHARE = 0.5
"""What a byte from the L2 cache is taken to cost, of one from memory."""

NATIVE_TILE = 128
"""Positions that a native convolution is taken to compute between two reads of its weights."""

CONTEXTS = ("sum", "self", "explicit", "concat")
"""What a call may say that it looks at; a concat is given to the operator as an explicit one."""

_ELEM_TYPES: Mapping[int, DType] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}


def kernel_call(node: NodeProto, types: Mapping[str, TypeProto.Tensor], constants: Mapping[str, TensorProto]) -> Call | str:
    """The kernels' view of a call, or why it must stay native.

    Args:
        node: a call of the fused operator.
        types: of the values of its graph, by name.
        constants: the initializers of its graph, by name.
    """
    variant, said = variant_of(node), attributes(node)
    named_so = variant.op_type == node.op_type and said.get("gate", variant.gate) == variant.gate
    if len(node.input) != len(variant.inputs) or "" in node.input or not named_so or said.get("context") not in CONTEXTS:
        return "its inputs or its attributes are not those of its name"
    if not isinstance(said.get("scale"), float):
        return "it has no scale"
    kind = types.get(node.input[0])
    dtype = None if kind is None else _ELEM_TYPES.get(kind.elem_type)
    if kind is None or dtype is None:
        return "the type of x is not known, or none that kernels have"
    named = dict(zip(variant.inputs, node.input, strict=True))
    weights = {name: constants.get(named[name]) for name in variant.inputs if "_" in name}
    if None in weights.values():
        return "its weights are not constants of the main graph"
    present = {name: tensor for name, tensor in weights.items() if tensor is not None}
    if any(tensor.data_type != kind.elem_type for tensor in present.values()):
        return "its weights are not of the type of x"
    sizes = [_sizes(variant, branch, present) for branch in variant.branches]
    if None in sizes:
        return "its weights are not two 1x1 convolutions that fit together"
    if len(set(sizes)) != 1:
        return "its two branches differ in inner channels"
    channels, inter, context_channels = sizes[0] or (0, 0, 0)
    rank = len(present[f"{variant.branches[0]}_w1"].dims)
    positions = _positions(kind)
    reason = unsupported(variant, channels, context_channels)
    for name in (name for name in variant.inputs if "_" not in name):
        seen = context_channels if name == "a" else channels
        reason = reason or _misfit(name, types.get(named[name]), kind.elem_type, seen, rank)
    if not reason and positions is not None and positions >= MAX_POSITIONS:
        reason = f"it has {positions} positions, and kernels go up to {MAX_POSITIONS - 1}"
    if reason:
        return reason
    call = Call(
        channels=channels,
        inter=inter,
        context_channels=context_channels,
        dtype=dtype,
        context=variant.context,
        blend=variant.blend,
        branches=variant.branches,
        activation=variant.activation,
        gate=variant.gate,
        multiple=1 if positions is None else largest_divisor(positions),
    )
    # TensorRT chooses the layout.
    ours = min(bytes_by_kernels(replace(call, layout=layout), positions) for layout in LAYOUTS)
    theirs = bytes_natively(call)
    if ours >= theirs:
        return f"kernels would move {ours:.1f} T, the native form {theirs:.1f} T (T: the bytes of x; reasoned, not measured)"
    return call


def _sizes(variant: Variant, branch: str, weights: Mapping[str, TensorProto]) -> tuple[int, int, int] | None:
    """C, I and A of a branch: w1 is I x A x 1..., b1 is I, w2 is C x I x 1..., b2 is C; None where they do not fit."""
    w1, b1, w2, b2 = (tuple(weights[f"{branch}_{part}"].dims) for part in ("w1", "b1", "w2", "b2"))
    if len(w1) < 2 or len(w1) != len(w2) or 0 in (*w1, *w2) or {*w1[2:], *w2[2:]} - {1}:
        return None
    channels, inter, seen = w2[0], w1[0], w1[1]
    fits = b1 == (inter,) and b2 == (channels,) and w2[1] == inter and (variant.context == "explicit" or seen == channels)
    return (channels, inter, seen) if fits else None


def _misfit(name: str, data: TypeProto.Tensor | None, elem_type: int, channels: int, rank: int) -> str:
    """Why x, y or a does not go with the weights, or nothing; what is not known of it is taken to fit."""
    shape = None if data is None else static_shape(data)
    if data is not None and data.elem_type not in (0, elem_type):
        return f"{name} is not of the type of x"
    if shape is not None and (len(shape) != rank or rank < 3 or shape[1] not in (None, channels)):
        return f"{name} has not {channels} channels and {rank - 2} spatial axes"
    return ""


def _positions(kind: TypeProto.Tensor | None) -> int | None:
    """How many positions x has, where height and width are fixed."""
    shape = static_shape(kind)
    spatial = [dim for dim in (shape or ())[2:] if isinstance(dim, int) and dim > 0]
    return math.prod(spatial) if shape is not None and len(spatial) == len(shape) - 2 and spatial else None


def bytes_natively(call: Call) -> float:
    """Bytes that the operator written in convolutions moves, in units of x's: a lower bound, each tensor once for each use."""
    wide, local = call.context_channels / call.channels, "local" in call.branches
    context = 3.0 if call.context == "sum" else 0.0
    pool = wide if "global" in call.branches else 0.0
    branch = wide + 2.0 * call.inter / call.channels + 2.0 if local else 0.0
    weights = local * call.inter * (wide + 1.0) / NATIVE_TILE
    return context + pool + branch + 2.0 + call.blend + L2_SHARE * weights


def bytes_by_kernels(call: Call, positions: int | None) -> float:
    """Bytes that the kernels move, in units of x's, for many images; None positions stand for very many."""
    blocks, local = choose_blocks(call), "local" in call.branches
    wide = call.context_channels / call.channels
    context = 2.0 if call.context == "sum" else wide
    inner = call.inter / call.channels if local else 0.0
    tiles = [1.0 / p if positions is None else math.ceil(positions / p) / positions for p in (blocks.context_p, blocks.fuse_p)]
    weights = call.inter * (len(call.branches) * wide * tiles[0] + local * tiles[1])
    if "global" in call.branches and positions is not None:
        weights += call.inter / positions
    again = (math.ceil(call.channels / blocks.fuse_span) - 1) * inner
    again += (math.ceil(call.inter / blocks.context_i) - 1) * context
    return context + 2.0 * inner + 2.0 + call.blend + L2_SHARE * (weights + again)
