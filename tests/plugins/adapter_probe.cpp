// Asks a plugin library what TensorRT asks, through the same virtual functions, compiled against the same headers.
// No TensorRT is needed, so each version's adapter can be tried anywhere. Flat functions, for Python's ctypes.

#include <NvInferRuntime.h>

#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "edgelstm/fused_gates_plan.h"

using namespace nvinfer1;

#if NV_TENSORRT_MAJOR >= 10
using Creator = IPluginCreatorV3One;
using Plugin = IPluginV3;
#else
using Creator = IPluginCreator;
using Plugin = IPluginV2DynamicExt;
#endif

struct Tensor {
    std::int32_t rank;
    std::int64_t dims[8];
    std::int32_t type;
    std::int32_t format;
    void* data;
};

namespace {

std::string gMessages;

#if NV_TENSORRT_MAJOR > 8 || NV_TENSORRT_MINOR >= 6
struct Log : ILogger {
    void log(Severity, AsciiChar const* message) noexcept override { gMessages += std::string(message) + "\n"; }
} gLog;

struct Finder : ILoggerFinder {
    ILogger* findLogger() noexcept override { return &gLog; }
} gFinder;
#endif

PluginTensorDesc describe(Tensor const& tensor) {
    PluginTensorDesc desc{};
    desc.dims.nbDims = tensor.rank;
    for (std::int32_t i = 0; i < tensor.rank; ++i) {
        desc.dims.d[i] = tensor.dims[i];
    }
    desc.type = static_cast<DataType>(tensor.type);
    desc.format = static_cast<TensorFormat>(tensor.format);
    return desc;
}

std::vector<PluginTensorDesc> describe(std::int32_t count, Tensor const* tensors) {
    std::vector<PluginTensorDesc> descs;
    for (std::int32_t i = 0; i < count; ++i) {
        descs.push_back(describe(tensors[i]));
    }
    return descs;
}

std::vector<DynamicPluginTensorDesc> describeDynamic(std::int32_t count, Tensor const* tensors) {
    std::vector<DynamicPluginTensorDesc> descs;
    for (std::int32_t i = 0; i < count; ++i) {
        PluginTensorDesc const desc = describe(tensors[i]);
        DynamicPluginTensorDesc dynamic{};
        dynamic.desc = desc;
        dynamic.min = dynamic.max = desc.dims;
        descs.push_back(dynamic);
    }
    return descs;
}

#if NV_TENSORRT_MAJOR >= 10
#if NV_TENSORRT_MAJOR > 10 || NV_TENSORRT_MINOR >= 3
using Build = v_2_0::IPluginV3OneBuild;
#else
using Build = v_1_0::IPluginV3OneBuild;
#endif
Build* build(void* plugin) {
    return static_cast<Build*>(static_cast<Plugin*>(plugin)->getCapabilityInterface(PluginCapabilityType::kBUILD));
}

IPluginV3OneRuntime* runtime(void* plugin) {
    return static_cast<IPluginV3OneRuntime*>(
        static_cast<Plugin*>(plugin)->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}
#endif

int copy(std::string const& text, char* out, int size) {
    std::strncpy(out, text.c_str(), size - 1);
    out[size - 1] = 0;
    return static_cast<int>(text.size());
}

}  // namespace

extern "C" {

// A dimension's stand-in for an expression: input number and axis, never followed.
constexpr std::intptr_t kToken = 0x1000;

void* probeOpen(char const* path) {
    void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        gMessages += dlerror();
        return nullptr;
    }
    std::int32_t count = 0;
#if NV_TENSORRT_MAJOR > 8 || NV_TENSORRT_MINOR >= 6
    reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(handle, "setLoggerFinder"))(&gFinder);
#endif
#if NV_TENSORRT_MAJOR >= 10
    auto* creators = reinterpret_cast<IPluginCreatorInterface* const* (*)(std::int32_t&)>(dlsym(handle, "getCreators"));
#else
    auto* creators = reinterpret_cast<IPluginCreator* const* (*)(std::int32_t&)>(dlsym(handle, "getPluginCreators"));
#endif
    auto* first = creators(count)[0];
    return count == 1 ? static_cast<Creator*>(first) : nullptr;
}

int probeMessages(char* out, int size) {
    int const length = copy(gMessages, out, size);
    gMessages.clear();
    return length;
}

// name, version, namespace, then "field:type" each, separated by blanks.
int probeCreator(void* creator, char* out, int size) {
    auto* c = static_cast<Creator*>(creator);
    std::string text = std::string(c->getPluginName()) + " " + c->getPluginVersion() + " " + c->getPluginNamespace();
    PluginFieldCollection const* fields = c->getFieldNames();
    for (int i = 0; i < fields->nbFields; ++i) {
        text += std::string(" ") + fields->fields[i].name + ":" + std::to_string(static_cast<int>(fields->fields[i].type));
    }
    return copy(text, out, size);
}

