// The compiled kernels that a node carries: one image for every kernel, type, layout and capability.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launcher/geometry.h"
#include "launcher/kernel.h"
#include "launcher/variant.h"

namespace aff_deploy {

enum class Type : std::int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };
enum class Layout : std::int32_t { kLinear = 0, kChannelsLast = 1 };

std::string name(Type type);
std::int64_t bytes(Type type);
std::string name(Layout layout);

// All kernels of one call for a type, layout and capability.
struct Image {
    Type type;
    Layout layout;
    int capability;  // 80 is 8.0
    cuda::KernelSource context;
    cuda::KernelSource reduce;
    cuda::KernelSource fuse;
    Blocks blocks;
    std::int64_t positions_multiple;  // what the number of positions must be a multiple of
};

// Reads `kernels_table` and `kernels_text` (contract 2) and checks every number of the one against the other and against
// the PTX itself. Throws Error.
std::vector<Image> read_images(const std::vector<std::int32_t>& table, const std::string& text);

// The image that a device of this capability runs. From 90 on PTX is for its own capability alone; below, for later ones too.
// Throws Error if there is none.
const Image& choose(const std::vector<Image>& images, Type type, Layout layout, int capability);

bool has(const std::vector<Image>& images, Type type, Layout layout);

}  // namespace aff_deploy
