// For the comparison with Python: reads what a model carries as the plugin would, and prints the geometry of calls.
//   contract_check OPERATOR TABLE TEXT CHANNELS CONTEXT INTER    (the two attributes as files, the table in binary)
// Standard input: a line for each call, images and positions. Output: a line for each call and image.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "launcher/error.h"
#include "launcher/images.h"

namespace {

using namespace aff_deploy;

std::string content(const char* path) {
    std::ifstream file(path, std::ios::binary);
    require(file.good(), [&] { return std::string("cannot read ") + path; });
    return {std::istreambuf_iterator<char>(file), {}};
}

Variant variant_named(const std::string& name) {
    for (const Variant& variant : all_variants()) {
        if (variant.name() == name) {
            return variant;
        }
    }
    throw Error("no kernels for " + name);
}

void print(const Image& image, const Variant& variant, const Sizes& sizes) {
    const Geometry g = geometry(variant, sizes, image.blocks);
    std::cout << name(image.type) << ' ' << name(image.layout) << ' ' << image.capability << ' ' << image.positions_multiple
              << ' ' << g.context_tiles << ' ' << g.splits << ' ' << g.chunk << ' ' << g.rows << ' ' << g.fuse_tiles << ' '
              << g.context.x << ' ' << g.reduce.x << ' ' << g.fuse.x << ' ' << g.inner_offset << ' ' << g.partial_offset << ' '
              << g.logits_offset << ' ' << g.workspace_bytes << ' ' << workspace_bound(variant, sizes, image.blocks) << '\n';
}

}  // namespace

int main(int argc, char** argv) {
    try {
        require(argc == 7, [] { return "six arguments are wanted"; });
        const Variant variant = variant_named(argv[1]);
        const std::string raw = content(argv[2]);
        std::vector<std::int32_t> table(raw.size() / 4);
        std::memcpy(table.data(), raw.data(), 4 * table.size());
        const std::vector<Image> images = read_images(table, content(argv[3]));
        Sizes sizes;
        sizes.channels = std::atoll(argv[4]);
        sizes.context_channels = std::atoll(argv[5]);
        sizes.inter = std::atoll(argv[6]);
        while (std::cin >> sizes.images >> sizes.positions) {
            for (const Image& image : images) {
                print(image, variant, sizes);
            }
        }
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
