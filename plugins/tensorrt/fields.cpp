#include "fields.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <iterator>

namespace edgelstm::trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

// One row a field: its name, and the member it is kept in (an integer or a real one).
struct Row {
    char const* name;
    std::int32_t Fields::*integer;
    float Fields::*real;

    PluginFieldType type() const { return integer != nullptr ? PluginFieldType::kINT32 : PluginFieldType::kFLOAT32; }

    void* in(Fields& fields) const {
        return integer != nullptr ? static_cast<void*>(&(fields.*integer)) : static_cast<void*>(&(fields.*real));
    }
};

constexpr Row kRows[] = {
    {"peephole", &Fields::peephole, nullptr},
    {"hard_sigmoid", &Fields::hardSigmoid, nullptr},
    {"alpha", nullptr, &Fields::alpha},
    {"beta", nullptr, &Fields::beta},
    {"candidate_relu", &Fields::candidateRelu, nullptr},
    {"output_relu", &Fields::outputRelu, nullptr},
    {"cell_clip", nullptr, &Fields::cellClip},
    {"coupled", &Fields::coupled, nullptr},
    {"h_type", &Fields::hType, nullptr},
    {"h_scale", nullptr, &Fields::hScale},
    {"in_place", &Fields::inPlace, nullptr},
    {"masked", &Fields::masked, nullptr},
    {"count_non_finite", &Fields::countNonFinite, nullptr},
};
static_assert(sizeof(kRows) / sizeof(kRows[0]) == kFieldCount);

Row const* findRow(char const* name) {
    for (Row const& row : kRows) {
        if (std::strcmp(row.name, name) == 0) {
            return &row;
        }
    }
    return nullptr;
}

}  // namespace

std::string readFields(nvinfer1::PluginFieldCollection const& collection, Fields& fields) {
    for (std::int32_t i = 0; i < collection.nbFields; ++i) {
        PluginField const& given = collection.fields[i];
        std::string const name = given.name != nullptr ? given.name : "";
        Row const* row = findRow(name.c_str());
        if (row == nullptr) {
            return "unknown field '" + name + "': the library is older than what made the graph, build it again";
        }
        if (given.type != row->type() || given.length != 1 || given.data == nullptr) {
            return "field '" + name + "' must be one " + (row->integer != nullptr ? "int32" : "float32") +
                   ", found type " + std::to_string(static_cast<std::int32_t>(given.type)) + ", length " +
                   std::to_string(given.length);
        }
        std::memcpy(row->in(fields), given.data, 4);
    }
    return checkFields(fields);
}

std::string checkFields(Fields const& fields) {
    for (Row const& row : kRows) {
        bool const flag = row.integer != nullptr && row.integer != &Fields::hType;
        if (flag && fields.*row.integer != 0 && fields.*row.integer != 1) {
            return std::string("field '") + row.name + "' must be 0 or 1, found " +
                   std::to_string(fields.*row.integer);
        }
        if (row.real != nullptr && !std::isfinite(fields.*row.real)) {
            return std::string("field '") + row.name + "' must be finite";
        }
    }
    if (fields.cellClip < 0.0F) {
        return "field 'cell_clip' must be 0 (off) or more, found " + std::to_string(fields.cellClip);
    }
    constexpr std::int32_t kInt8 = 2;
    constexpr std::int32_t kTypes[] = {-1, 0, 1, kInt8, 7};
    if (std::find(std::begin(kTypes), std::end(kTypes), fields.hType) == std::end(kTypes)) {
        return "field 'h_type' must be -1 (as z), 0 (float), 1 (half), 2 (int8) or 7 (bfloat16), found " +
               std::to_string(fields.hType);
    }
    if ((fields.hType == kInt8) != (fields.hScale > 0.0F) || fields.hScale < 0.0F) {
        return "field 'h_scale' must be above 0 for h_type 2 (int8) and 0 for others, found " +
               std::to_string(fields.hScale) + " with h_type " + std::to_string(fields.hType);
    }
    return {};
}

std::string describe(Fields const& fields) {
    std::string text;
    for (Row const& row : kRows) {
        char value[32];
        if (row.integer != nullptr) {
            std::snprintf(value, sizeof value, "%d", static_cast<int>(fields.*row.integer));
        } else {
            std::snprintf(value, sizeof value, "%.9g", static_cast<double>(fields.*row.real));
        }
        text += (text.empty() ? "" : " ") + std::string(row.name) + "=" + value;
    }
    return text;
}

FieldCollection::FieldCollection(Fields const& fields) : mFields(fields) {
    for (std::int32_t i = 0; i < kFieldCount; ++i) {
        mEntries[i] = PluginField(kRows[i].name, kRows[i].in(mFields), kRows[i].type(), 1);
    }
    mCollection.nbFields = kFieldCount;
    mCollection.fields = mEntries.data();
}

}  // namespace edgelstm::trt
