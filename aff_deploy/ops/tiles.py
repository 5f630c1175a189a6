"""What the GPU kernels are made of, in Triton language: tiles of tensors, products, and the arithmetic of a gate.

A tile has positions first and channels second, whatever the layout of the tensor.
"""

from __future__ import annotations

import triton
import triton.language as tl

# The interpreter of Triton 3.9 multiplies matrices of the bits of bfloat16, not of its numbers.
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def product(value, weight, total):
    """The sum of `total` and value . weight, accumulated in fp32."""
    if _INTERPRETED:
        value = value.to(tl.float32)
        weight = weight.to(tl.float32)
    return tl.dot(value, weight, total, input_precision="tf32x3")


@triton.jit
def sigmoid(t):
    return 1.0 / (1.0 + tl.exp(-t))


@triton.jit
def clamped(t, LEAST: tl.constexpr, MOST: tl.constexpr):
    """NaN stays NaN."""
    above = tl.maximum(t, LEAST, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(above, MOST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def activated(t, ACTIVATION: tl.constexpr):
    return t * sigmoid(t) if ACTIVATION == "Silu" else tl.maximum(t, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def gated(z, GATE: tl.constexpr):
    return clamped(z * (1.0 / 6.0) + 0.5, 0.0, 1.0) if GATE == "HardSigmoid" else sigmoid(z)


@triton.jit
def narrowed(t, like):
    """In the I/O type; in fp16 what is too large becomes the largest number, since infinity times 0 is NaN."""
    if like.dtype.element_ty == tl.float16:
        t = clamped(t, -65504.0, 65504.0)
    return t.to(like.dtype.element_ty)


@triton.jit
def tile_of(
    tensor,
    n,
    first,
    start,
    positions,
    CHANNELS: tl.constexpr,
    LINEAR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Pointers to positions start... x channels first... of image n, and which of them exist."""
    c = tl.arange(0, BLOCK_C)[None, :]
    p = tl.arange(0, BLOCK_P)[:, None]
    if LINEAR:
        base = (n * CHANNELS + first) * positions + start
        offsets = c * positions + p
    else:
        base = (n * positions + start) * CHANNELS + first
        offsets = p * CHANNELS + c
    return tensor + base + offsets, (first + c < CHANNELS) & (start + p < positions)


@triton.jit
def read_tile(
    tensor,
    n,
    first,
    start,
    positions,
    CHANNELS: tl.constexpr,
    LINEAR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    pointers, inside = tile_of(tensor, n, first, start, positions, CHANNELS, LINEAR, BLOCK_C, BLOCK_P)
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def read_weights(
    weight, first_out, first_in, OUT: tl.constexpr, IN: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr
):
    """A tile of an OUT x IN matrix, transposed: BLOCK_IN x BLOCK_OUT."""
    o = first_out + tl.arange(0, BLOCK_OUT)[None, :]
    i = first_in + tl.arange(0, BLOCK_IN)[:, None]
    return tl.load(weight + o * IN + i, mask=(o < OUT) & (i < IN), other=0.0)


@triton.jit
def sum_of(left, right, like):
    """Rounded once; numbers in fp16 are added as they are, others by way of fp32."""
    if like.dtype.element_ty == tl.float16:
        return narrowed(left + right, like)
    return (left.to(tl.float32) + right.to(tl.float32)).to(like.dtype.element_ty)
