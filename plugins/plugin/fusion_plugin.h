// The plugin itself: all three of TensorRT's capabilities in one object, over the launcher's Fusion.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "fields.h"
#include "launcher/fusion.h"
#include "tensors.h"

namespace aff_deploy {

class FusionPlugin : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
  public:
    // The layer's name is for messages.
    FusionPlugin(std::shared_ptr<const Settings> settings, std::string layer);

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    const char* getPluginName() const noexcept override { return name_.c_str(); }
    const char* getPluginVersion() const noexcept override;
    const char* getPluginNamespace() const noexcept override;

    // IPluginV3OneBuild
    std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, std::int32_t inputs,
                                 const nvinfer1::DynamicPluginTensorDesc* out, std::int32_t outputs) noexcept override;
    std::int32_t getOutputDataTypes(nvinfer1::DataType* output_types, std::int32_t outputs,
                                    const nvinfer1::DataType* input_types, std::int32_t inputs) const noexcept override;
    std::int32_t getOutputShapes(const nvinfer1::DimsExprs* in, std::int32_t inputs, const nvinfer1::DimsExprs* shape_in,
                                 std::int32_t shape_inputs, nvinfer1::DimsExprs* out, std::int32_t outputs,
                                 nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(std::int32_t position, const nvinfer1::DynamicPluginTensorDesc* all, std::int32_t inputs,
                                   std::int32_t outputs) noexcept override;
    std::int32_t getNbOutputs() const noexcept override { return 1; }
    std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, std::int32_t inputs,
                                 const nvinfer1::DynamicPluginTensorDesc* out, std::int32_t outputs) const noexcept override;
    const char* getTimingCacheID() noexcept override { return timing_id_.c_str(); }
    const char* getMetadataString() noexcept override { return metadata_.c_str(); }

    // IPluginV3OneRuntime
    std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, std::int32_t inputs, const nvinfer1::PluginTensorDesc* out,
                               std::int32_t outputs) noexcept override;
    std::int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out, const void* const* inputs,
                         void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override { return &collection_; }

  private:
    // The kernels for the type and layout in the current context, loaded if they are not yet.
    std::shared_ptr<const Fusion> kernels(const CallShape& call);

    std::shared_ptr<const Settings> settings_;
    std::string layer_;
    std::string name_;
    std::string timing_id_;
    std::string metadata_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_;
    // TensorRT calls an object from one thread at a time; clones share nothing but the settings and loaded kernels.
    std::shared_ptr<const Fusion> kernels_;
};

}  // namespace aff_deploy