void* probeCreate(void* creator, int count, char const* const* names, int const* types, void const* const* data,
                  int const* lengths) {
    std::vector<PluginField> fields;
    for (int i = 0; i < count; ++i) {
        fields.emplace_back(names[i], data[i], static_cast<PluginFieldType>(types[i]), lengths[i]);
    }
    PluginFieldCollection const collection{count, fields.data()};
#if NV_TENSORRT_MAJOR >= 10
    return static_cast<Creator*>(creator)->createPlugin("probe", &collection, TensorRTPhase::kBUILD);
#else
    auto* plugin = static_cast<Creator*>(creator)->createPlugin("probe", &collection);
    return plugin == nullptr ? nullptr : static_cast<Plugin*>(plugin);
#endif
}

void probeDestroy(void* plugin) {
#if NV_TENSORRT_MAJOR >= 10
    delete static_cast<Plugin*>(plugin);
#else
    static_cast<Plugin*>(plugin)->destroy();
#endif
}

void* probeClone(void* plugin) {
#if NV_TENSORRT_MAJOR >= 10
    return runtime(plugin)->attachToContext(nullptr);
#else
    return static_cast<Plugin*>(plugin)->clone();
#endif
}

// What goes into a plan, and what comes back out of it. V2 stores bytes itself: byte number `damaged` is another one then.
void* probeRoundTrip(void* creator, void* plugin, [[maybe_unused]] int damaged) {
    auto* c = static_cast<Creator*>(creator);
#if NV_TENSORRT_MAJOR >= 10
    return c->createPlugin("probe", runtime(plugin)->getFieldsToSerialize(), TensorRTPhase::kRUNTIME);
#else
    auto* p = static_cast<Plugin*>(plugin);
    std::vector<char> bytes(p->getSerializationSize());
    p->serialize(bytes.data());
    if (damaged >= 0) {
        bytes[damaged % bytes.size()] ^= 0x55;
    }
    IPluginV2* back = c->deserializePlugin("probe", bytes.data(), bytes.size());
    return back == nullptr ? nullptr : static_cast<Plugin*>(back);
#endif
}

// All that the plugin keeps, as text.
int probeDescribe(void* plugin, char* out, int size) {
#if NV_TENSORRT_MAJOR >= 10
    return copy(build(plugin)->getMetadataString(), out, size);
#else
    auto* p = static_cast<Plugin*>(plugin);
    std::string bytes(p->getSerializationSize(), 0);
    p->serialize(bytes.data());
    std::string text;
    for (unsigned char byte : bytes) {
        text += std::to_string(byte) + " ";
    }
    return copy(text, out, size);
#endif
}

int probeOutputs(void* plugin) {
#if NV_TENSORRT_MAJOR >= 10
    return build(plugin)->getNbOutputs();
#else
    return static_cast<Plugin*>(plugin)->getNbOutputs();
#endif
}

int probeTypes(void* plugin, int inputs, int const* types, int outputs, int* out) {
    std::vector<DataType> given;
    for (int i = 0; i < inputs; ++i) {
        given.push_back(static_cast<DataType>(types[i]));
    }
    std::vector<DataType> answer(outputs);
    int status = 0;
#if NV_TENSORRT_MAJOR >= 10
    status = build(plugin)->getOutputDataTypes(answer.data(), outputs, given.data(), inputs);
#else
    for (int i = 0; i < outputs; ++i) {
        answer[i] = static_cast<Plugin*>(plugin)->getOutputDataType(i, given.data(), inputs);
    }
#endif
    for (int i = 0; i < outputs; ++i) {
        out[i] = static_cast<int>(answer[i]);
    }
    return status;
}

