#include "plugin_v3.h"

#if NV_TENSORRT_MAJOR >= 10

#include "log.h"

namespace edgelstm::trt {

using namespace nvinfer1;

namespace {

// TensorRT takes 0 for success.
std::int32_t status(std::string const& error) noexcept { return report(error) ? 0 : -1; }

}  // namespace

PluginV3::PluginV3(Fields const& fields) : mNode(fields), mDescription(describe(fields)), mSerialized(fields) {}

IPluginCapability* PluginV3::getCapabilityInterface(PluginCapabilityType type) noexcept {
    switch (type) {
        case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<BuildCapability*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

IPluginV3* PluginV3::clone() noexcept { return new PluginV3(mNode.fields()); }

std::int32_t PluginV3::configurePlugin(DynamicPluginTensorDesc const* in, std::int32_t nbInputs,
                                       DynamicPluginTensorDesc const*, std::int32_t nbOutputs) noexcept {
    std::string error = mNode.checkCount(nbInputs, nbOutputs);
    if (error.empty()) {
        PluginTensorDesc inputs[kMaxTensors];
        for (std::int32_t i = 0; i < nbInputs; ++i) {
            inputs[i] = in[i].desc;
        }
        error = mNode.checkShapes(inputs);
    }
    return status(error);
}

std::int32_t PluginV3::getOutputDataTypes(DataType* outputTypes, std::int32_t nbOutputs, DataType const* inputTypes,
                                          std::int32_t nbInputs) const noexcept {
    std::string const error = mNode.checkCount(nbInputs, nbOutputs);
    for (std::int32_t i = 0; error.empty() && i < nbOutputs; ++i) {
        outputTypes[i] = mNode.outputType(i, inputTypes);
    }
    return status(error);
}

std::int32_t PluginV3::getOutputShapes(DimsExprs const* inputs, std::int32_t nbInputs, DimsExprs const*, std::int32_t,
                                       DimsExprs* outputs, std::int32_t nbOutputs, IExprBuilder&) noexcept {
    std::string const error = mNode.checkCount(nbInputs, nbOutputs);
    for (std::int32_t i = 0; error.empty() && i < nbOutputs; ++i) {
        outputs[i] = mNode.outputShape(i, inputs);
    }
    return status(error);
}

bool PluginV3::supportsFormatCombination(std::int32_t pos, DynamicPluginTensorDesc const* inOut, std::int32_t nbInputs,
                                         std::int32_t nbOutputs) noexcept {
    if (!report(mNode.checkCount(nbInputs, nbOutputs))) {
        return false;
    }
    PluginTensorDesc tensors[kMaxTensors];
    for (std::int32_t i = 0; i <= pos; ++i) {
        tensors[i] = inOut[i].desc;
    }
    return mNode.supports(pos, tensors);
}

std::int32_t PluginV3::onShapeChange(PluginTensorDesc const* in, std::int32_t nbInputs, PluginTensorDesc const*,
                                     std::int32_t nbOutputs) noexcept {
    std::string const error = mNode.checkCount(nbInputs, nbOutputs);
    return status(error.empty() ? mNode.checkShapes(in) : error);
}

std::int32_t PluginV3::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const* outputDesc,
                               void const* const* inputs, void* const* outputs, void*, cudaStream_t stream) noexcept {
    return mNode.launch(inputDesc, outputDesc, inputs, outputs, stream);
}

IPluginV3* PluginV3::attachToContext(IPluginResourceContext*) noexcept { return clone(); }

IPluginV3* CreatorV3::createPlugin(AsciiChar const*, PluginFieldCollection const* fc, TensorRTPhase) noexcept {
    Fields fields;
    return report(fc != nullptr ? readFields(*fc, fields) : "no fields") ? new PluginV3(fields) : nullptr;
}

}  // namespace edgelstm::trt

#endif
