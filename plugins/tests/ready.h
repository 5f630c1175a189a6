// A plugin with everything that TensorRT would hand to it, over the stand-in driver.
#pragma once

#include <algorithm>
#include <limits>
#include <utility>

#include "checks.h"
#include "fake_cuda.h"
#include "launcher/error.h"
#include "opened.h"

namespace ready {

using namespace made;
using namespace opened;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;
using Phase = nvinfer1::TensorRTPhase;

inline fake_nvinfer::Logger logger;
inline fake_nvinfer::Finder finder(&logger);
const Sizes kSizes{2, 12, 16, 16, 5};

inline Library& library() {
    static Library opened(AFF_DEPLOY_LIBRARY, &finder);
    return opened;
}

inline Fields carried(const Variant& variant, const Sizes& sizes, float scale = 2.0F) {
    Kernels kernels;
    for (const Type type : {Type::kFloat32, Type::kFloat16, Type::kBFloat16}) {
        for (const Layout layout : {Layout::kLinear, Layout::kChannelsLast}) {
            add(kernels, variant, sizes, {type, layout});
        }
    }
    return fields_of(variant, sizes, scale, kernels);
}

inline Plugin make(const Variant& variant, Fields fields, Phase phase = Phase::kBUILD) {
    return Plugin(library().creator(variant.name())->createPlugin("layer7", fields.view(), phase));
}

// A call's addresses as TensorRT passes them.
struct Bound {
    std::vector<const void*> inputs;
    std::vector<void*> outputs;

    explicit Bound(Call& call) {
        const auto tensors = call.tensors(nullptr);
        for (const void* data : {tensors.x, tensors.y, tensors.a}) {
            if (data != nullptr) {
                inputs.push_back(data);
            }
        }
        for (Tensor& weight : call.weights) {
            inputs.push_back(weight.data());
        }
        outputs.push_back(tensors.out);
    }
};

struct Ready {
    Call call;
    Descriptions seen;
    Plugin plugin;
    Tensor workspace;
    Bound bound;

    explicit Ready(const Variant& variant, const Sizes& sizes = kSizes, Type type = Type::kFloat32,
                   Layout layout = Layout::kLinear)
        : call(variant, sizes, type, layout, 2.0F, 3),
          seen(variant, sizes, type, layout),
          plugin(make(variant, carried(variant, sizes))),
          bound(call) {
        const auto dynamic = seen.dynamic();
        const std::size_t bytes = plugin.build->getWorkspaceSize(dynamic.data(), seen.inputs(), &dynamic.back(), 1);
        workspace = Tensor(static_cast<std::int64_t>(bytes / 4), Type::kFloat32, nullptr);
    }
    std::int32_t shape_change() { return plugin.runtime->onShapeChange(seen.all.data(), seen.inputs(), seen.out(), 1); }
    std::int32_t enqueue() {
        return plugin.runtime->enqueue(seen.all.data(), seen.out(), bound.inputs.data(), bound.outputs.data(), workspace.data(),
                                       fake_cuda::stream());
    }
};

#define CHECK_SAID(text)                                       \
    do {                                                       \
        const std::string said = logger.take();                \
        if (said.find(text) == std::string::npos) {            \
            checks::fail(__FILE__, __LINE__, "said: " + said); \
        }                                                      \
    } while (false)

#define CHECK_SILENT()                                         \
    do {                                                       \
        const std::string said = logger.take();                \
        if (!said.empty()) {                                   \
            checks::fail(__FILE__, __LINE__, "said: " + said); \
        }                                                      \
    } while (false)

}  // namespace ready
