// What TensorRT, and those who look at the file without loading it, find in the library.
//
// TensorRT's registry loads it with loadLibrary(): getCreators (10 and later), getPluginCreators (8.6). TensorRT 8.5 has
// no loadLibrary: give edgelstmRegister() the pointer that libnvinfer's getPluginRegistry() returns.

#include "log.h"
#include "plugin_v2.h"
#include "plugin_v3.h"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <mutex>

#define EDGELSTM_TEXT2(x) #x
#define EDGELSTM_TEXT(x) EDGELSTM_TEXT2(x)
#define EDGELSTM_EXPORT extern "C" __attribute__((visibility("default")))

#if !defined(EDGELSTM_ARCHITECTURES) || !defined(EDGELSTM_PTX)
#error "CMakeLists.txt sets these: for which GPU architectures there is machine code, and for which PTX"
#endif

#if defined(__x86_64__)
#define EDGELSTM_MACHINE "x86_64"
#elif defined(__aarch64__)
#define EDGELSTM_MACHINE "aarch64"
#else
#error "the plugin is built for x86-64 and 64-bit Arm"
#endif

#define EDGELSTM_TENSORRT \
    EDGELSTM_TEXT(NV_TENSORRT_MAJOR) "." EDGELSTM_TEXT(NV_TENSORRT_MINOR) "." EDGELSTM_TEXT(NV_TENSORRT_PATCH)

// Read from the file's bytes by edgelstm/runtime/plugin_library.py, so this is a format: "edgelstm-plugin ", JSON, a zero.
EDGELSTM_EXPORT char const edgelstmPluginInfo[] __attribute__((used)) =
    "edgelstm-plugin {\"schema\": 1, \"plugin\": \"FusedGates\", \"plugin_version\": \"1\", "
    "\"tensorrt\": \"" EDGELSTM_TENSORRT "\", \"cuda\": " EDGELSTM_TEXT(CUDART_VERSION) ", "
    "\"architectures\": [" EDGELSTM_ARCHITECTURES "], \"ptx\": " EDGELSTM_PTX ", \"machine\": \"" EDGELSTM_MACHINE "\"}";

namespace edgelstm::trt {
namespace {

#if NV_TENSORRT_MAJOR > 8 || NV_TENSORRT_MINOR >= 6
std::mutex gMutex;
nvinfer1::ILoggerFinder* gFinder = nullptr;

nvinfer1::ILogger* findLogger() {
    std::lock_guard<std::mutex> const lock(gMutex);
    return gFinder != nullptr ? gFinder->findLogger() : nullptr;
}
#else
nvinfer1::ILogger* findLogger() { return nullptr; }
#endif

}  // namespace

bool report(std::string const& error) noexcept {
    if (!error.empty()) {
        std::string const message = "FusedGates: " + error;
        if (nvinfer1::ILogger* logger = findLogger()) {
            logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
        } else {
            std::fprintf(stderr, "%s\n", message.c_str());
        }
    }
    return error.empty();
}

}  // namespace edgelstm::trt

#if NV_TENSORRT_MAJOR > 8 || NV_TENSORRT_MINOR >= 6

EDGELSTM_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    std::lock_guard<std::mutex> const lock(edgelstm::trt::gMutex);
    edgelstm::trt::gFinder = finder;
}

#endif

#if NV_TENSORRT_MAJOR >= 10

EDGELSTM_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& nbCreators) {
    static edgelstm::trt::CreatorV3 creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    nbCreators = 1;
    return creators;
}

#else

EDGELSTM_EXPORT nvinfer1::IPluginCreator* const* getPluginCreators(std::int32_t& nbCreators) {
    static edgelstm::trt::CreatorV2 creator;
    static nvinfer1::IPluginCreator* const creators[] = {&creator};
    nbCreators = 1;
    return creators;
}

// Whether the creator is in `registry` now, an nvinfer1::IPluginRegistry*.
EDGELSTM_EXPORT bool edgelstmRegister(void* registry) {
    std::int32_t count = 0;
    nvinfer1::IPluginCreator* creator = getPluginCreators(count)[0];
    return static_cast<nvinfer1::IPluginRegistry*>(registry)->registerCreator(*creator, edgelstm::trt::kNamespace);
}

#endif
