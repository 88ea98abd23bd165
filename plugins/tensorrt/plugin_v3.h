// FusedGates as TensorRT 10 and later take it: IPluginV3 with its three capabilities in one object.

#pragma once

#include "node.h"

#include <memory>
#include <string>

#if NV_TENSORRT_MAJOR >= 10

namespace edgelstm::trt {

// TensorRT 10.3 brought outputs that lie over inputs.
#if NV_TENSORRT_MAJOR > 10 || NV_TENSORRT_MINOR >= 3
#define EDGELSTM_ALIASED_IO 1
using BuildCapability = nvinfer1::v_2_0::IPluginV3OneBuild;
#else
#define EDGELSTM_ALIASED_IO 0
using BuildCapability = nvinfer1::v_1_0::IPluginV3OneBuild;
#endif

class PluginV3 final : public nvinfer1::IPluginV3,
                       public nvinfer1::IPluginV3OneCore,
                       public BuildCapability,
                       public nvinfer1::IPluginV3OneRuntime {
  public:
    explicit PluginV3(Fields const& fields);

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // Core
    nvinfer1::AsciiChar const* getPluginName() const noexcept override { return kName; }
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

    // Build
    std::int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, std::int32_t nbInputs,
                                 nvinfer1::DynamicPluginTensorDesc const* out,
                                 std::int32_t nbOutputs) noexcept override;
    std::int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, std::int32_t nbOutputs,
                                    nvinfer1::DataType const* inputTypes,
                                    std::int32_t nbInputs) const noexcept override;
    std::int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, std::int32_t nbInputs,
                                 nvinfer1::DimsExprs const* shapeInputs, std::int32_t nbShapeInputs,
                                 nvinfer1::DimsExprs* outputs, std::int32_t nbOutputs,
                                 nvinfer1::IExprBuilder& exprBuilder) noexcept override;
    bool supportsFormatCombination(std::int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut,
                                   std::int32_t nbInputs, std::int32_t nbOutputs) noexcept override;
    std::int32_t getNbOutputs() const noexcept override { return mNode.outputs(); }
    char const* getTimingCacheID() noexcept override { return mDescription.c_str(); }
    char const* getMetadataString() noexcept override { return mDescription.c_str(); }
#if EDGELSTM_ALIASED_IO
    std::int32_t getAliasedInput(std::int32_t outputIndex) noexcept override { return mNode.aliasedInput(outputIndex); }
#endif

    // Runtime
    std::int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, std::int32_t nbInputs,
                               nvinfer1::PluginTensorDesc const* out, std::int32_t nbOutputs) noexcept override;
    std::int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
                         void const* const* inputs, void* const* outputs, void* workspace,
                         cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override { return mSerialized.get(); }

  private:
    Node mNode;
    std::string mDescription;
    FieldCollection mSerialized;
};

class CreatorV3 final : public nvinfer1::IPluginCreatorV3One {
  public:
    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fc,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return mFields.get(); }
    nvinfer1::AsciiChar const* getPluginName() const noexcept override { return kName; }
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

  private:
    FieldCollection mFields{Fields{}};
};

}  // namespace edgelstm::trt

#endif