// ranks[outputs], and for each output 8 numbers: 100 * input + axis.
int probeShapes(void* plugin, int inputs, Tensor const* tensors, int outputs, int* ranks, int* tokens) {
    std::vector<DimsExprs> given(inputs);
    for (int i = 0; i < inputs; ++i) {
        given[i].nbDims = tensors[i].rank;
        for (int k = 0; k < tensors[i].rank; ++k) {
            given[i].d[k] = reinterpret_cast<IDimensionExpr const*>(kToken + 100 * i + k);
        }
    }
    static char unused[64];
    auto& builder = *reinterpret_cast<IExprBuilder*>(unused);
    std::vector<DimsExprs> answer(outputs);
    int status = 0;
#if NV_TENSORRT_MAJOR >= 10
    status = build(plugin)->getOutputShapes(given.data(), inputs, nullptr, 0, answer.data(), outputs, builder);
#else
    for (int i = 0; i < outputs; ++i) {
        answer[i] = static_cast<Plugin*>(plugin)->getOutputDimensions(i, given.data(), inputs, builder);
        status |= answer[i].nbDims == 0;
    }
#endif
    for (int i = 0; status == 0 && i < outputs; ++i) {
        ranks[i] = answer[i].nbDims;
        for (int k = 0; k < answer[i].nbDims; ++k) {
            tokens[8 * i + k] = static_cast<int>(reinterpret_cast<std::intptr_t>(answer[i].d[k]) - kToken);
        }
    }
    return status;
}

int probeAliased([[maybe_unused]] void* plugin, [[maybe_unused]] int output) {
#if NV_TENSORRT_MAJOR > 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR >= 3)
    return build(plugin)->getAliasedInput(output);
#else
    return -1;
#endif
}

int probeSupports(void* plugin, int position, int inputs, int outputs, Tensor const* tensors) {
#if NV_TENSORRT_MAJOR >= 10
    // As TensorRT does, what comes after `position` is not there.
    return build(plugin)->supportsFormatCombination(position, describeDynamic(position + 1, tensors).data(), inputs,
                                                    outputs);
#else
    return static_cast<Plugin*>(plugin)->supportsFormatCombination(
        position, describe(position + 1, tensors).data(), inputs, outputs);
#endif
}

// configurePlugin() at build time, onShapeChange() at run time. V2 has nothing that answers here.
int probeShapeCheck([[maybe_unused]] void* plugin, [[maybe_unused]] int inputs, [[maybe_unused]] Tensor const* tensors,
                    [[maybe_unused]] int outputs, [[maybe_unused]] int atRuntime) {
#if NV_TENSORRT_MAJOR >= 10
    if (atRuntime != 0) {
        return runtime(plugin)->onShapeChange(describe(inputs, tensors).data(), inputs, nullptr, outputs);
    }
    return build(plugin)->configurePlugin(describeDynamic(inputs, tensors).data(), inputs, nullptr, outputs);
#else
    return -2;
#endif
}

int probeEnqueue(void* plugin, int inputs, int outputs, Tensor const* tensors) {
    std::vector<PluginTensorDesc> const in = describe(inputs, tensors), out = describe(outputs, tensors + inputs);
    std::vector<void const*> inData;
    std::vector<void*> outData;
    for (int i = 0; i < inputs + outputs; ++i) {
        i < inputs ? inData.push_back(tensors[i].data) : outData.push_back(tensors[i].data);
    }
#if NV_TENSORRT_MAJOR >= 10
    return runtime(plugin)->enqueue(in.data(), out.data(), inData.data(), outData.data(), nullptr, nullptr);
#else
    return static_cast<Plugin*>(plugin)->enqueue(in.data(), out.data(), inData.data(), outData.data(), nullptr, nullptr);
#endif
}

// Whether there is a kernel: types and layouts of z, c and h, as edgelstm counts them.
bool probeKernel(int const* types, int const* layouts) {
    edgelstm::TensorForm forms[3];
    for (int i = 0; i < 3; ++i) {
        forms[i] = {static_cast<edgelstm::DataType>(types[i]), static_cast<edgelstm::Layout>(layouts[i])};
    }
    return edgelstm::formsSupported({forms[0], forms[1], forms[2]});
}
}

#if defined(PROBE_MAIN)
// For a machine without Python: loads the library, makes a plugin and takes it through a plan.
int main(int, char** arguments) {
    char text[4096];
    void* creator = probeOpen(arguments[1]);
    if (creator == nullptr) {
        std::fprintf(stderr, "%s\n", gMessages.c_str());
        return 1;
    }
    probeCreator(creator, text, sizeof text);
    std::puts(text);
    void* plugin = probeRoundTrip(creator, probeCreate(creator, 0, nullptr, nullptr, nullptr, nullptr), -1);
    probeDescribe(plugin, text, sizeof text);
    std::puts(text);
    Tensor const z{4, {1, 32, 5, 6}, 1, 2, nullptr}, c{4, {1, 8, 5, 6}, 0, 0, nullptr}, h{4, {1, 8, 5, 6}, 1, 2, nullptr};
    Tensor const tensors[] = {z, c, h, c};
    for (int i = 0; i < 4; ++i) {
        std::printf("%d\n", probeSupports(plugin, i, 2, 2, tensors));
    }
    probeDestroy(plugin);
    return 0;
}
#endif
