// A FusedGates node as TensorRT sees it: which tensor is which, their types, shapes and layouts, and the launch.
// Both adapters (plugin_v3, plugin_v2) ask here, so they differ only in how TensorRT asks them.

#pragma once

#include "fields.h"

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>

namespace edgelstm::trt {

// What a tensor of the node is. Inputs in this order, those that the fields leave out excepted; then the outputs.
enum class Role : std::int32_t { kZ, kC, kPeepI, kPeepF, kPeepO, kHOld, kActive, kH, kCOut, kNonFinite };

inline constexpr std::int32_t kMaxTensors = 10;

class Node {
  public:
    explicit Node(Fields const& fields);

    Fields const& fields() const noexcept { return mFields; }
    std::int32_t inputs() const noexcept { return mInputs; }
    std::int32_t outputs() const noexcept { return mOutputs; }

    // The tensor at `position`, inputs first, outputs after them.
    Role role(std::int32_t position) const noexcept { return mRoles[position]; }

    // The position of a tensor, or -1 where the node has none such.
    std::int32_t position(Role role) const noexcept;

    // The input that output number `output` lies over, or -1.
    std::int32_t aliasedInput(std::int32_t output) const noexcept;

    // The type of output number `output`. `types`: those of the inputs.
    nvinfer1::DataType outputType(std::int32_t output, nvinfer1::DataType const* types) const noexcept;

    // The shape of output number `output`. `shapes`: those of the inputs.
    nvinfer1::DimsExprs outputShape(std::int32_t output, nvinfer1::DimsExprs const* shapes) const noexcept;

    // Whether the tensor at `position` may have the type and layout it has in `tensors`, given those before it.
    bool supports(std::int32_t position, nvinfer1::PluginTensorDesc const* tensors) const noexcept;

    // What is wrong with how many tensors there are, or nothing.
    std::string checkCount(std::int32_t inputs, std::int32_t outputs) const;

    // What is wrong with the inputs' shapes (-1: not known yet), or nothing. There must be as many as inputs().
    std::string checkShapes(nvinfer1::PluginTensorDesc const* inputs) const;

    // Launches the kernel; 0 on success, else a cudaError_t.
    std::int32_t launch(nvinfer1::PluginTensorDesc const* inputDescs, nvinfer1::PluginTensorDesc const* outputDescs,
                        void const* const* inputs, void* const* outputs, cudaStream_t stream) const noexcept;

  private:
    Fields mFields;
    std::int32_t mInputs = 0;
    std::int32_t mOutputs = 0;
    Role mRoles[kMaxTensors] = {};
};

}  // namespace edgelstm::trt
