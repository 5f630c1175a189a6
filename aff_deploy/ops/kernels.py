"""The operator's GPU kernels in Triton language.

    aff_context   hidden  = W1 . a, and partial = V1 . (sum of a over the positions of a tile): a pass over a
    aff_reduce    inner   = act(sum of hidden's parts + b1), where there are several
                  logits  = V2 . act(sum of partial / P + c1) + c2, one number for each image and channel
    aff_fuse      out     = blend(x, y, gate(W2 . inner + b2 + logits)): one pass over x and y

The mean and V1 are linear, so V1 is applied to the tile that W1 is applied to anyway, and the sum over
positions is taken of its result: I numbers for a tile instead of A.

`a` is N x A x P, x and y are N x C x P or, channels last, N x P x C. Everything is accumulated in fp32; a
and the inner values are rounded to the I/O type where they enter a product, since that is what tensor
cores multiply. A small input is divided among `splits` programs, each for a range of channels of a, so that
it still occupies the machine; `hidden` then holds their parts in fp32. Where nothing is divided,
`aff_context` writes `inner` itself. Nothing is atomic: the same input gives the same bits.

Offsets inside a tile are 32-bit and the start of a tile is 64-bit: any tensor whose positions number fewer
than 2 ** 24 can be addressed. `docs/kernels.md` has the reasons; the sizes come from `aff_deploy.ops.launch`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from aff_deploy.ops.tiles import activated, gated, narrowed, product, read_tile, read_weights, sum_of, tile_of


@triton.jit
def aff_context(
    x,
    y,
    a,
    w1,
    b1,
    v1,
    hidden,
    inner,
    partial,
    images,
    positions,
    tiles,
    splits,
    chunk,
    CHANNELS: tl.constexpr,
    CONTEXT_CHANNELS: tl.constexpr,
    INTER: tl.constexpr,
    CONTEXT: tl.constexpr,
    LOCAL: tl.constexpr,
    GLOBAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LINEAR: tl.constexpr,
    MULTIPLE: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # What a size is a multiple of decides how wide the loads are; the compiler learns it from these two lines.
    positions = positions // MULTIPLE * MULTIPLE
    chunk = chunk // BLOCK_K * BLOCK_K
    program = tl.program_id(0)
    inter_blocks: tl.constexpr = (INTER + BLOCK_I - 1) // BLOCK_I
    first_i = program % inter_blocks * BLOCK_I
    rest = program // inter_blocks
    split = rest % splits
    tile = rest // splits % tiles
    n = (rest // splits // tiles).to(tl.int64)
    start = tile * BLOCK_P
    i = first_i + tl.arange(0, BLOCK_I)
    local = tl.zeros((BLOCK_P, BLOCK_I), dtype=tl.float32)
    pooled = tl.zeros((BLOCK_P, BLOCK_I), dtype=tl.float32)
    for first in range(split * chunk, tl.minimum(split * chunk + chunk, CONTEXT_CHANNELS), BLOCK_K):
        if CONTEXT == "explicit":
            context = read_tile(a, n, first, start, positions, CONTEXT_CHANNELS, LINEAR, BLOCK_K, BLOCK_P)
        elif CONTEXT == "concat":
            # Channels below C are x's, the others y's; of the other tensor nothing is read.
            context = read_tile(x, n, first, start, positions, CHANNELS, LINEAR, BLOCK_K, BLOCK_P)
            pointers, inside = tile_of(y, n, first - CHANNELS, start, positions, CHANNELS, LINEAR, BLOCK_K, BLOCK_P)
            others = (first + tl.arange(0, BLOCK_K) >= CHANNELS)[None, :]
            context = tl.where(others, tl.load(pointers, mask=inside & others, other=0.0), context)
        else:
            context = read_tile(x, n, first, start, positions, CHANNELS, LINEAR, BLOCK_K, BLOCK_P)
            if CONTEXT == "sum":
                context = sum_of(context, read_tile(y, n, first, start, positions, CHANNELS, LINEAR, BLOCK_K, BLOCK_P), x)
        if LOCAL:
            local = product(context, read_weights(w1, first_i, first, INTER, CONTEXT_CHANNELS, BLOCK_I, BLOCK_K), local)
        if GLOBAL:
            pooled = product(context, read_weights(v1, first_i, first, INTER, CONTEXT_CHANNELS, BLOCK_I, BLOCK_K), pooled)
    if LOCAL:
        if splits == 1:
            bias = tl.load(b1 + i, mask=i < INTER, other=0.0).to(tl.float32)
            wholes, inside = tile_of(inner, n, first_i, start, positions, INTER, LINEAR, BLOCK_I, BLOCK_P)
            tl.store(wholes, narrowed(activated(local + bias[None, :], ACTIVATION), x), mask=inside)
        else:
            parts, inside = tile_of(hidden, split * images + n, first_i, start, positions, INTER, LINEAR, BLOCK_I, BLOCK_P)
            tl.store(parts, local, mask=inside)
    if GLOBAL:
        # Positions beyond the last hold zeros.
        row = (n * tiles + tile) * splits + split
        tl.store(partial + row * INTER + i, tl.sum(pooled, axis=0), mask=i < INTER)


@triton.jit
def _logits(
    program, partial, c1, v2, c2, logits, positions, rows,
    CHANNELS: tl.constexpr, INTER: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    first_c = program % blocks * BLOCK_C
    c = first_c + tl.arange(0, BLOCK_C)
    n = (program // blocks).to(tl.int64)
    r = tl.arange(0, BLOCK_R)
    # Added up across lanes once, at the end.
    products = tl.zeros((BLOCK_I, BLOCK_C), dtype=tl.float32)
    for first_i in range(0, INTER, BLOCK_I):
        i = first_i + tl.arange(0, BLOCK_I)
        added = tl.zeros((BLOCK_R, BLOCK_I), dtype=tl.float32)
        for row in range(0, rows, BLOCK_R):
            there = (row + r < rows)[:, None] & (i < INTER)[None, :]
            added += tl.load(partial + (n * rows + row) * INTER + r[:, None] * INTER + i[None, :], mask=there, other=0.0)
        mean = tl.sum(added, axis=0) / positions
        inner = activated(mean + tl.load(c1 + i, mask=i < INTER, other=0.0).to(tl.float32), ACTIVATION)
        products += read_weights(v2, first_c, first_i, CHANNELS, INTER, BLOCK_C, BLOCK_I).to(tl.float32) * inner[:, None]
    z = tl.sum(products, axis=0) + tl.load(c2 + c, mask=c < CHANNELS, other=0.0).to(tl.float32)
    tl.store(logits + n * CHANNELS + c, z, mask=c < CHANNELS)


@triton.jit
def _inner(
    program, hidden, b1, inner, images, positions, splits,
    INTER: tl.constexpr, ACTIVATION: tl.constexpr, LINEAR: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Elements one after another, whatever their image, channel and position. What is divided is small: 32 bits hold it."""
    size = images * INTER * positions
    e = program * BLOCK_E + tl.arange(0, BLOCK_E)
    s = tl.arange(0, BLOCK_S)
    added = tl.zeros((BLOCK_S, BLOCK_E), dtype=tl.float32)
    for split in range(0, splits, BLOCK_S):
        there = (split + s < splits)[:, None] & (e < size)[None, :]
        added += tl.load(hidden + (split + s)[:, None] * size + e[None, :], mask=there, other=0.0)
    i = e // positions % INTER if LINEAR else e % INTER
    t = tl.sum(added, axis=0) + tl.load(b1 + i, mask=e < size, other=0.0).to(tl.float32)
    tl.store(inner + e, narrowed(activated(t, ACTIVATION), inner), mask=e < size)


