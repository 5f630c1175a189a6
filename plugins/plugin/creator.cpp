#include "creator.h"

#include <memory>

#include "fields.h"
#include "fusion_plugin.h"
#include "launcher/error.h"
#include "logging.h"

namespace aff_deploy {

FusionCreator::FusionCreator(const Variant& variant) : variant_(variant), name_(variant.name()), fields_(field_names()) {
    collection_ = {static_cast<std::int32_t>(fields_.size()), fields_.data()};
}

nvinfer1::IPluginV3* FusionCreator::createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                                 nvinfer1::TensorRTPhase) noexcept {
    return guarded<nvinfer1::IPluginV3*>(name_.c_str(), nullptr, [&]() -> nvinfer1::IPluginV3* {
        auto settings = std::make_shared<const Settings>(read_settings(variant_, fields));
        return std::make_unique<FusionPlugin>(std::move(settings), name == nullptr ? "" : name).release();
    });
}

const std::vector<nvinfer1::IPluginCreatorInterface*>& all_creators() {
    // Never destroyed: a registry may ask for them while the process ends.
    static const auto* const all = [] {
        auto* made = new std::vector<nvinfer1::IPluginCreatorInterface*>();
        for (const Variant& variant : all_variants()) {
            made->push_back(new FusionCreator(variant));
        }
        return made;
    }();
    return *all;
}

}  // namespace aff_deploy
