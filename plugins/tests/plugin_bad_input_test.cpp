// What the plugin does with bad input: an error in the log that names it and a result that says so, and nothing launched.
#include "ready.h"

namespace {

using namespace ready;

TEST(every_missing_or_wrong_field_is_named) {
    auto* creator = library().creator("AttentionalFusion");
    const auto refused = [&](Fields fields, const std::string& text) {
        logger.take();
        CHECK(creator->createPlugin("layer7", fields.view(), Phase::kBUILD) == nullptr);
        CHECK(logger.worst() == nvinfer1::ILogger::Severity::kERROR);
        CHECK_SAID(text);
    };
    const Fields good = carried({}, kSizes);
    for (std::size_t index = 0; index < good.fields.size(); ++index) {
        const std::string name = good.fields[index].name;
        Fields bad = carried({}, kSizes);
        bad.fields.erase(bad.fields.begin() + static_cast<std::ptrdiff_t>(index));
        refused(std::move(bad), "the field " + name + " is missing");
        bad = carried({}, kSizes);
        bad.fields.push_back(bad.fields[index]);
        refused(std::move(bad), "the field " + name + " is there twice");
        for (const auto type : {PluginFieldType::kFLOAT64, PluginFieldType::kUNKNOWN}) {
            bad = carried({}, kSizes);
            bad.fields[index].type = type;
            refused(std::move(bad), "the field " + name + " is not ");
        }
        bad = carried({}, kSizes);
        bad.fields[index].data = nullptr;
        refused(std::move(bad), "the field " + name + " has no data");
        bad = carried({}, kSizes);
        bad.fields[index].length = -1;
        refused(std::move(bad), "the field " + name + " has no data");
        bad = carried({}, kSizes);
        bad.fields[index].length = 0;
        refused(std::move(bad), "");
        bad = carried({}, kSizes);
        bad.fields[index].name = nullptr;
        refused(std::move(bad), "the field " + name + " is missing");
    }
    const auto with = [&](const char* name, const std::vector<std::int32_t>& values, const std::string& text) {
        Fields bad = carried({}, kSizes);
        const std::string kept = name;
        bad.fields.erase(
            std::find_if(bad.fields.begin(), bad.fields.end(), [&](const auto& field) { return kept == field.name; }));
        bad.integers(name, values);
        refused(std::move(bad), text);
    };
    with("kernels_contract", {1}, "of contract 1, this library runs contract 2");
    with("kernels_branches", {1}, "kernels_branches does not suit an AttentionalFusion");
    with("kernels_blend", {0}, "kernels_blend does not suit");
    with("channels", {1, 2}, "has 2 numbers");
    with("channels", {0}, "the field channels is 0");
    with("inter_channels", {-4}, "the field inter_channels is -4");
    with("context_channels", {8}, "context_channels does not suit");
    with("kernels_table", {1, 2, 3}, "kernels_table has 3 numbers");
    const auto said = [&](const char* name, const std::string& value, const std::string& text) {
        Fields bad = carried({}, kSizes);
        bad.data.emplace_back(value.begin(), value.end());
        bad.at(name).data = bad.data.back().data();
        bad.at(name).length = static_cast<std::int32_t>(value.size());
        refused(std::move(bad), text);
    };
    said("activation", "Silu", "activation does not suit");
    said("gate", "HardSigmoid", "gate does not suit");
    said("context", "explicit", "context does not suit");
    said("kernels_text", "nonsense", "the text ends before its PTX does");
    Fields infinite = carried({}, kSizes);
    const float huge = HUGE_VALF;
    infinite.at("scale").data = &huge;
    refused(std::move(infinite), "scale is not finite");
    CHECK(creator->createPlugin("layer7", nullptr, Phase::kBUILD) == nullptr);
    const nvinfer1::PluginFieldCollection empty{3, nullptr};
    CHECK(creator->createPlugin(nullptr, &empty, Phase::kRUNTIME) == nullptr);
    logger.take();
}

TEST(shapes_that_disagree_are_refused_everywhere) {
    const auto refused = [&](std::size_t tensor, std::int32_t axis, std::int64_t value) {
        Ready ready({});
        ready.seen.all[tensor].dims.d[axis] = value;
        CHECK(ready.shape_change() != 0);
        CHECK_SAID("layer7");
        CHECK(ready.enqueue() != 0);
        CHECK_SAID("layer7");
        CHECK(fake_cuda::state().launches.empty());
    };
    for (const std::size_t tensor : {0U, 1U, 10U}) {
        for (std::int32_t axis = 0; axis < 4; ++axis) {
            refused(tensor, axis, 17);
        }
    }
    for (std::size_t tensor = 2; tensor < 10; ++tensor) {
        refused(tensor, 0, 17);
    }
    refused(2, 1, 17);
    refused(2, 3, 2);
    Ready ready({});
    ready.seen.all[0].dims.nbDims = 9;
    CHECK(ready.enqueue() != 0);
    ready.seen.all[0].dims.nbDims = 2;
    CHECK(ready.enqueue() != 0);
    CHECK(ready.plugin.runtime->onShapeChange(ready.seen.all.data(), 9, ready.seen.out(), 1) != 0);
    CHECK(ready.plugin.runtime->onShapeChange(ready.seen.all.data(), 10, ready.seen.out(), 2) != 0);
    CHECK(ready.plugin.runtime->onShapeChange(nullptr, 10, ready.seen.out(), 1) != 0);
    CHECK(ready.plugin.runtime->onShapeChange(ready.seen.all.data(), 10, nullptr, 1) != 0);
    logger.take();
}

TEST(bad_addresses_are_refused) {
    Ready ready({});
    for (std::size_t index = 0; index < ready.bound.inputs.size(); ++index) {
        const void* kept = std::exchange(ready.bound.inputs[index], nullptr);
        CHECK(ready.enqueue() != 0);
        CHECK_SAID("is a null pointer");
        ready.bound.inputs[index] = static_cast<const char*>(kept) + 4;
        CHECK(ready.enqueue() != 0);
        CHECK_SAID("is not aligned to 16 bytes");
        ready.bound.inputs[index] = kept;
    }
    void* out = std::exchange(ready.bound.outputs[0], nullptr);
    CHECK(ready.enqueue() != 0);
    CHECK_SAID("the output is a null pointer");
    ready.bound.outputs[0] = out;
    auto* runtime = ready.plugin.runtime;
    const auto* in = ready.seen.all.data();
    const auto* inputs = ready.bound.inputs.data();
    auto* outputs = ready.bound.outputs.data();
    void* workspace = ready.workspace.data();
    CHECK(runtime->enqueue(in, ready.seen.out(), inputs, outputs, nullptr, fake_cuda::stream()) != 0);
    CHECK_SAID("the workspace is a null pointer");
    CHECK(runtime->enqueue(in, ready.seen.out(), inputs, outputs, workspace, nullptr) != 0);
    CHECK_SAID("the stream is null: run the engine on a stream of your own");
    CHECK(runtime->enqueue(nullptr, ready.seen.out(), inputs, outputs, workspace, fake_cuda::stream()) != 0);
    CHECK(runtime->enqueue(in, nullptr, inputs, outputs, workspace, fake_cuda::stream()) != 0);
    CHECK(runtime->enqueue(in, ready.seen.out(), nullptr, outputs, workspace, fake_cuda::stream()) != 0);
    CHECK(runtime->enqueue(in, ready.seen.out(), inputs, nullptr, workspace, fake_cuda::stream()) != 0);
    logger.take();
    CHECK(fake_cuda::state().launches.empty());
    CHECK(ready.enqueue() == 0 && ready.call.error() <= ready.call.tolerance());
}

TEST(what_the_driver_refuses_is_reported) {
    for (const char* function :
         {"cuCtxGetCurrent", "cuModuleLoadDataEx", "cuModuleGetFunction", "cuLaunchKernel", "cuDeviceGetAttribute"}) {
        fake_cuda::reset();
        Ready ready({});
        fake_cuda::fail(function, 719);
        CHECK(ready.enqueue() != 0);
        CHECK_SAID("CUDA_ERROR_LAUNCH_FAILED");
        CHECK(fake_cuda::state().launches.empty());
    }
    fake_cuda::reset();
    Ready ready({});
    fake_cuda::set_capability(7, 5);
    CHECK(ready.shape_change() != 0);
    CHECK_SAID("no kernel in float32 linear runs on sm_75 (carried: sm_80)");
    fake_cuda::make_current(nullptr);
    CHECK(ready.shape_change() != 0);
    CHECK_SAID("no current CUDA context");
}

TEST(a_text_that_is_no_ptx_for_the_driver_shows_the_compilers_words) {
    Fields fields = carried({}, kSizes);
    // Still an entry for our reader, no longer a module for the driver.
    auto& text = fields.data.back();
    for (std::string all(text.begin(), text.end()); all.find(".version") != std::string::npos;) {
        const auto at = static_cast<std::ptrdiff_t>(all.find(".version"));
        std::fill(text.begin() + at, text.begin() + at + 8, ' ');
        all.assign(text.begin(), text.end());
    }
    Ready ready({});
    ready.plugin = make({}, std::move(fields));
    CHECK(ready.shape_change() != 0);
    CHECK_SAID("layer7: loading the kernel's PTX for sm_80: CUDA_ERROR_INVALID_PTX");
}

TEST(a_workspace_that_cannot_be_is_not_given) {
    Ready ready({});
    auto dynamic = ready.seen.dynamic();
    for (auto& one : dynamic) {
        one.max.d[0] = one.max.nbDims == 4 && one.max.d[0] == kSizes.images ? std::int64_t{1} << 30 : one.max.d[0];
    }
    CHECK(ready.plugin.build->getWorkspaceSize(dynamic.data(), ready.seen.inputs(), &dynamic.back(), 1) ==
          std::numeric_limits<std::size_t>::max());
    CHECK_SAID("use a smaller batch");
}

TEST(more_axes_than_a_description_holds_are_refused) {
    Ready ready({});
    for (const int axes : {9, 1000, -1}) {
        for (std::size_t index = 0; index < ready.seen.all.size(); ++index) {
            const auto kept = ready.seen.all[index].dims.nbDims;
            ready.seen.all[index].dims.nbDims = axes;
            CHECK(ready.shape_change() != 0);
            CHECK_SAID(std::to_string(axes) + " axes");
            const auto dynamic = ready.seen.dynamic();
            if (index + 1 < ready.seen.all.size()) {
                CHECK(ready.plugin.build->configurePlugin(dynamic.data(), ready.seen.inputs(), &dynamic.back(), 1) != 0);
                CHECK_SAID(std::to_string(axes) + " axes");
            }
            ready.seen.all[index].dims.nbDims = kept;
        }
    }
    CHECK(ready.shape_change() == 0);
}

TEST(sizes_that_cannot_be_launched_are_refused_when_they_change) {
    Ready ready({});
    for (auto& desc : ready.seen.all) {
        desc.dims.d[0] = desc.dims.nbDims == 4 && desc.dims.d[0] == kSizes.images ? std::int64_t{1} << 30 : desc.dims.d[0];
    }
    CHECK(ready.shape_change() != 0);
    CHECK_SAID("use a smaller batch");
}

TEST(without_a_finder_errors_go_to_stderr) {
    library().set_finder(nullptr);
    CHECK(library().creator("AttentionalFusion")->createPlugin("layer7", nullptr, Phase::kBUILD) == nullptr);
    library().set_finder(&finder);
    CHECK_SILENT();
}

}  // namespace

int main() {
    return checks::run(fake_cuda::reset);
}