@triton.jit
def aff_reduce(
    hidden,
    b1,
    inner,
    partial,
    c1,
    v2,
    c2,
    logits,
    images,
    positions,
    splits,
    rows,
    CHANNELS: tl.constexpr,
    INTER: tl.constexpr,
    LOCAL: tl.constexpr,
    GLOBAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LINEAR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    # The logits' programs come first: each takes longer.
    program = tl.program_id(0)
    first = images * ((CHANNELS + BLOCK_C - 1) // BLOCK_C) if GLOBAL else 0
    if GLOBAL and program < first:
        _logits(program, partial, c1, v2, c2, logits, positions, rows, CHANNELS, INTER, ACTIVATION, BLOCK_C, BLOCK_I, BLOCK_R)
    if LOCAL and program >= first:
        _inner(program - first, hidden, b1, inner, images, positions, splits, INTER, ACTIVATION, LINEAR, BLOCK_S, BLOCK_E)


@triton.jit
def aff_fuse(
    x,
    y,
    inner,
    w2,
    b2,
    logits,
    out,
    positions,
    tiles,
    scale,
    CHANNELS: tl.constexpr,
    INTER: tl.constexpr,
    BLEND: tl.constexpr,
    LOCAL: tl.constexpr,
    GLOBAL: tl.constexpr,
    GATE: tl.constexpr,
    LINEAR: tl.constexpr,
    MULTIPLE: tl.constexpr,
    SPAN_C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    positions = positions // MULTIPLE * MULTIPLE
    # From the last image to the first: what `aff_context` read last is still in the L2 cache.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    spans: tl.constexpr = (CHANNELS + SPAN_C - 1) // SPAN_C
    span = program % spans * SPAN_C
    rest = program // spans
    start = rest % tiles * BLOCK_P
    n = (rest // tiles).to(tl.int64)
    if LOCAL and INTER <= BLOCK_I:
        whole = read_tile(inner, n, 0, start, positions, INTER, LINEAR, BLOCK_I, BLOCK_P)
    for first in range(span, span + SPAN_C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        here = c < CHANNELS
        # Asked for before the product, so that they arrive while it is computed.
        x_tile = read_tile(x, n, first, start, positions, CHANNELS, LINEAR, BLOCK_C, BLOCK_P)
        if BLEND:
            y_tile = read_tile(y, n, first, start, positions, CHANNELS, LINEAR, BLOCK_C, BLOCK_P)
        z = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
        if LOCAL:
            if INTER <= BLOCK_I:
                z = product(whole, read_weights(w2, first, 0, CHANNELS, INTER, BLOCK_C, BLOCK_I), z)
            else:
                for first_i in range(0, INTER, BLOCK_I):
                    part = read_tile(inner, n, first_i, start, positions, INTER, LINEAR, BLOCK_I, BLOCK_P)
                    z = product(part, read_weights(w2, first, first_i, CHANNELS, INTER, BLOCK_C, BLOCK_I), z)
            z += tl.load(b2 + c, mask=here, other=0.0).to(tl.float32)[None, :]
        if GLOBAL:
            z += tl.load(logits + n * CHANNELS + c, mask=here, other=0.0)[None, :]
        w = gated(z, GATE)
        value = x_tile.to(tl.float32) * w
        if BLEND:
            # Not y + w (x - y): the convex form cannot overflow where x and y do not.
            value += y_tile.to(tl.float32) * (1.0 - w)
        pointers, inside = tile_of(out, n, first, start, positions, CHANNELS, LINEAR, BLOCK_C, BLOCK_P)
        tl.store(pointers, (value * scale).to(out.dtype.element_ty), mask=inside)
