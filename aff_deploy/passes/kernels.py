"""Write compiled kernels into the call nodes of a model, for TensorRT's plugin to launch.

The calls stay calls of the same local functions: whoever has no plugin (ONNX Runtime, TensorRT-RTX)
expands them as before and does not look at the new attributes.

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

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, TypeProto, helper

from aff_deploy.errors import UsageError
from aff_deploy.onnx_file import static_shape
from aff_deploy.ops import DOMAIN, is_fusion
from aff_deploy.ops.compile import compile_call
from aff_deploy.ops.launch import CONTRACT, DTYPES, KERNELS, LAYOUTS, Call, DType, choose_blocks, largest_divisor, unsupported
from aff_deploy.passes.functions import attributes, variant_of
from aff_deploy.passes.fuse_attention import PLUGIN_VERSION

L2_SHARE = 0.5
"""What a byte from the L2 cache is taken to cost, of one from memory."""

NATIVE_TILE = 128
"""Positions that a native convolution is taken to compute between two reads of its weights."""

ROW = 12
"""Numbers to an image in the attribute ``kernels_table``."""

_ELEM_TYPES: Mapping[int, DType] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
_OURS = ("kernels_contract", "kernels_branches", "kernels_blend", "context_channels", "kernels_table", "kernels_text")
_DISPATCH = ("plugin_namespace", "plugin_version")


@dataclass(frozen=True)
class Attached:
    """A model with kernels in it.

    Attributes:
        model: the model.
        plugin: sites that carry kernels.
        native: sites that do not, and why.
    """

    model: ModelProto
    plugin: tuple[str, ...]
    native: tuple[tuple[str, str], ...]

    @property
    def calls(self) -> frozenset[str]:
        """Names of the call nodes that carry kernels; an iAFF is two."""
        return frozenset(n.name for n in self.model.graph.node if any(a.name == "kernels_table" for a in n.attribute))


def attach_kernels(
    model: ModelProto, *, capabilities: Sequence[int] = (80,), dtypes: Sequence[DType] | None = None, cache: Path | None = None
) -> Attached:
    """Give every fusion that gains by it its kernels, and the attributes by which TensorRT finds the plugin.

    Args:
        model: an optimised model, in its final types if there is a choice; left as it is.
        capabilities: compute capabilities to compile for; 80 runs on everything later too.
        dtypes: types to compile for; None for that of each call alone.
        cache: folder of compiled kernels; None for the user's.

    Returns:
        A copy in which calls without kernels lack ``plugin_namespace``, so that TensorRT expands them.

    Raises:
        MissingDependency: Triton is not installed.
        UsageError: there are no kernels for a capability.
    """
    if not capabilities:
        raise UsageError("no compute capability to compile kernels for", fix="name one, such as 80")
    result = copy.deepcopy(model)
    graph = result.graph
    types = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input, *graph.output)}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    plugin, native = [], []
    for node in graph.node:
        if not is_fusion(node.domain, node.op_type):
            continue
        _drop(node, (*_OURS, *_DISPATCH))
        site = str(attributes(node).get("site", node.name))
        call = _read(node, types, shapes)
        if isinstance(call, str):
            native.append((site, call))
            continue
        _write(node, call, capabilities, (call.dtype,) if dtypes is None else dtypes, cache)
        plugin.append(site)
    return Attached(result, tuple(plugin), tuple(native))


def list_kernels(model: ModelProto) -> tuple[dict[str, Any], ...]:
    """What the calls of a model carry, in order: name, contract, types, compute capabilities, and bytes of PTX."""
    found = []
    for node in model.graph.node:
        said = attributes(node) if is_fusion(node.domain, node.op_type) else {}
        if "kernels_table" not in said:
            continue
        table, text = said["kernels_table"], said.get("kernels_text")
        rows = [table[i : i + ROW] for i in range(0, len(table), ROW)] if isinstance(table, list) else []
        good = bool(rows) and len(rows[-1]) == ROW and all(row[1] in range(len(DTYPES)) for row in rows)
        found.append(
            {
                "name": str(said.get("site", node.name)),
                "contract": said.get("kernels_contract"),
                "dtypes": [DTYPES[index] for index in sorted({row[1] for row in rows})] if good else ["malformed"],
                "capabilities": sorted({row[3] for row in rows}) if good else [],
                "bytes": len(text) if isinstance(text, str) else 0,
            }
        )
    return tuple(found)


def _drop(node: NodeProto, names: Sequence[str]) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)


def _read(node: NodeProto, types: Mapping[str, TypeProto.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Call | str:
    """The kernels' view of a call, or why it must stay native."""
    variant = variant_of(node)
    named = dict(zip(variant.inputs, node.input, strict=False))
    first = [shapes.get(named.get(f"{branch}_w1", "")) for branch in variant.branches]
    second = [shapes.get(named.get(f"{branch}_w2", "")) for branch in variant.branches]
    if len(named) != len(node.input) or None in first or None in second:
        return "its weights are not constants of the main graph"
    # Rank included: w1 is I x A x 1..., w2 is C x I x 1....
    sizes = {(*(w2 or ())[:1], *(w1 or ())[:2]) for w1, w2 in zip(first, second, strict=True)}
    if len(sizes) != 1:
        return "its two branches differ in inner channels"
    channels, inter, context_channels = sizes.pop()
    reason = unsupported(variant, channels, context_channels)
    if reason:
        return reason
    kind = types.get(node.input[0])
    dtype = None if kind is None else _ELEM_TYPES.get(kind.elem_type)
    if dtype is None:
        return "the type of x is not known, or none that kernels have"
    positions = _positions(kind)
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


def _write(node: NodeProto, call: Call, capabilities: Sequence[int], dtypes: Sequence[DType], cache: Path | None) -> None:
    table: list[int] = []
    texts: dict[str, int] = {}
    end = 0
    for capability in sorted(set(capabilities)):
        for dtype in sorted(set(dtypes), key=DTYPES.index):
            for layout in LAYOUTS:
                for image in compile_call(replace(call, dtype=dtype, layout=layout), capability, cache=cache):
                    if image.ptx not in texts:
                        texts[image.ptx] = end
                        end += len(image.ptx)
                    row = [KERNELS.index(image.kernel), DTYPES.index(dtype), LAYOUTS.index(layout), capability]
                    row += [texts[image.ptx], len(image.ptx), image.threads, image.shared, *image.sizes]
                    table += row + [0] * (ROW - len(row))
    _drop(node, ("channels", "inter_channels"))
    written = {
        "channels": call.channels,
        "inter_channels": call.inter,
        "plugin_namespace": DOMAIN,
        "plugin_version": PLUGIN_VERSION,
        "kernels_contract": CONTRACT,
        "kernels_branches": ("local" in call.branches) + 2 * ("global" in call.branches),
        "kernels_blend": int(call.blend),
        "context_channels": call.context_channels,
        "kernels_table": table,
        "kernels_text": "".join(texts),
    }
    node.attribute.extend(helper.make_attribute(name, value) for name, value in written.items())
