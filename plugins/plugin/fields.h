// A plugin's settings as TensorRT hands them over and takes them back: PluginFields named like the node's attributes.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

#include "launcher/images.h"
#include "launcher/variant.h"

namespace aff_deploy {

// Frozen; all clones of a plugin share one.
struct Settings {
    Variant variant;
    std::string context;  // as the node says it
    std::string activation;
    std::string gate;
    float scale;
    std::int32_t channels;
    std::int32_t inter;
    std::int32_t context_channels;
    std::vector<std::int32_t> table;
    std::string text;
    std::vector<Image> images;
};

// The fields that a creator asks for. The ONNX parser hands over the attributes that are in this list, and no others.
std::vector<nvinfer1::PluginField> field_names();

// Throws Error for a field that is missing, twice, of the wrong type or size, or that does not suit the variant.
Settings read_settings(const Variant& variant, const nvinfer1::PluginFieldCollection* fields);

// The same fields again, pointing into the settings: read_settings of them gives the same settings.
std::vector<nvinfer1::PluginField> write_settings(const Settings& settings);

}  // namespace aff_deploy
