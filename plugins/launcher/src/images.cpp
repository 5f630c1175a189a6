#include "launcher/images.h"

#include <array>
#include <map>
#include <memory>
#include <tuple>
#include <utility>

#include "launcher/error.h"

namespace aff_deploy {
namespace {

using cuda::Parameter;

constexpr std::size_t kRow = 12;
constexpr std::int32_t kLargestBlock = 1 << 20;
constexpr std::int32_t kMostSharedBytes = 1 << 20;
constexpr int kFirstSpecificCapability = 90;
enum Kernel : std::int32_t { kContext = 0, kReduce = 1, kFuse = 2 };
constexpr std::array<const char*, 3> kEntries{"aff_context", "aff_reduce", "aff_fuse"};

// A row of the table by the names of its columns.
struct Row {
    std::int32_t kernel, type, layout, capability, offset, bytes, threads, shared_bytes;
    std::array<std::int32_t, 4> extra;
};

using Key = std::tuple<std::int32_t, std::int32_t, std::int32_t>;  // type, layout, capability

std::vector<Parameter> parameters(std::int32_t kernel) {
    const auto list = [](std::size_t pointers, std::size_t integers, std::size_t floats) {
        std::vector<Parameter> all(pointers, Parameter::kPointer);
        all.insert(all.end(), integers, Parameter::kInt32);
        all.insert(all.end(), floats, Parameter::kFloat32);
        all.insert(all.end(), 2, Parameter::kPointer);  // Triton's scratch, not used
        return all;
    };
    return kernel == kContext ? list(9, 5, 0) : kernel == kReduce ? list(8, 4, 0) : list(7, 2, 1);
}

[[noreturn]] void bad_row(std::size_t row, const std::string& what) {
    throw Error("kernels_table, row " + std::to_string(row) + ": " + what);
}

Row read_row(const std::vector<std::int32_t>& table, std::size_t index, std::size_t text_bytes) {
    const std::int32_t* at = &table[index * kRow];
    const Row row{at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7], {at[8], at[9], at[10], at[11]}};
    if (row.kernel < 0 || row.kernel > 2 || row.type < 0 || row.type > 2 || row.layout < 0 || row.layout > 1 ||
        row.capability < 10 || row.capability > 999) {
        bad_row(index, "no kernel, type, layout or capability is numbered so");
    }
    if (row.offset < 0 || row.bytes <= 0 ||
        static_cast<std::size_t>(row.offset) + static_cast<std::size_t>(row.bytes) > text_bytes) {
        bad_row(index, "the text ends before its PTX does");
    }
    if (row.shared_bytes < 0 || row.shared_bytes > kMostSharedBytes || row.threads <= 0) {
        bad_row(index, "threads or shared memory out of range");
    }
    const std::size_t used = row.kernel == kContext ? 4 : row.kernel == kReduce ? 2 : 3;
    for (std::size_t extra = 0; extra < row.extra.size(); ++extra) {
        const std::int32_t value = row.extra[extra];
        if (extra < used ? value <= 0 || value > kLargestBlock : value != 0) {
            bad_row(index, "a block size is out of range");
        }
    }
    const std::int32_t multiple = row.kernel == kContext ? row.extra[3] : row.kernel == kFuse ? row.extra[2] : 1;
    if ((multiple & (multiple - 1)) != 0) {
        bad_row(index, "positions_multiple is no power of two");
    }
    return row;
}

std::string describe(const Key& key) {
    return name(static_cast<Type>(std::get<0>(key))) + " " + name(static_cast<Layout>(std::get<1>(key))) + " for sm_" +
           std::to_string(std::get<2>(key));
}

}  // namespace

std::string name(Type type) {
    return type == Type::kFloat32 ? "float32" : type == Type::kFloat16 ? "float16" : "bfloat16";
}

std::int64_t bytes(Type type) {
    return type == Type::kFloat32 ? 4 : 2;
}

std::string name(Layout layout) {
    return layout == Layout::kLinear ? "linear" : "channels_last";
}

std::vector<Image> read_images(const std::vector<std::int32_t>& table, const std::string& text) {
    require(!table.empty() && table.size() % kRow == 0, [&] {
        return "kernels_table has " + std::to_string(table.size()) + " numbers: rows of " + std::to_string(kRow) +
               " are wanted";
    });
    std::map<std::pair<std::int32_t, std::int32_t>, cuda::Text> texts;
    std::size_t bytes_of_texts = 0;
    std::map<Key, std::map<std::int32_t, Row>> keys;
    for (std::size_t index = 0; index < table.size() / kRow; ++index) {
        const Row row = read_row(table, index, text.size());
        auto& range = texts[{row.offset, row.bytes}];
        if (range == nullptr) {
            // Rows may share a text; texts that overlap would multiply it.
            bytes_of_texts += static_cast<std::size_t>(row.bytes);
            if (bytes_of_texts > text.size()) {
                bad_row(index, "its text overlaps another one");
            }
            range = std::make_shared<const std::string>(
                text.substr(static_cast<std::size_t>(row.offset), static_cast<std::size_t>(row.bytes)));
        }
        if (!keys[{row.type, row.layout, row.capability}].emplace(row.kernel, row).second) {
            bad_row(index, "a second one for the same kernel");
        }
    }
    std::vector<Image> images;
    for (const auto& [key, rows] : keys) {
        const auto source = [&, &rows = rows](std::int32_t kernel) {
            const Row& row = rows.at(kernel);
            cuda::KernelSource made{texts.at({row.offset, row.bytes}), kEntries[static_cast<std::size_t>(kernel)],
                                    parameters(kernel), static_cast<unsigned int>(row.threads),
                                    static_cast<unsigned int>(row.shared_bytes)};
            check_source(made);
            return made;
        };
        require(rows.size() == kEntries.size(), [&, &key = key, &rows = rows] {
            return "kernels_table: " + std::to_string(rows.size()) + " of the three kernels in " + describe(key);
        });
        const Row& context = rows.at(kContext);
        const Row& reduce = rows.at(kReduce);
        const Row& fuse = rows.at(kFuse);
        require(context.extra[3] == fuse.extra[2],
                [&, &key = key] { return "kernels_table: two values of positions_multiple in " + describe(key); });
        images.push_back({static_cast<Type>(context.type), static_cast<Layout>(context.layout), context.capability,
                          source(kContext), source(kReduce), source(kFuse),
                          Blocks{context.extra[0], context.extra[1], context.extra[2], reduce.extra[0], reduce.extra[1],
                                 fuse.extra[0], fuse.extra[1], bytes(static_cast<Type>(context.type))},
                          context.extra[3]});
    }
    return images;
}

const Image& choose(const std::vector<Image>& images, Type type, Layout layout, int capability) {
    const Image* best = nullptr;
    std::string carried;
    for (const Image& image : images) {
        if (image.type != type || image.layout != layout) {
            continue;
        }
        carried += (carried.empty() ? "sm_" : ", sm_") + std::to_string(image.capability);
        const bool runs =
            image.capability == capability || (image.capability < kFirstSpecificCapability && image.capability < capability);
        if (runs && (best == nullptr || image.capability > best->capability)) {
            best = &image;
        }
    }
    require(best != nullptr, [&] {
        return "no kernel in " + name(type) + " " + name(layout) + " runs on sm_" + std::to_string(capability) +
               (carried.empty() ? " (none is carried)" : " (carried: " + carried + ")");
    });
    return *best;
}

bool has(const std::vector<Image>& images, Type type, Layout layout) {
    for (const Image& image : images) {
        if (image.type == type && image.layout == layout) {
            return true;
        }
    }
    return false;
}

}  // namespace aff_deploy
