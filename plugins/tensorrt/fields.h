// The plugin's fields: what a FusedGates node's attributes say, read from and written to TensorRT's field collections.

#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <string>

namespace edgelstm::trt {

inline constexpr char kName[] = "FusedGates";
inline constexpr char kVersion[] = "1";
inline constexpr char kNamespace[] = "edgelstm";

// Defaults are those of the op, so a node names only what differs. Ints are 0 or 1 but hType, a number of
// nvinfer1::DataType (0 float, 1 half, 2 int8, 7 bfloat16) or -1: the type of z.
struct Fields {
    std::int32_t peephole = 0;
    std::int32_t hardSigmoid = 0;
    float alpha = 0.2F;
    float beta = 0.5F;
    std::int32_t candidateRelu = 0;
    std::int32_t outputRelu = 0;
    float cellClip = 0.0F;  // 0: off
    std::int32_t coupled = 0;
    std::int32_t hType = -1;
    float hScale = 0.0F;  // of int8 h, else 0
    std::int32_t inPlace = 0;
    std::int32_t masked = 0;
    std::int32_t countNonFinite = 0;
};

inline constexpr std::int32_t kFieldCount = 13;

// Reads `collection` into `fields`. Returns what is wrong, or nothing. A field that is not known is wrong: it would
// change the equations in a way this library does not compute.
std::string readFields(nvinfer1::PluginFieldCollection const& collection, Fields& fields);

// What is wrong with the values, or nothing.
std::string checkFields(Fields const& fields);

// All fields as text: tells two plugins' equations apart (timing caches, engine inspectors).
std::string describe(Fields const& fields);

// A collection that points into a copy of the fields it was made from.
class FieldCollection {
  public:
    explicit FieldCollection(Fields const& fields);
    FieldCollection(FieldCollection const&) = delete;
    FieldCollection& operator=(FieldCollection const&) = delete;

    nvinfer1::PluginFieldCollection const* get() const noexcept { return &mCollection; }

  private:
    Fields mFields;
    std::array<nvinfer1::PluginField, kFieldCount> mEntries;
    nvinfer1::PluginFieldCollection mCollection{};
};

}  // namespace edgelstm::trt
