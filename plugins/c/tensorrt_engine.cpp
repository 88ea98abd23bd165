// TensorRT 10.3 or later as an Engine: as edgelstm/runtime/tensorrt.py. Compiled with TensorRT's headers (EDGELSTM_TENSORRT), whose classes
// keep their layout within a major version; without them all that is left is one error. Its library is loaded when it is needed.
#include "engine.h"
#include "error.h"

#ifndef EDGELSTM_TENSORRT

namespace edgelstm {

std::unique_ptr<Engine> open_tensorrt(const std::string& path, const edgelstm_options&, Cuda*) {
  throw Error(EDGELSTM_LIBRARY, path + " is an engine for TensorRT, which this library was built without",
              "Build it with TensorRT's headers: edgelstm build-plugin --c --tensorrt-include FOLDER; or open the .onnx file");
}

}  // namespace edgelstm

#else

#include <NvInferRuntime.h>
#include <dlfcn.h>
#include <glob.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <set>

#include "sidecar.h"

static_assert(NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR >= 3, "headers of TensorRT 10 are due: 10.3 or later");

namespace edgelstm {
namespace {

namespace trt = nvinfer1;

constexpr int kSame = NV_TENSORRT_MAJOR;  // objects of another major version have another layout

std::string numbers(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
}

int number(const std::string& version) {  // 10.3.0.26: 100300
  int found[3] = {}, k = 0;
  for (char c : version) {
    if (c == '.') {
      if (++k == 3) break;
    } else if (c >= '0' && c <= '9' && found[k] < 100) {
      found[k] = found[k] * 10 + (c - '0');
    }
  }
  return found[0] * 10000 + found[1] * 100 + found[2];
}

class Log : public trt::ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override {
    if (severity > Severity::kERROR || text == nullptr) return;
    try {
      std::lock_guard<std::mutex> turn(mutex_);
      std::string said = text;
      last_ = said.substr(0, said.find('\n'));
    } catch (...) {
    }
  }
  std::string last() {
    std::lock_guard<std::mutex> turn(mutex_);
    return last_.empty() ? "no reason given" : last_;
  }

 private:
  std::mutex mutex_;
  std::string last_;
};

struct Library {
  int version;
  Log log;
  trt::IRuntime* runtime;
  trt::IPluginRegistry* (*registry)() noexcept;
  std::set<std::string> plugins;
};

// It stays for the life of the process: plugins, and what it started, may outlive every program.
Library& load_library(const char* given) {
  static std::mutex mutex;
  static auto& loaded = *new std::map<void*, std::unique_ptr<Library>>;
  std::lock_guard<std::mutex> turn(mutex);
  const char hint[] = "Install TensorRT 10.3 or later (on a Jetson it comes with JetPack), and name its library or folder: the option tensorrt, or "
                      "$EDGELSTM_TENSORRT";
  if (given == nullptr || *given == '\0') given = getenv("EDGELSTM_TENSORRT");
  std::string path = given == nullptr || *given == '\0' ? "libnvinfer.so.10" : given;
  struct stat info;
  if (stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) path += "/libnvinfer.so.10";
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  const char* said = handle == nullptr ? dlerror() : nullptr;
  if (handle == nullptr) throw Error(EDGELSTM_LIBRARY, std::string("TensorRT can't be loaded: ") + (said == nullptr ? path : said), hint);
  if (auto known = loaded.find(handle); known != loaded.end()) {
    dlclose(handle);
    return *known->second;
  }
  auto version = reinterpret_cast<int32_t (*)() noexcept>(dlsym(handle, "getInferLibVersion"));
  auto create = reinterpret_cast<void* (*)(void*, int32_t) noexcept>(dlsym(handle, "createInferRuntime_INTERNAL"));
  auto registry = reinterpret_cast<trt::IPluginRegistry* (*)() noexcept>(dlsym(handle, "getPluginRegistry"));
  if (version == nullptr || create == nullptr || registry == nullptr) throw Error(EDGELSTM_LIBRARY, "TensorRT can't be loaded: " + path + " is another library", hint);
  if (version() / 10000 != kSame || version() < NV_TENSORRT_VERSION)
    throw Error(EDGELSTM_LIBRARY, path + " is TensorRT " + numbers(version()) + "; this library was built with the headers of " + numbers(NV_TENSORRT_VERSION) +
                " and takes that and later ones of " + std::to_string(kSame), "Build it with the headers of this TensorRT: edgelstm build-plugin --c --tensorrt-include FOLDER");
  auto made = std::make_unique<Library>();
  made->version = version(), made->registry = registry;
  made->runtime = static_cast<trt::IRuntime*>(create(&made->log, NV_TENSORRT_VERSION));
  if (made->runtime == nullptr) throw Error(EDGELSTM_LIBRARY, "TensorRT " + numbers(made->version) + " does not start: " + made->log.last());
  return *loaded.emplace(handle, std::move(made)).first->second;
}

int element_of(trt::DataType type) {
  switch (type) {
    case trt::DataType::kFLOAT: return kFloat32;
    case trt::DataType::kHALF: return kFloat16;
    case trt::DataType::kBF16: return kBfloat16;
    case trt::DataType::kFP8: return kFloat8;
    case trt::DataType::kINT8: return kInt8;
    case trt::DataType::kINT32: return kInt32;
    case trt::DataType::kINT64: return kInt64;
    case trt::DataType::kUINT8: return kUint8;
    case trt::DataType::kBOOL: return kBool;
    default: return -1;
  }
}

void check_versions(const Sidecar& told, int version, const std::string& where) {
  int built = number(told.version);
  if (built == version || (told.version_compatible && built <= version)) return;
  throw Error(EDGELSTM_LIBRARY, where + " was built by another version of TensorRT: found " + numbers(version) + ", expected " + told.version +
              (told.version_compatible ? " or later" : ""), "Build the engine again here, or with --version-compatible");
}

void check_gpu(const Sidecar& told, const Cuda& cuda, const std::string& where) {
  std::string here = std::to_string(cuda.major) + "." + std::to_string(cuda.minor), wanted;
  bool fits = told.targets.empty() || std::find(told.targets.begin(), told.targets.end(), here) != told.targets.end();
  if (told.hardware_compatible) fits = cuda.major >= 8;
  for (const std::string& target : told.targets) wanted += (wanted.empty() ? "" : " or ") + target;
  std::string found = ": found " + cuda.name + " (compute capability " + here + ")";
  if (!fits) throw Error(EDGELSTM_DEVICE, where + " was built for another GPU" + found + ", expected " + wanted, "Build the engine again on this GPU");
  int capability = cuda.major * 10 + cuda.minor;
  for (const std::string& precision : told.precision)
    if ((precision == "bf16" && capability < 80) || (precision == "fp8" && capability < 89))
      throw Error(EDGELSTM_DEVICE, where + " multiplies in " + precision + ", which this GPU does not have" + found,
                  "Quantise the model for this GPU: edgelstm quantize --runtime tensorrt --gpu NAME");
}

class TrtEngine : public Engine {
 public:
  TrtEngine(const std::string& path, const edgelstm_options& options, Cuda* cuda);
  ~TrtEngine() override;
  std::unique_ptr<Step> bind(int rows, const std::vector<Bound>& tensors) override;

