// One fused call over the stand-in driver, which runs the kernels in C++: results, geometry, workspace, and bad input.
#include <set>

#include "checks.h"
#include "fake_cuda.h"
#include "launcher/fusion.h"
#include "made.h"

namespace {

using namespace aff_deploy;

const Sizes kSizes{2, 13, 16, 16, 5};

struct Setup {
    std::shared_ptr<const cuda::Driver> driver = std::make_shared<const cuda::Driver>();
    cuda::ModuleCache cache{driver};

    Fusion fusion(const Variant& variant, const Sizes& sizes, Type type = Type::kFloat32, Layout layout = Layout::kLinear,
                  int positions_multiple = 1) {
        made::Kernels kernels;
        made::add(kernels, variant, sizes, {type, layout, 80, positions_multiple});
        return Fusion(cache, *driver, variant, read_images(kernels.table, kernels.text), type, layout);
    }
};

made::Tensor workspace(const Variant& variant, const Sizes& sizes) {
    const made::Widths b;
    const Blocks blocks{b.block_i, b.block_p, b.block_k, b.block_c, b.block_e, b.span_c, b.fuse_p, 4};
    return {static_cast<std::int64_t>(workspace_bound(variant, sizes, blocks) / 4), Type::kFloat32, nullptr};
}

double run(Setup& s, const Variant& variant, const Sizes& sizes, Type type, Layout layout) {
    made::Call call(variant, sizes, type, layout, 2.0F, 7);
    auto scratch = workspace(variant, sizes);
    s.fusion(variant, sizes, type, layout).enqueue(sizes, call.tensors(scratch.data()), call.scale, fake_cuda::stream());
    return call.error() / call.tolerance();
}

TEST(every_variant_in_every_type_and_layout_is_computed) {
    Setup s;
    for (const Variant& variant : all_variants()) {
        Sizes sizes = kSizes;
        sizes.context_channels = variant.explicit_context ? 24 : sizes.channels;
        for (const Type type : {Type::kFloat32, Type::kFloat16, Type::kBFloat16}) {
            for (const Layout layout : {Layout::kLinear, Layout::kChannelsLast}) {
                CHECK(run(s, variant, sizes, type, layout) <= 1);
            }
        }
    }
    CHECK(fake_cuda::state().modules_alive == 0);
}

TEST(sizes_that_fill_no_block_are_computed) {
    Setup s;
    for (const Sizes& sizes : {Sizes{1, 1, 1, 1, 1}, Sizes{3, 7, 9, 9, 13}, Sizes{1, 64, 33, 33, 2}, Sizes{5, 300, 3, 3, 4}}) {
        CHECK(run(s, Variant{}, sizes, Type::kFloat32, Layout::kLinear) <= 1);
    }
}

TEST(the_names_are_those_of_the_operator) {
    std::set<std::string> names;
    for (const Variant& variant : all_variants()) {
        names.insert(variant.name());
    }
    CHECK(names.size() == 48 && all_variants().size() == 48);
    for (const char* name :
         {"AttentionalFusion", "AttentionalGate", "AttentionalFusionContextLocalSilu", "AttentionalGateGlobalHardSigmoid"}) {
        CHECK(names.count(name) == 1);
    }
    CHECK((Variant{true, true, true, false, true, false}).name() == "AttentionalFusionContextLocalSilu");
    CHECK((Variant{true, true, true, true, false, false}).inputs() == 11 && (Variant{false, false, false, true}).inputs() == 5);
}

TEST(kernels_are_launched_in_order_with_the_contracts_numbers) {
    Setup s;
    const Sizes sizes{2, 100, 40, 40, 10};
    made::Call call(Variant{}, sizes, Type::kFloat32, Layout::kLinear, 0.5F, 1);
    auto scratch = workspace(Variant{}, sizes);
    s.fusion(Variant{}, sizes).enqueue(sizes, call.tensors(scratch.data()), call.scale, fake_cuda::stream());
    const auto launches = fake_cuda::state().launches;
    CHECK(launches.size() == 3 && launches[0].entry == "aff_context" && launches[1].entry == "aff_reduce" &&
          launches[2].entry == "aff_fuse");
    // By hand: 3 blocks of inner channels, 13 tiles; 256 / 78 = 3 splits wanted; chunks of 16 of 40 channels, so 3 splits.
    const auto& arguments = launches[0].arguments;
    CHECK(launches[0].grid[0] == 2 * 13 * 3 * 3 && launches[0].threads == 128);
    CHECK(arguments[9] == 2 && arguments[10] == 100 && arguments[11] == 13 && arguments[12] == 3 && arguments[13] == 16);
    CHECK(arguments[2] == 0 && arguments[14] == 0 && arguments[15] == 0);
    // 2000 inner values, 32 to a block.
    CHECK(launches[1].grid[0] == 2 * 5 + 63 && launches[1].arguments[9] == 100 && launches[1].arguments[11] == 39);
    CHECK(launches[2].grid[0] == 2 * 25 * 5 && launches[2].arguments[7] == 100 && launches[2].arguments[8] == 25);
    // The sections of the workspace, on 256 bytes each.
    const auto base = reinterpret_cast<std::uintptr_t>(scratch.data());
    CHECK(arguments[6] == base && arguments[7] == base + 4 * 6016 && launches[2].arguments[2] == arguments[7]);
    CHECK(arguments[8] == base + 4 * (6016 + 2048) && launches[1].arguments[7] == base + 4 * (6016 + 2048 + 832));
    for (const auto& launch : launches) {
        CHECK(launch.grid[1] == 1 && launch.grid[2] == 1 && launch.stream == fake_cuda::stream());
    }
}

TEST(the_workspace_bound_holds_for_every_smaller_call) {
    const Blocks blocks{16, 32, 32, 64, 256, 64, 32, 2};
    for (const Sizes& most : {Sizes{8, 900, 96, 96, 24}, Sizes{1, 50, 2048, 2048, 128}, Sizes{3, 2000, 8, 500, 1}}) {
        for (const Variant& variant : {Variant{}, Variant{true, true, true, false}, Variant{false, false, false, true}}) {
            const std::size_t bound = workspace_bound(variant, most, blocks);
            Sizes sizes = most;
            for (sizes.images = 1; sizes.images <= most.images; ++sizes.images) {
                for (sizes.positions = 1; sizes.positions <= most.positions; ++sizes.positions) {
                    CHECK(geometry(variant, sizes, blocks).workspace_bytes <= bound);
                }
            }
        }
    }
}

TEST(nothing_is_launched_for_nothing) {
    Setup s;
    const Fusion fusion = s.fusion(Variant{}, kSizes);
    fusion.enqueue({0, 13, 16, 16, 5}, Tensors{}, 1.0F, fake_cuda::stream());
    fusion.enqueue({2, 0, 16, 16, 5}, Tensors{}, 1.0F, fake_cuda::stream());
    CHECK(fake_cuda::state().launches.empty());
}

TEST(bad_addresses_and_sizes_are_refused_before_any_launch) {
    Setup s;
    made::Call call(Variant{}, kSizes, Type::kFloat32, Layout::kLinear, 1.0F, 1);
    auto scratch = workspace(Variant{}, kSizes);
    const Fusion fusion = s.fusion(Variant{}, kSizes);
    const Tensors good = call.tensors(scratch.data());
    const auto enqueue = [&](const Tensors& tensors) { fusion.enqueue(kSizes, tensors, 1.0F, fake_cuda::stream()); };
    const auto with = [&](const void* Tensors::* member, const void* value) {
        Tensors bad = good;
        bad.*member = value;
        return bad;
    };
    CHECK_ERROR(enqueue(with(&Tensors::x, nullptr)), "x is a null pointer");
    CHECK_ERROR(enqueue(with(&Tensors::y, static_cast<const char*>(good.y) + 8)), "y is not aligned to 16 bytes");
    Tensors bad = good;
    bad.global.w2 = nullptr;
    CHECK_ERROR(enqueue(bad), "w2 is a null pointer");
    bad = good;
    bad.workspace = nullptr;
    CHECK_ERROR(enqueue(bad), "the workspace is a null pointer");
    bad = good;
    bad.out = nullptr;
    CHECK_ERROR(enqueue(bad), "the output is a null pointer");
    CHECK_ERROR(fusion.enqueue(kSizes, good, 1.0F, nullptr), "the stream is null");
    CHECK_ERROR(fusion.enqueue({1, 1 << 24, 16, 16, 5}, good, 1.0F, fake_cuda::stream()), "below 2^24");
    CHECK_ERROR(fusion.enqueue({-1, 5, 16, 16, 5}, good, 1.0F, fake_cuda::stream()), "outside the kernels' range");
    CHECK_ERROR(fusion.enqueue({1 << 20, 1 << 20, 16, 16, 5}, good, 1.0F, fake_cuda::stream()), "use a smaller batch");
    CHECK_ERROR(
        s.fusion(Variant{}, kSizes, Type::kFloat32, Layout::kLinear, 4).enqueue(kSizes, good, 1.0F, fake_cuda::stream()),
        "compiled for a multiple of 4 positions, not 13");
    CHECK(fake_cuda::state().launches.empty());
}

TEST(a_failed_launch_is_reported_with_its_kernel) {
    Setup s;
    made::Call call(Variant{}, kSizes, Type::kFloat32, Layout::kLinear, 1.0F, 1);
    auto scratch = workspace(Variant{}, kSizes);
    const Fusion fusion = s.fusion(Variant{}, kSizes);
    fake_cuda::fail("cuLaunchKernel", 719, 1);
    CHECK_ERROR(fusion.enqueue(kSizes, call.tensors(scratch.data()), 1.0F, fake_cuda::stream()),
                "launching the kernel aff_reduce: CUDA_ERROR_LAUNCH_FAILED");
    CHECK(fake_cuda::state().launches.size() == 1);
}

TEST(the_image_is_chosen_by_capability) {
    made::Kernels kernels;
    for (const int capability : {80, 86, 90, 100}) {
        made::add(kernels, Variant{}, kSizes, {Type::kFloat16, Layout::kLinear, capability});
    }
    const auto images = read_images(kernels.table, kernels.text);
    const auto chosen = [&](int capability) { return choose(images, Type::kFloat16, Layout::kLinear, capability).capability; };
    CHECK(chosen(80) == 80 && chosen(86) == 86 && chosen(89) == 86 && chosen(90) == 90 && chosen(100) == 100 &&
          chosen(120) == 86);
    CHECK_ERROR(chosen(75), "no kernel in float16 linear runs on sm_75 (carried: sm_80, sm_86, sm_90, sm_100)");
    CHECK_ERROR(choose(images, Type::kFloat32, Layout::kLinear, 80), "(none is carried)");
    CHECK(has(images, Type::kFloat16, Layout::kLinear) && !has(images, Type::kFloat16, Layout::kChannelsLast));
}

TEST(the_current_devices_image_is_loaded) {
    Setup s;
    fake_cuda::set_capability(7, 5);
    CHECK_ERROR(s.fusion(Variant{}, kSizes), "no kernel in float32 linear runs on sm_75 (carried: sm_80)");
}

TEST(a_kernel_in_a_comment_is_none) {
    const cuda::Parameter pointer = cuda::Parameter::kPointer;
    const auto source = [&](const std::string& text) {
        return cuda::KernelSource{std::make_shared<const std::string>(text), "k", {pointer}, 128, 0};
    };
    const std::string right = ".visible .entry k(.param .u64 k_0) .reqntid 128 { ret; }\n";
    const std::string wrong = ".visible .entry k(.param .u64 k_0, .param .u64 k_1) .reqntid 64 { ret; }\n";
    cuda::check_source(source(right));
    cuda::check_source(source("/* " + wrong + "*/" + right));
    CHECK_ERROR(cuda::check_source(source("/* " + right + "*/" + wrong)), "the kernel k takes (u64 u64)");
    CHECK_ERROR(cuda::check_source(source("// " + right + wrong)), "the kernel k takes (u64 u64)");
    CHECK_ERROR(cuda::check_source(source(".file 1 \".entry k(.param .u64 k_0) .reqntid 128\"\n" + wrong)), "takes (u64 u64)");
    CHECK_ERROR(cuda::check_source(source(".visible .entry k(.param .u64 k_0) .reqntid 1024,1024,4 { }")), "strange .reqntid");
}

TEST(every_number_of_the_table_is_checked) {
    made::Kernels good;
    made::add(good, Variant{}, kSizes, {Type::kFloat32, Layout::kLinear});
    CHECK(read_images(good.table, good.text).size() == 1);
    const auto with = [&](std::size_t index, std::int32_t value) {
        auto table = good.table;
        table.at(index) = value;
        return read_images(table, good.text);
    };
    const std::int32_t most = 2147483647, least = -most - 1;
    for (std::size_t column = 0; column < 36; ++column) {
        CHECK_ERROR(with(column, least), "kernels_table, row " + std::to_string(column / 12));
        CHECK_ERROR(with(column, -1), "kernels_table, row ");
        CHECK_ERROR(with(column, most), "");
    }
    CHECK_ERROR(with(5, 1 << 20), "the text ends before its PTX does");
    CHECK_ERROR(with(5, 100), "has no kernel aff_context");
    CHECK_ERROR(with(6, 64), "runs in blocks of 128 threads, not 64");
    CHECK_ERROR(with(11, 3), "no power of two");
    CHECK_ERROR(with(11, 8), "two values of positions_multiple");
    auto twice = good.table;
    twice.insert(twice.end(), good.table.begin() + 12, good.table.begin() + 24);
    CHECK_ERROR(read_images(twice, good.text), "row 3: a second one for the same kernel");
    CHECK_ERROR(with(1, 1), "2 of the three kernels in ");
    CHECK_ERROR(read_images({}, good.text), "has 0 numbers: rows of 12");
    CHECK_ERROR(read_images(std::vector<std::int32_t>(13, 1), good.text), "has 13 numbers");
    CHECK_ERROR(read_images(good.table, ""), "the text ends");
    const auto cut = std::vector<std::int32_t>(good.table.begin(), good.table.begin() + 24);
    CHECK_ERROR(read_images(cut, good.text), "2 of the three kernels in float32 linear for sm_80");
    // Another capability with texts that begin where the others do and end a letter earlier.
    auto overlapping = good;
    for (std::size_t column = 0; column < 36; ++column) {
        const std::int32_t value = good.table[column];
        overlapping.table.push_back(column % 12 == 3 ? 86 : column % 12 == 5 ? value - 1 : value);
    }
    CHECK_ERROR(read_images(overlapping.table, good.text), "row 3: its text overlaps another one");
    auto text = good.text;
    text.replace(text.find(".f32"), 4, ".u32");
    CHECK_ERROR(read_images(good.table, text), "the kernel aff_fuse takes");
}

}  // namespace

int main() {
    return checks::run(fake_cuda::reset);
}
