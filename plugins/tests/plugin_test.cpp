// The library, opened as TensorRT opens it, over the stand-in driver: results, formats, shapes, clones. No part of TensorRT is
// in this process.
#include <atomic>
#include <set>
#include <thread>

#include "ready.h"

namespace {

using namespace ready;

TEST(every_operator_has_a_creator) {
    std::set<std::string> names;
    for (auto* creator : library().creators()) {
        names.insert(creator->getPluginName());
        CHECK(std::string(creator->getPluginNamespace()) == "aff_deploy" && std::string(creator->getPluginVersion()) == "1");
        const auto* fields = creator->getFieldNames();
        CHECK(fields != nullptr && fields->nbFields == 12 && std::string(fields->fields[11].name) == "kernels_text");
    }
    CHECK(names.size() == 48 && names.count("AttentionalGateContextGlobalSiluHardSigmoid") == 1);
}

TEST(every_variant_is_built_asked_and_computed) {
    for (const Variant& variant : aff_deploy::all_variants()) {
        Sizes sizes = kSizes;
        sizes.context_channels = variant.explicit_context ? 24 : sizes.channels;
        for (const Type type : {Type::kFloat32, Type::kFloat16, Type::kBFloat16}) {
            for (const Layout layout : {Layout::kLinear, Layout::kChannelsLast}) {
                Ready ready(variant, sizes, type, layout);
                CHECK(std::string(ready.plugin.core->getPluginName()) == variant.name());
                const auto dynamic = ready.seen.dynamic();
                CHECK(ready.plugin.build->configurePlugin(dynamic.data(), ready.seen.inputs(), &dynamic.back(), 1) == 0);
                for (std::int32_t position = 0; position <= ready.seen.inputs(); ++position) {
                    CHECK(ready.plugin.build->supportsFormatCombination(position, dynamic.data(), ready.seen.inputs(), 1));
                }
                CHECK(ready.shape_change() == 0 && ready.enqueue() == 0);
                CHECK(ready.call.error() <= ready.call.tolerance());
            }
        }
    }
    CHECK_SILENT();
    CHECK(fake_cuda::state().modules_alive == 0 && fake_cuda::state().wrong_unloads == 0);
}

TEST(formats_are_those_of_the_kernels) {
    const Variant variant{true, true, true, true, false, false};
    const auto asks = [&](const Sizes& sizes, DataType type, TensorFormat as, std::int32_t rank = 4) {
        const Plugin plugin = make(variant, carried(variant, sizes));
        Descriptions seen(variant, sizes, Type::kFloat32, Layout::kLinear);
        auto dynamic = seen.dynamic();
        dynamic[0].desc.type = type;
        dynamic[0].desc.format = as;
        dynamic[0].desc.dims.nbDims = rank;
        return plugin.build->supportsFormatCombination(0, dynamic.data(), seen.inputs(), 1);
    };
    for (const DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
        CHECK(asks(kSizes, type, TensorFormat::kLINEAR));
        CHECK(asks(kSizes, type, TensorFormat::kHWC) == (type == DataType::kFLOAT));
        CHECK(asks(kSizes, type, TensorFormat::kHWC8) == (type != DataType::kFLOAT));
        CHECK(asks(kSizes, type, TensorFormat::kHWC16) == (type == DataType::kHALF));
        CHECK(!asks(kSizes, type, TensorFormat::kCHW32) && !asks(kSizes, type, TensorFormat::kDHWC8));
        CHECK(asks(kSizes, type, TensorFormat::kLINEAR, 3) && !asks(kSizes, type, TensorFormat::kHWC8, 5));
    }
    for (const DataType type : {DataType::kINT8, DataType::kINT32, DataType::kFP8, DataType::kBOOL}) {
        CHECK(!asks(kSizes, type, TensorFormat::kLINEAR));
    }
    // Padded channels are not the kernels' layout.
    CHECK(!asks({2, 12, 20, 16, 5}, DataType::kHALF, TensorFormat::kHWC8) &&
          !asks({2, 12, 16, 20, 5}, DataType::kHALF, TensorFormat::kHWC8));
    CHECK(asks({2, 12, 24, 8, 5}, DataType::kHALF, TensorFormat::kHWC8) &&
          !asks({2, 12, 24, 8, 5}, DataType::kHALF, TensorFormat::kHWC16));
}

TEST(tensors_follow_x) {
    const Variant variant;
    const Plugin plugin = make(variant, carried(variant, kSizes));
    const Descriptions seen(variant, kSizes, Type::kFloat16, Layout::kChannelsLast);
    const auto good = seen.dynamic();
    for (std::size_t position = 1; position < good.size(); ++position) {
        auto bad = good;
        bad[position].desc.type = DataType::kFLOAT;
        CHECK(!plugin.build->supportsFormatCombination(static_cast<std::int32_t>(position), bad.data(), seen.inputs(), 1));
        bad = good;
        const bool linear = bad[position].desc.format == TensorFormat::kLINEAR;
        bad[position].desc.format = linear ? TensorFormat::kHWC8 : TensorFormat::kLINEAR;
        CHECK(!plugin.build->supportsFormatCombination(static_cast<std::int32_t>(position), bad.data(), seen.inputs(), 1));
    }
    CHECK(!plugin.build->supportsFormatCombination(-1, good.data(), seen.inputs(), 1));
    CHECK(!plugin.build->supportsFormatCombination(seen.inputs() + 1, good.data(), seen.inputs(), 1));
    CHECK_SILENT();
}

TEST(the_output_has_the_shape_and_type_of_x) {
    const Plugin plugin = make({}, carried({}, kSizes));
    const Descriptions seen({}, kSizes, Type::kFloat32, Layout::kLinear);
    fake_nvinfer::Builder builder;
    std::list<fake_nvinfer::Dimension> sizes;
    const auto exprs = [&](std::size_t bad_tensor, std::int32_t bad_axis, std::int64_t value) {
        std::vector<nvinfer1::DimsExprs> all(seen.all.size() - 1);
        for (std::size_t index = 0; index < all.size(); ++index) {
            all[index].nbDims = seen.all[index].dims.nbDims;
            for (std::int32_t axis = 0; axis < all[index].nbDims; ++axis) {
                const bool bad = index == bad_tensor && axis == bad_axis;
                const bool unknown = index < 2 && axis != 1;
                sizes.emplace_back(bad ? value : unknown ? -1 : seen.all[index].dims.d[axis]);
                all[index].d[axis] = &sizes.back();
            }
        }
        return all;
    };
    nvinfer1::DimsExprs out{};
    const auto ask = [&](const std::vector<nvinfer1::DimsExprs>& in) {
        return plugin.build->getOutputShapes(in.data(), seen.inputs(), nullptr, 0, &out, 1, builder);
    };
    const auto good = exprs(99, 0, 0);
    CHECK(ask(good) == 0 && out.nbDims == 4 && out.d[0] == good[0].d[0] && out.d[3] == good[0].d[3]);
    for (const std::size_t tensor : {0U, 1U, 2U, 3U, 4U, 9U}) {
        CHECK(ask(exprs(tensor, tensor < 2 ? 1 : 0, 17)) != 0);
        CHECK_SAID("has a shape that does not suit the fields");
    }
    CHECK(plugin.build->getOutputShapes(good.data(), seen.inputs() - 1, nullptr, 0, &out, 1, builder) != 0);
    CHECK_SAID("AttentionalFusion has 10 inputs and 1 output, not 9 and 1");
    CHECK(plugin.build->getOutputShapes(nullptr, seen.inputs(), nullptr, 0, &out, 1, builder) != 0);
    auto missing = good;
    missing[3].d[0] = nullptr;
    CHECK(ask(missing) != 0);

    std::vector<DataType> types(10, DataType::kHALF);
    DataType result = DataType::kINT8;
    CHECK(plugin.build->getOutputDataTypes(&result, 1, types.data(), 10) == 0 && result == DataType::kHALF);
    logger.take();
    types[5] = DataType::kFLOAT;
    CHECK(plugin.build->getOutputDataTypes(&result, 1, types.data(), 10) != 0);
    CHECK_SAID("input 5 has another type than x");
    CHECK(plugin.build->getOutputDataTypes(&result, 1, std::vector<DataType>(10, DataType::kINT8).data(), 10) != 0);
    CHECK(plugin.build->getOutputDataTypes(nullptr, 1, types.data(), 10) != 0);
    logger.take();
}

TEST(what_is_serialised_makes_the_same_plugin) {
    Ready ready({});
    const auto* fields = ready.plugin.runtime->getFieldsToSerialize();
    CHECK(fields->nbFields == 12);
    // TensorRT keeps the bytes, not the pointers.
    Fields kept;
    for (std::int32_t index = 0; index < fields->nbFields; ++index) {
        const PluginField& field = fields->fields[index];
        const std::size_t width = field.type == PluginFieldType::kCHAR ? 1 : 4;
        kept.put(field.name, field.type, field.data, width * static_cast<std::size_t>(field.length),
                 static_cast<std::size_t>(field.length));
    }
    ready.plugin = Plugin(library().creator("AttentionalFusion")->createPlugin("", kept.view(), Phase::kRUNTIME));
    CHECK(ready.shape_change() == 0 && ready.enqueue() == 0 && ready.call.error() <= ready.call.tolerance());
    CHECK(ready.plugin.runtime->getFieldsToSerialize()->nbFields == 12);
    CHECK(std::string(ready.plugin.build->getTimingCacheID()).find("AttentionalFusion_16_16_5") == 0);
    CHECK(std::string(ready.plugin.build->getMetadataString()).find("channels 16") == 0);
}

TEST(clones_outlive_the_original_and_share_its_kernels) {
    Ready ready({});
    CHECK(ready.shape_change() == 0 && fake_cuda::state().modules_loaded == 3);
    Plugin clone(ready.plugin.whole->clone());
    Plugin attached(clone.runtime->attachToContext(nullptr));
    ready.plugin = std::move(attached);
    clone.whole.reset();
    CHECK(ready.enqueue() == 0 && ready.call.error() <= ready.call.tolerance());
    CHECK(fake_cuda::state().modules_loaded == 3 && fake_cuda::state().modules_alive == 3);
}

TEST(another_context_loads_its_own_kernels) {
    Ready ready({});
    CHECK(ready.shape_change() == 0);
    fake_cuda::make_current(fake_cuda::make_context());
    CHECK(ready.enqueue() == 0 && ready.call.error() <= ready.call.tolerance());
    CHECK(fake_cuda::state().modules_loaded == 6 && fake_cuda::state().modules_alive == 3 &&
          fake_cuda::state().wrong_unloads == 0);
}

TEST(clones_run_in_threads) {
    const Plugin original = make({}, carried({}, kSizes));
    CUctx_st* context = fake_cuda::current();
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int index = 0; index < 4; ++index) {
        threads.emplace_back([&] {
            fake_cuda::make_current(context);
            Ready ready({});
            ready.plugin = Plugin(original.runtime->attachToContext(nullptr));
            for (int round = 0; round < 5; ++round) {
                const bool right =
                    ready.shape_change() == 0 && ready.enqueue() == 0 && ready.call.error() <= ready.call.tolerance();
                wrong += right ? 0 : 1;
            }
        });
    }
    for (auto& thread : threads) {
        thread.join();
    }
    CHECK(wrong == 0 && fake_cuda::state().launches.size() == 60);
    CHECK(fake_cuda::state().modules_alive == 0 && fake_cuda::state().wrong_unloads == 0);
}

TEST(empty_tensors_launch_nothing) {
    Ready ready({});
    for (PluginTensorDesc& desc : ready.seen.all) {
        desc.dims.d[0] = desc.dims.nbDims == 4 && desc.dims.d[0] == kSizes.images ? 0 : desc.dims.d[0];
    }
    CHECK(ready.shape_change() == 0 && ready.enqueue() == 0 && fake_cuda::state().launches.empty());
}

}  // namespace

int main() {
    return checks::run(fake_cuda::reset);
}