 private:
  class Context;
  Sidecar told_;
  std::string where_;
  Cuda* cuda_;
  Library& library_;
  std::unique_ptr<trt::ICudaEngine> engine_;
  char* scratch_ = nullptr;  // of all contexts: they run one after the other
  int64_t scratch_size_ = 0;

  [[noreturn]] void failed(const std::string& what) const { throw Error(EDGELSTM_RUN, "TensorRT " + what + ": " + library_.log.last()); }
  void load_plugin(const char* given);
  void compare_with_sidecar() const;
};

// A step with a context of its own, which nothing changes any more once a graph was captured from it.
class TrtEngine::Context : public Step {
 public:
  Context(const TrtEngine& engine, trt::IExecutionContext* context) : engine_(engine), context_(context) {}
  void run(CudaStream stream) override {
    if (!context_->enqueueV3(stream)) engine_.failed("failed in a step");
  }
  trt::IExecutionContext& context() { return *context_; }

 private:
  const TrtEngine& engine_;
  std::unique_ptr<trt::IExecutionContext> context_;
};

TrtEngine::TrtEngine(const std::string& path, const edgelstm_options& options, Cuda* cuda)
    : told_(load_sidecar(path)), where_(path), cuda_(cuda), library_(load_library(options.tensorrt)) {
  if (told_.runtime != "tensorrt")
    throw Error(EDGELSTM_MODEL, path + " is an engine of " + told_.runtime, "The C library opens those of TensorRT; open this one in Python");
  check_versions(told_, library_.version, path);
  check_gpu(told_, *cuda, path);
  json = told_.signature;
  signature = parse_signature(json, path + ".json");
  size.least = told_.streams[0], size.most = told_.streams[2];
  if (signature.rows != 0) size.least = size.most = int(signature.rows);
  // With aliasing c_out lies over c, and what TensorRT then does to an engine's input is its own affair.
  size.overwrites = told_.gates == "plugin" && told_.in_place;
  captures = true;
  if (told_.gates == "plugin") load_plugin(options.operators);
  if (size_t(told_.plan_bytes) > cuda->free_memory())
    throw Error(EDGELSTM_DEVICE, "the memory of " + cuda->name + " is too small for " + path, "End other programs on this GPU");
  if (told_.version_compatible) library_.runtime->setEngineHostCodeAllowed(true);
  std::ifstream file(path, std::ios::binary);
  std::string plan((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  engine_.reset(library_.runtime->deserializeCudaEngine(plan.data(), plan.size()));
  if (!engine_)
    throw Error(EDGELSTM_MODEL, "TensorRT " + numbers(library_.version) + " can't open " + path + ": " + library_.log.last(),
                "Build it on this machine: edgelstm build-engine");
  const char* name = engine_->getName();
  if (name == nullptr || told_.engine_name != name)
    throw Error(EDGELSTM_MODEL, path + " is not the plan that its sidecar tells of: engine " + (name == nullptr ? "" : name) + ", expected " + told_.engine_name,
                "Copy both files again, or build the engine again");
  compare_with_sidecar();
  scratch_size_ = engine_->getDeviceMemorySizeV2();
  scratch_ = cuda->allocate(size_t(scratch_size_));
}

TrtEngine::~TrtEngine() {
  Cuda::Current now(cuda_);
  engine_.reset();
}

void TrtEngine::load_plugin(const char* given) {
  if (given == nullptr || *given == '\0') given = getenv("EDGELSTM_PLUGIN_LIBRARY");
  if (given == nullptr || *given == '\0')
    throw Error(EDGELSTM_LIBRARY, where_ + " needs our plugin", "Build it, edgelstm build-plugin, and name its library: the option operators, or $EDGELSTM_PLUGIN_LIBRARY");
  static std::mutex mutex;
  std::lock_guard<std::mutex> turn(mutex);
  if (library_.plugins.count(given)) return;
  trt::IPluginRegistry* registry = library_.registry();
  if (registry == nullptr || registry->loadLibrary(given) == nullptr)
    throw Error(EDGELSTM_LIBRARY, std::string("TensorRT can't load the plugin ") + given + ": " + library_.log.last(), "Build it on this machine: edgelstm build-plugin");
  library_.plugins.insert(given);
}

void TrtEngine::compare_with_sidecar() const {
  std::map<std::string, const Spec*> wanted;
  for (const Spec& spec : signature.inputs) wanted[spec.name] = &spec;
  for (const Spec& spec : signature.outputs) wanted[spec.name] = &spec;
  for (const State& state : signature.states) wanted[state.input] = wanted[state.output] = &state;
  auto disagree = [&](const std::string& what) {
    throw Error(EDGELSTM_MODEL, where_ + ": the engine and its sidecar disagree: " + what, "Build the engine again");
  };
  if (size_t(engine_->getNbIOTensors()) != wanted.size()) disagree(std::to_string(engine_->getNbIOTensors()) + " tensors, expected " + std::to_string(wanted.size()));
  for (int32_t k = 0; k < engine_->getNbIOTensors(); k++) {
    const char* name = engine_->getIOTensorName(k);
    auto spec = wanted.find(name);
    if (spec == wanted.end()) disagree("tensor " + edgelstm::quoted(name) + " is not in the Signature");
    trt::Dims dims = engine_->getTensorShape(name);
    std::vector<int64_t> shape(dims.d, dims.d + std::max(dims.nbDims, 0));
    if (shape.empty() || std::vector<int64_t>(shape.begin() + 1, shape.end()) != spec->second->shape ||
        element_of(engine_->getTensorDataType(name)) != spec->second->type->element)
      disagree("tensor " + edgelstm::quoted(name) + ", expected " + spec->second->text());
  }
}

std::unique_ptr<Step> TrtEngine::bind(int rows, const std::vector<Bound>& tensors) {
  trt::IExecutionContext* made = engine_->createExecutionContext(trt::ExecutionContextAllocationStrategy::kUSER_MANAGED);
  if (made == nullptr) failed("can't prepare the engine to run");
  auto step = std::make_unique<Context>(*this, made);
  trt::IExecutionContext& context = step->context();
  // Engines keep the names of their layers; telling them to profilers costs time in every step.
  context.setNvtxVerbosity(trt::ProfilingVerbosity::kNONE);
  context.setDeviceMemoryV2(scratch_, scratch_size_);
  // The first that takes so many rows: each was tuned for a number of its own.
  size_t profile = 0;
  while (profile < told_.profiles.size() && (rows < told_.profiles[profile][0] || rows > told_.profiles[profile][2])) profile++;
  if (profile == told_.profiles.size()) failed("has no profile for " + std::to_string(rows) + " streams");
  if (profile != 0) {
    if (!context.setOptimizationProfileAsync(int32_t(profile), cuda_->stream)) failed("refuses profile " + std::to_string(profile));
    cuda_->wait();
  }
  for (const Bound& tensor : tensors) {
    if (tensor.in && signature.rows == 0) {
      trt::Dims dims{};
      dims.d[dims.nbDims++] = rows;
      for (int64_t size : tensor.spec->shape) {
        if (dims.nbDims == trt::Dims::MAX_DIMS) failed("takes no tensor of so many axes as " + *tensor.name);
        dims.d[dims.nbDims++] = size;
      }
      if (!context.setInputShape(tensor.name->c_str(), dims)) failed("refuses " + std::to_string(rows) + " streams");
    }
    if (!context.setTensorAddress(tensor.name->c_str(), tensor.data)) failed("refuses the address of " + *tensor.name);
  }
  return step;
}

}  // namespace

std::unique_ptr<Engine> open_tensorrt(const std::string& path, const edgelstm_options& options, Cuda* cuda) {
  return std::make_unique<TrtEngine>(path, options, cuda);
}

}  // namespace edgelstm

#endif
