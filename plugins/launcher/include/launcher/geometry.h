// Grids and workspace of a fused call: the formulas of the contract with the kernels (docs/kernels.md), contract 2.
#pragma once

#include <cstddef>
#include <cstdint>

#include "launcher/kernel.h"
#include "launcher/variant.h"

namespace aff_deploy {

// Of the tensors. Positions are the product of the spatial sizes.
struct Sizes {
    std::int64_t images = 0;
    std::int64_t positions = 0;
    std::int64_t channels = 0;
    std::int64_t context_channels = 0;  // of what the attention looks at
    std::int64_t inter = 0;             // of a branch, between its convolutions
};

// What the kernels were compiled for; from the images' launch numbers.
struct Blocks {
    std::int64_t context_i = 0;
    std::int64_t context_p = 0;
    std::int64_t context_k = 0;
    std::int64_t reduce_c = 0;
    std::int64_t reduce_e = 0;
    std::int64_t fuse_c = 0;
    std::int64_t fuse_p = 0;
    std::int64_t element_bytes = 0;  // of a value of x
};

struct Geometry {
    std::int32_t context_tiles;
    std::int32_t splits;
    std::int32_t chunk;
    std::int32_t rows;
    std::int32_t fuse_tiles;
    cuda::Grid context;
    cuda::Grid reduce;  // x is 0 where there is nothing to launch
    cuda::Grid fuse;
    // The workspace: offsets and size in bytes. Hidden values come first.
    std::size_t inner_offset;
    std::size_t partial_offset;
    std::size_t logits_offset;
    std::size_t workspace_bytes;
};

// Throws Error for sizes that the kernels cannot index: they count elements of a tensor in 32 bits.
Geometry geometry(const Variant& variant, const Sizes& sizes, const Blocks& blocks);

// Bytes that suffice for the sizes and for any with fewer images or positions.
std::size_t workspace_bound(const Variant& variant, const Sizes& most, const Blocks& blocks);

}  // namespace aff_deploy
