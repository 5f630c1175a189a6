#include "fusion_plugin.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "creator.h"
#include "launcher/error.h"
#include "logging.h"

namespace aff_deploy {
namespace {

using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

// A tensor as large as the profile allows it to be, whether or not its own sizes are known.
PluginTensorDesc at_most(const DynamicPluginTensorDesc& given) {
    PluginTensorDesc largest = given.desc;
    check_rank(largest.dims);
    for (std::int32_t axis = 0; given.max.nbDims == largest.dims.nbDims && axis < largest.dims.nbDims; ++axis) {
        largest.dims.d[axis] = std::max(largest.dims.d[axis], given.max.d[axis]);
    }
    return largest;
}

// The largest call of a profile. The output's shape is x's, as getOutputShapes said: only its type and format are read.
CallShape largest_call(const Settings& settings, const DynamicPluginTensorDesc* in, std::int32_t inputs,
                       const DynamicPluginTensorDesc* out, std::int32_t outputs) {
    check_counts(settings, in, inputs, out, outputs);
    std::vector<PluginTensorDesc> largest;
    for (std::int32_t index = 0; index < inputs; ++index) {
        largest.push_back(at_most(in[index]));
    }
    PluginTensorDesc result = out[0].desc;
    result.dims = largest[0].dims;
    return read_shapes(settings, largest.data(), inputs, &result, outputs);
}

std::string id_of(const Settings& settings) {
    std::size_t hash = std::hash<std::string>{}(settings.text);
    for (const std::int32_t number : settings.table) {
        hash = hash * 1099511628211U + static_cast<std::size_t>(number);
    }
    return settings.variant.name() + "_" + std::to_string(settings.channels) + "_" + std::to_string(settings.context_channels) +
           "_" + std::to_string(settings.inter) + "_" + std::to_string(settings.scale) + "_" + std::to_string(hash);
}

std::string metadata_of(const Settings& settings) {
    return "channels " + std::to_string(settings.channels) + ", context " + std::to_string(settings.context_channels) +
           ", inner " + std::to_string(settings.inter) + ", scale " + std::to_string(settings.scale) + ", kernel images " +
           std::to_string(settings.images.size());
}

}  // namespace

FusionPlugin::FusionPlugin(std::shared_ptr<const Settings> settings, std::string layer)
    : settings_(std::move(settings)),
      layer_(std::move(layer)),
      name_(settings_->variant.name()),
      timing_id_(id_of(*settings_)),
      metadata_(metadata_of(*settings_)),
      fields_(write_settings(*settings_)),
      collection_{static_cast<std::int32_t>(fields_.size()), fields_.data()} {}

nvinfer1::IPluginCapability* FusionPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE:
            return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD:
            return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        default:
            return nullptr;
    }
}

nvinfer1::IPluginV3* FusionPlugin::clone() noexcept {
    return guarded<nvinfer1::IPluginV3*>(layer_.c_str(), nullptr, [&]() -> nvinfer1::IPluginV3* {
        auto made = std::make_unique<FusionPlugin>(settings_, layer_);
        made->kernels_ = kernels_;
        return made.release();
    });
}

const char* FusionPlugin::getPluginVersion() const noexcept {
    return kVersion;
}

const char* FusionPlugin::getPluginNamespace() const noexcept {
    return kNamespace;
}

std::int32_t FusionPlugin::configurePlugin(const DynamicPluginTensorDesc* in, std::int32_t inputs,
                                           const DynamicPluginTensorDesc* out, std::int32_t outputs) noexcept {
    return guarded(layer_.c_str(), 1, [&] {
        static_cast<void>(largest_call(*settings_, in, inputs, out, outputs));
        return 0;
    });
}

std::int32_t FusionPlugin::getOutputDataTypes(nvinfer1::DataType* output_types, std::int32_t outputs,
                                              const nvinfer1::DataType* input_types, std::int32_t inputs) const noexcept {
    return guarded(layer_.c_str(), 1, [&] {
        check_counts(*settings_, input_types, inputs, output_types, outputs);
        for (std::int32_t index = 0; index < inputs; ++index) {
            require(kernel_type(input_types[index]) && input_types[index] == input_types[0], [&] {
                return "input " + std::to_string(index) +
                       " has another type than x, or one without kernels (float32, float16, bfloat16)";
            });
        }
        output_types[0] = input_types[0];
        return 0;
    });
}

