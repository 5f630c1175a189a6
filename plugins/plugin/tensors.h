// TensorRT's descriptions of tensors, checked against what the plugin was made for.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <optional>

#include "fields.h"
#include "launcher/fusion.h"

namespace aff_deploy {

// The kernels' name for a type; nothing for a type without kernels.
std::optional<Type> kernel_type(nvinfer1::DataType type);

// The kernels' layout that a format is for these channels; nothing if they read no such format. Channels-last formats hold
// whole vectors of channels, so they are the kernels' dense layout only where the channels fill them.
std::optional<Layout> kernel_layout(nvinfer1::TensorFormat format, Type type, std::int32_t rank, const Settings& settings);

// Whether tensor `position` may be so, given those before it; x decides for all.
bool supports(const Settings& settings, const nvinfer1::PluginTensorDesc& first, const nvinfer1::PluginTensorDesc& desc,
              std::int32_t position);

// What a call is, once its shapes are known.
struct CallShape {
    Sizes sizes;
    Type type;
    Layout layout;
};

// Throws Error where the descriptions disagree with each other or with the settings.
CallShape read_shapes(const Settings& settings, const nvinfer1::PluginTensorDesc* inputs, std::int32_t input_count,
                      const nvinfer1::PluginTensorDesc* outputs, std::int32_t output_count);

// The dimension that a weight must have at `axis`, by its position among the inputs; -1 for a data tensor.
std::int64_t weight_size(const Settings& settings, std::int32_t position, std::int32_t axis);
std::int32_t weight_rank(std::int32_t position, const Settings& settings, std::int32_t data_rank);

// Throws Error for a number of axes that the descriptions have no room for: nothing may be read beyond.
void check_rank(const nvinfer1::Dims& dims);

void check_counts(const Settings& settings, const void* inputs, std::int32_t input_count, const void* outputs,
                  std::int32_t output_count);

}  // namespace aff_deploy
