#include "launcher/geometry.h"

#include <algorithm>
#include <limits>
#include <string>

#include "launcher/error.h"

namespace aff_deploy {
namespace {

constexpr std::int64_t kMaxSplits = 16;
constexpr std::int64_t kWantedPrograms = 256;
constexpr std::int64_t kMostPositions = (std::int64_t{1} << 24) - 1;
constexpr std::int64_t kMostElements = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kSectionElements = 64;

std::int64_t cdiv(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

// The product of numbers that are not negative; throws if it is over the kernels' 32 bits.
template <typename... Numbers>
std::int64_t product(const char* what, Numbers... numbers) {
    std::int64_t total = 1;
    for (const std::int64_t number : {static_cast<std::int64_t>(numbers)...}) {
        // Both factors stay below 2^31, so that the product cannot overflow 64 bits.
        require(number >= 0 && number <= kMostElements, [&] { return std::string(what) + " is too large for the kernels"; });
        total *= number;
        require(total <= kMostElements, [&] {
            return std::string(what) + " has more than " + std::to_string(kMostElements) + " elements: use a smaller batch";
        });
    }
    return total;
}

void check_sizes(const Sizes& sizes) {
    const auto in_range = [](std::int64_t size, std::int64_t most) { return size > 0 && size <= most; };
    require(in_range(sizes.images, kMostElements) && in_range(sizes.positions, kMostPositions) &&
                in_range(sizes.channels, kMostElements) && in_range(sizes.context_channels, kMostElements) &&
                in_range(sizes.inter, kMostElements),
            [&] {
                return "sizes outside the kernels' range: " + std::to_string(sizes.images) + " images of " +
                       std::to_string(sizes.positions) + " positions (below 2^24), " + std::to_string(sizes.channels) +
                       " channels, context of " + std::to_string(sizes.context_channels) + ", inner " +
                       std::to_string(sizes.inter);
            });
    product("x", sizes.images, sizes.channels, sizes.positions);
    product("the context", sizes.images, sizes.context_channels, sizes.positions);
}

std::int64_t section(std::int64_t elements) {
    return cdiv(elements, kSectionElements) * kSectionElements;
}

std::size_t bytes(std::int64_t elements) {
    return static_cast<std::size_t>(elements) * sizeof(float);
}

// As many fp32 elements as hold so many values of the type of x.
std::int64_t as_floats(std::int64_t values, const Blocks& blocks) {
    return cdiv(values * blocks.element_bytes, static_cast<std::int64_t>(sizeof(float)));
}

}  // namespace

Geometry geometry(const Variant& variant, const Sizes& sizes, const Blocks& blocks) {
    check_sizes(sizes);
    const std::int64_t inter_blocks = cdiv(sizes.inter, blocks.context_i);
    const std::int64_t tiles = cdiv(sizes.positions, blocks.context_p);
    const std::int64_t programs = product("the grid", sizes.images, tiles, inter_blocks);
    const std::int64_t wanted = std::min(
        {kMaxSplits, std::max<std::int64_t>(1, kWantedPrograms / programs), cdiv(sizes.context_channels, blocks.context_k)});
    const std::int64_t chunk = cdiv(cdiv(sizes.context_channels, wanted), blocks.context_k) * blocks.context_k;
    const std::int64_t splits = cdiv(sizes.context_channels, chunk);
    const std::int64_t rows = tiles * splits;
    const std::int64_t fuse_tiles = cdiv(sizes.positions, blocks.fuse_p);
    const std::int64_t values = variant.local ? product("the workspace", sizes.images, sizes.inter, sizes.positions) : 0;
    const std::int64_t hidden = splits > 1 ? product("the workspace", splits, values) : 0;
    const std::int64_t partial = variant.global ? product("the workspace", sizes.images, rows, sizes.inter) : 0;
    const std::int64_t logits = variant.global ? product("the workspace", sizes.images, sizes.channels) : 0;

    Geometry made{};
    made.context_tiles = static_cast<std::int32_t>(tiles);
    made.splits = static_cast<std::int32_t>(splits);
    made.chunk = static_cast<std::int32_t>(product("a chunk of channels", chunk));
    made.rows = static_cast<std::int32_t>(product("the grid", rows));
    made.fuse_tiles = static_cast<std::int32_t>(fuse_tiles);
    made.context.x = product("the grid", programs, splits);
    made.reduce.x = (variant.global ? product("the grid", sizes.images, cdiv(sizes.channels, blocks.reduce_c)) : 0) +
                    (hidden > 0 ? cdiv(values, blocks.reduce_e) : 0);
    made.fuse.x = product("the grid", sizes.images, fuse_tiles, cdiv(sizes.channels, blocks.fuse_c));
    made.inner_offset = bytes(section(hidden));
    made.partial_offset = made.inner_offset + bytes(section(as_floats(values, blocks)));
    made.logits_offset = made.partial_offset + bytes(section(partial));
    made.workspace_bytes = made.logits_offset + bytes(section(logits));
    return made;
}

std::size_t workspace_bound(const Variant& variant, const Sizes& most, const Blocks& blocks) {
    check_sizes(most);
    const std::int64_t inter_blocks = cdiv(most.inter, blocks.context_i);
    const std::int64_t tiles = product("the grid", most.images, cdiv(most.positions, blocks.context_p));
    // Channels are divided until there are so many parts of tiles and no further.
    const std::int64_t parts = kWantedPrograms / inter_blocks;
    // Not held to 32 bits: a bound may be over what any call within it takes. Every factor is below 2^31 or a block size.
    std::int64_t elements = 0;
    if (variant.local) {
        elements += section(parts * most.inter * blocks.context_p);
        elements += section(as_floats(product("the workspace", most.images, most.inter, most.positions), blocks));
    }
    if (variant.global) {
        elements += section(product("the workspace", std::max(tiles, parts), most.inter));
        elements += section(most.images * most.channels);
    }
    return bytes(elements);
}

}  // namespace aff_deploy