std::int32_t FusionPlugin::getOutputShapes(const nvinfer1::DimsExprs* in, std::int32_t inputs, const nvinfer1::DimsExprs*,
                                           std::int32_t shape_inputs, nvinfer1::DimsExprs* out, std::int32_t outputs,
                                           nvinfer1::IExprBuilder&) noexcept {
    return guarded(layer_.c_str(), 1, [&] {
        check_counts(*settings_, in, inputs, out, outputs);
        require(shape_inputs == 0, [] { return "shape inputs are not known here"; });
        const std::int32_t rank = in[0].nbDims;
        require(rank >= 3 && rank <= nvinfer1::Dims::MAX_DIMS, [&] { return "x has " + std::to_string(rank) + " axes"; });
        const std::int32_t data = settings_->variant.data_inputs();
        for (std::int32_t index = 0; index < inputs; ++index) {
            const bool is_data = index < data;
            bool fits = in[index].nbDims == (is_data ? rank : weight_rank(index, *settings_, rank));
            for (std::int32_t axis = 0; fits && axis < in[index].nbDims; ++axis) {
                const nvinfer1::IDimensionExpr* size = in[index].d[axis];
                require(size != nullptr, [] { return "a null pointer for a dimension"; });
                const bool is_context = settings_->variant.explicit_context && index == data - 1;
                const std::int64_t channels = is_context ? settings_->context_channels : settings_->channels;
                const std::int64_t wanted = !is_data ? weight_size(*settings_, index, axis) : axis == 1 ? channels : -1;
                fits = wanted < 0 || !size->isConstant() || size->getConstantValue() == wanted;
            }
            require(fits, [&] { return "input " + std::to_string(index) + " has a shape that does not suit the fields"; });
        }
        out[0] = in[0];
        return 0;
    });
}

bool FusionPlugin::supportsFormatCombination(std::int32_t position, const DynamicPluginTensorDesc* all, std::int32_t inputs,
                                             std::int32_t outputs) noexcept {
    return guarded(layer_.c_str(), false, [&] {
        check_counts(*settings_, all, inputs, all, outputs);
        return position >= 0 && position < inputs + outputs && supports(*settings_, all[0].desc, all[position].desc, position);
    });
}

std::size_t FusionPlugin::getWorkspaceSize(const DynamicPluginTensorDesc* in, std::int32_t inputs,
                                           const DynamicPluginTensorDesc* out, std::int32_t outputs) const noexcept {
    // There is no way to say "error" here but a size that nothing can give.
    return guarded(layer_.c_str(), std::numeric_limits<std::size_t>::max(), [&] {
        const CallShape call = largest_call(*settings_, in, inputs, out, outputs);
        std::size_t most = 0;
        if (call.sizes.images > 0 && call.sizes.positions > 0) {
            for (const Image& image : settings_->images) {
                if (image.type == call.type && image.layout == call.layout) {
                    most = std::max(most, workspace_bound(settings_->variant, call.sizes, image.blocks));
                }
            }
        }
        return most;
    });
}

std::shared_ptr<const Fusion> FusionPlugin::kernels(const CallShape& call) {
    cuda::ModuleCache& cache = cuda::ModuleCache::shared();
    const auto driver = cuda::Driver::shared();
    if (kernels_ == nullptr || kernels_->type() != call.type || kernels_->layout() != call.layout ||
        !(kernels_->context() == cuda::current_context(*driver))) {
        kernels_ =
            std::make_shared<const Fusion>(cache, *driver, settings_->variant, settings_->images, call.type, call.layout);
    }
    return kernels_;
}

std::int32_t FusionPlugin::onShapeChange(const PluginTensorDesc* in, std::int32_t inputs, const PluginTensorDesc* out,
                                         std::int32_t outputs) noexcept {
    return guarded(layer_.c_str(), 1, [&] {
        // Loading belongs here and not into enqueue, which may be recorded into a CUDA graph.
        const CallShape call = read_shapes(*settings_, in, inputs, out, outputs);
        kernels(call)->check(call.sizes);
        return 0;
    });
}

std::int32_t FusionPlugin::enqueue(const PluginTensorDesc* in, const PluginTensorDesc* out, const void* const* inputs,
                                   void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    return guarded(layer_.c_str(), 1, [&] {
        require(inputs != nullptr && outputs != nullptr, [] { return "a null pointer for the tensors' addresses"; });
        const Variant& variant = settings_->variant;
        const CallShape call = read_shapes(*settings_, in, variant.inputs(), out, 1);
        Tensors tensors;
        const void* const* next = inputs;
        tensors.x = *next++;
        tensors.y = variant.blend ? *next++ : nullptr;
        tensors.a = variant.explicit_context ? *next++ : nullptr;
        const auto branch = [&next] {
            next += 4;
            return BranchWeights{next[-4], next[-3], next[-2], next[-1]};
        };
        tensors.local = variant.local ? branch() : BranchWeights{};
        tensors.global = variant.global ? branch() : BranchWeights{};
        tensors.out = outputs[0];
        tensors.workspace = workspace;
        kernels(call)->enqueue(call.sizes, tensors, settings_->scale, stream);
        return 0;
    });
}

nvinfer1::IPluginV3* FusionPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
    return clone();
}

}  // namespace aff_deploy
