// TensorRT's own functions, found in the process if TensorRT is there.
#pragma once

#include <NvInferRuntime.h>

namespace aff_deploy {

// The process's plugin registry or global logger; null without TensorRT, or with another major version of it than the
// headers' that this library was compiled against.
nvinfer1::IPluginRegistry* find_registry() noexcept;
nvinfer1::ILogger* find_global_logger() noexcept;

// Whether the static initialiser registered the creators, so that getCreators must not hand them out again.
bool registered_statically() noexcept;

}  // namespace aff_deploy
