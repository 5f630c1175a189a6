// One creator for every operator that there are kernels for: TensorRT finds them by the operator's name.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "launcher/variant.h"

namespace aff_deploy {

constexpr const char* kNamespace = "aff_deploy";
constexpr const char* kVersion = "1";

class FusionCreator : public nvinfer1::IPluginCreatorV3One {
  public:
    explicit FusionCreator(const Variant& variant);

    // Null, and an error in the log, for fields that do not make a plugin.
    nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
    const char* getPluginName() const noexcept override { return name_.c_str(); }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

  private:
    Variant variant_;
    std::string name_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_;
};

// All of them; they live as long as the process.
const std::vector<nvinfer1::IPluginCreatorInterface*>& all_creators();

}  // namespace aff_deploy
