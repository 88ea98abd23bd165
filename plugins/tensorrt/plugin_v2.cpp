#include "plugin_v2.h"

#if NV_TENSORRT_MAJOR < 10

#include "log.h"

#include <cstring>

namespace edgelstm::trt {

using namespace nvinfer1;

namespace {

// In front of the serialised fields: a change of their layout gets another one.
constexpr char kMagic[8] = {'E', 'D', 'G', 'E', 'F', 'G', '0', '1'};

}  // namespace

IPluginV2DynamicExt* PluginV2::clone() const noexcept {
    auto* copy = new PluginV2(mNode.fields());
    copy->mNamespace = mNamespace;
    return copy;
}

std::size_t PluginV2::getSerializationSize() const noexcept { return sizeof kMagic + sizeof(Fields); }

void PluginV2::serialize(void* buffer) const noexcept {
    std::memcpy(buffer, kMagic, sizeof kMagic);
    std::memcpy(static_cast<char*>(buffer) + sizeof kMagic, &mNode.fields(), sizeof(Fields));
}

DataType PluginV2::getOutputDataType(std::int32_t index, DataType const* inputTypes, std::int32_t) const noexcept {
    return mNode.outputType(index, inputTypes);
}

DimsExprs PluginV2::getOutputDimensions(std::int32_t outputIndex, DimsExprs const* inputs, std::int32_t nbInputs,
                                        IExprBuilder&) noexcept {
    // No dimensions is how this interface says no.
    return report(mNode.checkCount(nbInputs, mNode.outputs())) ? mNode.outputShape(outputIndex, inputs) : DimsExprs{};
}

bool PluginV2::supportsFormatCombination(std::int32_t pos, PluginTensorDesc const* inOut, std::int32_t nbInputs,
                                         std::int32_t nbOutputs) noexcept {
    return report(mNode.checkCount(nbInputs, nbOutputs)) && mNode.supports(pos, inOut);
}

void PluginV2::configurePlugin(DynamicPluginTensorDesc const*, std::int32_t, DynamicPluginTensorDesc const*,
                               std::int32_t) noexcept {}

std::int32_t PluginV2::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const* outputDesc,
                               void const* const* inputs, void* const* outputs, void*, cudaStream_t stream) noexcept {
    // This interface can say no to shapes here only.
    return report(mNode.checkShapes(inputDesc)) ? mNode.launch(inputDesc, outputDesc, inputs, outputs, stream) : -1;
}

IPluginV2* CreatorV2::createPlugin(AsciiChar const*, PluginFieldCollection const* fc) noexcept {
    Fields fields;
    std::string error = fc != nullptr ? readFields(*fc, fields) : "no fields";
    if (error.empty() && fields.inPlace != 0) {
        error = "field 'in_place' must be 0: TensorRT 8 has no outputs over inputs";
    }
    return report(error) ? new PluginV2(fields) : nullptr;
}

IPluginV2* CreatorV2::deserializePlugin(AsciiChar const*, void const* data, std::size_t length) noexcept {
    Fields fields;
    bool const ours = length == sizeof kMagic + sizeof fields && std::memcmp(data, kMagic, sizeof kMagic) == 0;
    std::string error = "the plan holds a plugin of another version of the library: build the engine again";
    if (ours) {
        std::memcpy(&fields, static_cast<char const*>(data) + sizeof kMagic, sizeof fields);
        error = checkFields(fields);
    }
    return report(error) ? new PluginV2(fields) : nullptr;
}

}  // namespace edgelstm::trt

#endif
