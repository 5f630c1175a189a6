"""The fused operator in PyTorch: ``torch.ops.aff_deploy.attentional_fusion``, Triton kernels on CUDA, PyTorch elsewhere.

torch.compile and torch.export carry it as one node. It is for inference: it has no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from aff_deploy.errors import MissingDependency
from aff_deploy.ops.launch import (
    ACTIVATIONS,
    GATES,
    MAX_CHANNELS,
    MAX_POSITIONS,
    Blocks,
    Call,
    KernelContext,
    choose_blocks,
    constants,
    geometry,
    largest_divisor,
    options,
)
from aff_deploy.ops.operator import Branch

NAME = "aff_deploy::attentional_fusion"
CONTEXTS = ("sum", "self", "explicit", "concat")
BRANCHES: Mapping[str, tuple[Branch, ...]] = {"local": ("local",), "global": ("global",), "local+global": ("local", "global")}

_KERNEL_TYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


@torch.library.custom_op(NAME, mutates_args=())
def attentional_fusion(
    x: Tensor,
    y: Tensor | None,
    a: Tensor | None,
    weights: list[Tensor],
    context: str,
    branches: str,
    activation: str,
    gate: str,
    scale: float,
) -> Tensor:
    """``scale * (x * w + y * (1 - w))``, or ``scale * x * w`` without y; see `aff_deploy.ops.operator`.

    Args:
        x, y: N x C x spatial (any number of axes), floating point; y of the same shape, or None.
        a: what the attention looks at where `context` is ``explicit``: N x A x the same spatial sizes.
        weights: for each branch w1 (I x A), b1 (I), w2 (C x I), b2 (C), of x's type, 1x1 convolutions or matrices.
        context: ``sum`` of x and y, x it``self``, ``explicit``, or ``concat`` of x and y along the channels.
        branches: ``local``, ``global`` or ``local+global``.
        activation: ``Relu`` or ``Silu``.
        gate: ``Sigmoid`` or ``HardSigmoid``.
        scale: the factor s.

    Returns:
        As x: shape, type, and memory format (channels last stays channels last).

    Raises:
        ValueError: sizes, types or words that do not fit together.
    """
    _check(x, y, a, weights, context, branches, activation, gate)
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    x_wide = x.to(wide)
    y_wide = None if y is None else y.to(wide)
    seen = _context(x, y, a, context, wide)
    z = torch.zeros((), dtype=wide, device=x.device)
    for index, branch in enumerate(BRANCHES[branches]):
        w1, b1, w2, b2 = (weight.to(wide) for weight in weights[4 * index : 4 * index + 4])
        source = seen.flatten(2) if branch == "local" else seen.flatten(2).mean(2, keepdim=True)
        t = torch.matmul(w1.flatten(1), source) + b1[:, None]
        inner = functional.relu(t) if activation == "Relu" else functional.silu(t)
        z = z + torch.matmul(w2.flatten(1), inner) + b2[:, None]
    w = torch.sigmoid(z) if gate == "Sigmoid" else functional.hardsigmoid(z)
    w = w.expand(*x.shape[:2], seen.flatten(2).shape[2]).reshape(x.shape)
    out = x_wide * w if y_wide is None else x_wide * w + y_wide * (1.0 - w)
    return torch.empty_like(x, memory_format=_memory_format(x)).copy_(out * scale)


def _context(x: Tensor, y: Tensor | None, a: Tensor | None, context: str, wide: torch.dtype) -> Tensor:
    if context == "explicit":
        assert a is not None
        return a.to(wide)
    if context == "self":
        return x.to(wide)
    assert y is not None
    return x.to(wide) + y.to(wide) if context == "sum" else torch.cat([x, y], 1).to(wide)


@attentional_fusion.register_fake
def _fake(
    x: Tensor,
    y: Tensor | None,
    a: Tensor | None,
    weights: list[Tensor],
    context: str,
    branches: str,
    activation: str,
    gate: str,
    scale: float,
) -> Tensor:
    _check(x, y, a, weights, context, branches, activation, gate)
    return torch.empty_like(x, memory_format=_memory_format(x))


@attentional_fusion.register_kernel("cuda")
def _cuda(
    x: Tensor,
    y: Tensor | None,
    a: Tensor | None,
    weights: list[Tensor],
    context: str,
    branches: str,
    activation: str,
    gate: str,
    scale: float,
) -> Tensor:
    _check(x, y, a, weights, context, branches, activation, gate)
    if x.dtype not in _KERNEL_TYPES:
        raise ValueError(f"attentional_fusion has no kernel for {x.dtype}; use float32, float16 or bfloat16")
    with torch.cuda.device(x.device):
        return launch(x, y, a, weights, context, branches, activation, gate, scale)


def launch(
    x: Tensor,
    y: Tensor | None,
    a: Tensor | None,
    weights: Sequence[Tensor],
    context: str,
    branches: str,
    activation: str,
    gate: str,
    scale: float,
    *,
    blocks: Blocks | None = None,
) -> Tensor:
    """The kernels, one after another: on a GPU, or on a CPU where Triton interprets (TRITON_INTERPRET=1)."""
    try:
        from aff_deploy.ops import kernels
    except ImportError:
        raise MissingDependency("the fused operator needs triton on a GPU", extra="kernels") from None

    memory_format = _memory_format(x)
    out = torch.empty_like(x, memory_format=memory_format)
    if out.numel() == 0:
        return out
    images, positions = x.shape[0], x[0, 0].numel()
    if x.shape[1] > MAX_CHANNELS or weights[0].shape[1] > 2 * MAX_CHANNELS or positions >= MAX_POSITIONS:
        raise ValueError(f"attentional_fusion: kernels go up to {MAX_CHANNELS} channels and {MAX_POSITIONS - 1} positions")
    call = Call(
        channels=x.shape[1],
        inter=weights[0].shape[0],
        context_channels=weights[0].shape[1],
        dtype=cast("Any", _KERNEL_TYPES[x.dtype]),
        layout="channels_last" if memory_format == torch.channels_last else "linear",
        context=cast("KernelContext", context),
        blend=y is not None,
        branches=BRANCHES[branches],
        activation=activation,
        gate=cast("Any", gate),
        multiple=largest_divisor(positions),
    )
    blocks = choose_blocks(call) if blocks is None else blocks
    plan, fixed = geometry(call, blocks, images, positions), constants(call, blocks)
    x = x.contiguous(memory_format=memory_format)
    # An absent tensor is stood in for by x, and never read.
    seconds = (x if tensor is None else tensor.contiguous(memory_format=memory_format) for tensor in (y, a))
    given = {branch: [weight.contiguous() for weight in weights[4 * i : 4 * i + 4]] for i, branch in enumerate(call.branches)}
    w1, b1, w2, b2 = given.get("local", [x] * 4)
    v1, c1, v2, c2 = given.get("global", [x] * 4)
    workspace = torch.empty(max(1, plan.workspace), dtype=torch.float32, device=x.device)
    hidden, partial, logits = workspace, workspace[plan.partial :], workspace[plan.logits :]
    inner = workspace[plan.inner :].view(x.dtype)
    second, context_tensor = seconds
    arguments: dict[str, tuple[object, ...]] = {
        "aff_context": (
            *(x, second, context_tensor, w1, b1, v1, hidden, inner, partial),
            *(images, positions, plan.tiles, plan.splits, plan.chunk),
        ),
        "aff_reduce": (hidden, b1, inner, partial, c1, v2, c2, logits, images, positions, plan.splits, plan.rows),
        "aff_fuse": (x, second, inner, w2, b2, logits, out, positions, plan.fuse_tiles, float(scale)),
    }
    for name, grid in plan.grids.items():
        if grid == 0:
            continue
        getattr(kernels, name)[(grid,)](*arguments[name], **fixed[name], **options(blocks, name))
    return out


def _memory_format(x: Tensor) -> torch.memory_format:
    """Channels last where x is that and nothing else; its ties, as with one position, count as linear."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _check(
    x: Tensor,
    y: Tensor | None,
    a: Tensor | None,
    weights: list[Tensor],
    context: str,
    branches: str,
    activation: str,
    gate: str,
) -> None:
    def require(good: bool, what: str) -> None:
        if not good:
            raise ValueError(f"attentional_fusion: {what}")

    require(x.dim() >= 3 and x.is_floating_point(), "x must be floating point, N x C x spatial")
    require(context in CONTEXTS, f"context={context!r} is none of {', '.join(CONTEXTS)}")
    require(activation in ACTIVATIONS, f"activation={activation!r} is none of {', '.join(ACTIVATIONS)}")
    require(gate in GATES, f"gate={gate!r} is none of {', '.join(GATES)}")
    require(branches in BRANCHES, f"branches={branches!r} is none of {', '.join(BRANCHES)}")
    count = len(BRANCHES[branches])
    require(len(weights) == 4 * count, f"{len(weights)} weights, and not four for each branch of {branches!r}")
    require(y is None or y.shape == x.shape, "x and y differ in shape")
    require(y is not None or context in ("self", "explicit"), f"context {context!r} needs y")
    require((a is not None) == (context == "explicit"), "a goes with the context 'explicit', and only with it")
    seen = x.shape[1] * (2 if context == "concat" else 1)
    if a is not None:
        require(a.dim() == x.dim() and (a.shape[0], *a.shape[2:]) == (x.shape[0], *x.shape[2:]), "a and x differ in positions")
        seen = a.shape[1]
    tensors = [tensor for tensor in (y, a, *weights) if tensor is not None]
    require(all(t.dtype == x.dtype and t.device == x.device for t in tensors), "all tensors need one type and one device")
    for index in range(count):
        inter = weights[0].shape[0]
        shapes = [tuple(weight.shape[:2]) for weight in weights[4 * index : 4 * index + 4]]
        fits = shapes == [(inter, seen), (inter,), (x.shape[1], inter), (x.shape[1],)]
        pointwise = all(size == 1 for weight in weights for size in weight.shape[2:])
        require(inter > 0, "there are no inner channels")
        require(
            fits and pointwise, f"weights of shapes {shapes} do not fit {seen} channels, {inter} inner and {x.shape[1]} outer"
        )
