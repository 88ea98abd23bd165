// FusedGates as TensorRT 8.5 and 8.6 take it: IPluginV2DynamicExt. No aliasing, no bfloat16.

#pragma once

#include "node.h"

#if NV_TENSORRT_MAJOR < 10

#include <string>

namespace edgelstm::trt {

class PluginV2 final : public nvinfer1::IPluginV2DynamicExt {
  public:
    explicit PluginV2(Fields const& fields) : mNode(fields) {}

    nvinfer1::AsciiChar const* getPluginType() const noexcept override { return kName; }
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return mNamespace.c_str(); }
    void setPluginNamespace(nvinfer1::AsciiChar const* name) noexcept override { mNamespace = name; }
    std::int32_t getNbOutputs() const noexcept override { return mNode.outputs(); }
    std::int32_t initialize() noexcept override { return 0; }
    void terminate() noexcept override {}
    void destroy() noexcept override { delete this; }
    nvinfer1::IPluginV2DynamicExt* clone() const noexcept override;
    std::size_t getSerializationSize() const noexcept override;
    void serialize(void* buffer) const noexcept override;

    nvinfer1::DataType getOutputDataType(std::int32_t index, nvinfer1::DataType const* inputTypes,
                                         std::int32_t nbInputs) const noexcept override;
    nvinfer1::DimsExprs getOutputDimensions(std::int32_t outputIndex, nvinfer1::DimsExprs const* inputs,
                                            std::int32_t nbInputs,
                                            nvinfer1::IExprBuilder& exprBuilder) noexcept override;
    bool supportsFormatCombination(std::int32_t pos, nvinfer1::PluginTensorDesc const* inOut, std::int32_t nbInputs,
                                   std::int32_t nbOutputs) noexcept override;
    void configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, std::int32_t nbInputs,
                         nvinfer1::DynamicPluginTensorDesc const* out, std::int32_t nbOutputs) noexcept override;
    std::size_t getWorkspaceSize(nvinfer1::PluginTensorDesc const*, std::int32_t, nvinfer1::PluginTensorDesc const*,
                                 std::int32_t) const noexcept override {
        return 0;
    }
    std::int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
                         void const* const* inputs, void* const* outputs, void* workspace,
                         cudaStream_t stream) noexcept override;

  private:
    Node mNode;
    std::string mNamespace = kNamespace;
};

class CreatorV2 final : public nvinfer1::IPluginCreator {
  public:
    nvinfer1::AsciiChar const* getPluginName() const noexcept override { return kName; }
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return mNamespace.c_str(); }
    void setPluginNamespace(nvinfer1::AsciiChar const* name) noexcept override { mNamespace = name; }
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return mFields.get(); }
    nvinfer1::IPluginV2* createPlugin(nvinfer1::AsciiChar const* name,
                                      nvinfer1::PluginFieldCollection const* fc) noexcept override;
    nvinfer1::IPluginV2* deserializePlugin(nvinfer1::AsciiChar const* name, void const* data,
                                           std::size_t length) noexcept override;

  private:
    FieldCollection mFields{Fields{}};
    std::string mNamespace = kNamespace;
};

}  // namespace edgelstm::trt

#endif
