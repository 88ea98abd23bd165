// A stand-in for TensorRT's library (libnvinfer.so.10), against NVIDIA's own headers. NOT TensorRT: a plan of it (see tensorrt_module.py)
// holds the ONNX graph, and ONNX Runtime computes it, when the stream of the stand-in for the driver comes to it.
//
// What it checks is what tensorrt_module.py checks; a step that breaks a rule is refused, with the rule in the log. rest.h has all functions
// of the interface that nobody here calls: they end the process.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "ort.h"
#include "rest.h"
#include "signature.h"

namespace {

using namespace nvinfer1;
const char kHead[] = "stand-in plan, no TensorRT\n";
constexpr int64_t kScratch = 4096;

template <class F>
F driver(const char *name) {
  return reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
}
bool owns(const void *start, size_t size) { return driver<int (*)(const void *, size_t)>("standin_owns")(start, size) != 0; }
bool capturing(cudaStream_t stream) { return driver<int (*)(cudaStream_t)>("standin_capturing")(stream) != 0; }

struct Tensor {
  bool in;
  int element;
  std::vector<int64_t> shape;  // -1: streams
};

size_t size_of(int element) {
  for (const char *name : {"float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"})
    if (edgelstm::type_of(name).element == element) return edgelstm::type_of(name).size;
  abort();
}

struct Engine;
struct Context;
std::set<const Context *> contexts;  // alive

struct Context : IExecutionContext, apiv::ContextRest {
  Engine &engine;
  std::map<std::string, std::vector<int64_t>> shapes;
  std::map<std::string, char *> addresses;
  void *memory = nullptr;
  int64_t memory_size = 0;
  int profile = 0, changes = 0;
  bool deferred = true, quiet = false;

  explicit Context(Engine &given);
  ~Context() noexcept override { contexts.erase(this); }
  IExecutionContext *getPImpl() noexcept override { return this; }
  bool setInputShape(char const *name, Dims const &dims) noexcept override;
  bool setTensorAddress(char const *name, void *data) noexcept override;
  bool setOptimizationProfileAsync(int32_t index, cudaStream_t stream) noexcept override;
  void setDeviceMemoryV2(void *given, int64_t size) noexcept override { memory = given, memory_size = size, changes++; }
  bool setNvtxVerbosity(ProfilingVerbosity verbosity) noexcept override {
    quiet = verbosity == ProfilingVerbosity::kNONE;
    return true;
  }
  bool enqueueV3(cudaStream_t stream) noexcept override;
};

struct Engine : ICudaEngine, apiv::EngineRest {
  ILogger &log;
  std::string name;
  bool overwrites = false;
  std::vector<std::pair<int64_t, int64_t>> profiles;
  const edgelstm::Runtime &ort;
  ::ort::Session *session = nullptr;
  std::map<std::string, Tensor> tensors;
  std::vector<std::string> names;

  Engine(ILogger &given, const std::string &plan);
  ~Engine() noexcept override { ort.ReleaseSession(session); }
  void read(bool in);
  ICudaEngine *getPImpl() noexcept override { return this; }
  char const *getName() const noexcept override { return name.c_str(); }
  int32_t getNbIOTensors() const noexcept override { return int32_t(names.size()); }
  char const *getIOTensorName(int32_t k) const noexcept override { return names[size_t(k)].c_str(); }
  int64_t getDeviceMemorySizeV2() const noexcept override { return kScratch; }
  Dims getTensorShape(char const *tensor) const noexcept override {
    Dims dims{};
    for (int64_t d : tensors.at(tensor).shape) dims.d[dims.nbDims++] = d;
    return dims;
  }
  DataType getTensorDataType(char const *tensor) const noexcept override {
    switch (tensors.at(tensor).element) {
      case 1: return DataType::kFLOAT;
      case 10: return DataType::kHALF;
      case 7: return DataType::kINT64;
      case 3: return DataType::kINT8;
      default: return DataType::kINT32;
    }
  }
  IExecutionContext *createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override {
    return strategy == ExecutionContextAllocationStrategy::kUSER_MANAGED ? new Context(*this) : nullptr;
  }
  bool refuse(const std::string &rule) {
    log.log(ILogger::Severity::kERROR, rule.c_str());
    return false;
  }
};

Engine::Engine(ILogger &given, const std::string &plan) : log(given), ort(edgelstm::load_runtime(nullptr)) {
  ICudaEngine::mImpl = this;
  size_t begin = sizeof kHead - 1, end = plan.find('\n', begin);
  std::string line = plan.substr(begin, end - begin), graph = plan.substr(end + 1);
  name = line.substr(0, line.find(' '));
  overwrites = line.find("overwrites=1") != std::string::npos;
  for (const char *at = strstr(line.c_str(), "rows="); at != nullptr; at = strchr(at + 1, ',')) {
    long long fewest, most;
    if (sscanf(strpbrk(at, "=,") + 1, "%lld:%lld", &fewest, &most) == 2) profiles.emplace_back(fewest, most);
  }
  ::ort::SessionOptions *options;
  ort.check(ort.CreateSessionOptions(&options));
  ort.check(ort.SetIntraOpNumThreads(options, 1));
  ort.check(ort.CreateSessionFromArray(ort.env, graph.data(), graph.size(), options, &session));
  ort.ReleaseSessionOptions(options);
  read(true), read(false);
}

void Engine::read(bool in) {
  ::ort::Allocator *allocator;
  ort.check(ort.GetAllocatorWithDefaultOptions(&allocator));
  size_t count;
  ort.check((in ? ort.SessionGetInputCount : ort.SessionGetOutputCount)(session, &count));
  for (size_t k = 0; k < count; k++) {
    char *text;
    ort.check((in ? ort.SessionGetInputName : ort.SessionGetOutputName)(session, k, allocator, &text));
    ::ort::TypeInfo *info;
    ort.check((in ? ort.SessionGetInputTypeInfo : ort.SessionGetOutputTypeInfo)(session, k, &info));
    const ::ort::TensorInfo *tensor;
    ort.check(ort.CastTypeInfoToTensorInfo(info, &tensor));
    Tensor &found = tensors[text];
    size_t rank;
    ort.check(ort.GetTensorElementType(tensor, &found.element));
    ort.check(ort.GetDimensionsCount(tensor, &rank));
    found.in = in, found.shape.resize(rank);
    ort.check(ort.GetDimensions(tensor, found.shape.data(), rank));
    names.push_back(text);
    ort.ReleaseTypeInfo(info);
    ort.check(ort.AllocatorFree(allocator, text));
  }
}

Context::Context(Engine &given) : engine(given) {
  IExecutionContext::mImpl = this;
  contexts.insert(this);
  for (const auto &one : engine.tensors)
    if (one.second.in) shapes[one.first] = one.second.shape;
}

bool Context::setInputShape(char const *name, Dims const &dims) noexcept {
  auto tensor = engine.tensors.find(name);
  if (tensor == engine.tensors.end() || !tensor->second.in) return engine.refuse("no such input");
  std::vector<int64_t> given(dims.d, dims.d + dims.nbDims);
  const auto &wanted = tensor->second.shape;
  auto range = engine.profiles[size_t(profile)];
  bool fits = given.size() == wanted.size() && given[0] >= range.first && given[0] <= range.second;
  for (size_t k = 0; fits && k < wanted.size(); k++) fits = wanted[k] == -1 || wanted[k] == given[k];
  if (!fits) return engine.refuse(std::string(name) + " is not within the profile");
  deferred = deferred || shapes[name] != given;
  shapes[name] = given, changes++;
  return true;
}

bool Context::setTensorAddress(char const *name, void *data) noexcept {
  if (engine.tensors.count(name) == 0 || reinterpret_cast<uintptr_t>(data) % 256) return engine.refuse("the address is on no boundary of 256 bytes");
  addresses[name] = static_cast<char *>(data), changes++;
  return true;
}

bool Context::setOptimizationProfileAsync(int32_t index, cudaStream_t stream) noexcept {
  if (capturing(stream) || size_t(index) >= engine.profiles.size()) return engine.refuse("no such profile, or in a capture");
  profile = index, changes++, deferred = true;
  return true;
}

struct Work {  // for as long as the process: a graph may come back to it
  const Context *context;
  Engine *engine;
  int changes;  // -1: not captured
  int64_t rows;
  std::map<std::string, char *> addresses;
};

void broken(const char *rule) {
  fprintf(stderr, "stand-in for TensorRT: %s\n", rule);
  driver<void (*)()>("standin_fail")();
}

void compute(void *argument) {
  Work &work = *static_cast<Work *>(argument);
  if (contexts.count(work.context) == 0) return broken("a graph is run whose context is gone");
  if (work.changes >= 0 && work.changes != work.context->changes) return broken("the context was changed after its graph was captured");
  const edgelstm::Runtime &r = work.engine->ort;
  ::ort::MemoryInfo *memory;
  ::ort::Binding *binding;
  ::ort::RunOptions *options;
  r.check(r.CreateCpuMemoryInfo(0, 0, &memory));
  r.check(r.CreateIoBinding(work.engine->session, &binding));
  r.check(r.CreateRunOptions(&options));
  std::map<std::string, std::vector<char>> copies;
  for (const auto &one : work.engine->tensors) {
    std::vector<int64_t> shape = one.second.shape;
    shape[0] = work.rows;
    size_t size = size_of(one.second.element);
    for (int64_t d : shape) size *= size_t(d);
    char *data = work.addresses.at(one.first);
    copies[one.first].assign(data, data + size);
    ::ort::Value *value;
    char *place = one.second.in ? copies[one.first].data() : data;
    r.check(r.CreateTensorWithDataAsOrtValue(memory, place, size, shape.data(), shape.size(), one.second.element, &value));
    r.check((one.second.in ? r.BindInput : r.BindOutput)(binding, one.first.c_str(), value));
    r.ReleaseValue(value);
  }
  if (::ort::Status *status = r.RunWithBinding(work.engine->session, options, binding)) broken(r.message(status).c_str());
  r.ReleaseIoBinding(binding), r.ReleaseRunOptions(options), r.ReleaseMemoryInfo(memory);
  if (work.engine->overwrites)
    for (const auto &one : copies)
      if (auto next = work.addresses.find(one.first + "_next"); next != work.addresses.end())
        memcpy(work.addresses.at(one.first), next->second, one.second.size());
}

bool Context::enqueueV3(cudaStream_t stream) noexcept {
  if (reinterpret_cast<uintptr_t>(stream) <= 2) return engine.refuse("the default stream");
  if (!quiet) return engine.refuse("what profilers are told costs time");
  if (!owns(memory, kScratch) || memory_size < kScratch || reinterpret_cast<uintptr_t>(memory) % 256) return engine.refuse("no scratch memory");
  int64_t rows = -1;
  for (const auto &one : shapes) {
    if (rows >= 0 && one.second[0] != rows) return engine.refuse("inputs differ in their rows");
    rows = one.second[0];
  }
  if (rows < 1) return engine.refuse("shapes were not set");
  std::set<const char *> different;
  for (const auto &one : engine.tensors) {
    auto at = addresses.find(one.first);
    size_t size = size_of(one.second.element) * size_t(rows);
    for (size_t k = 1; k < one.second.shape.size(); k++) size *= size_t(one.second.shape[k]);
    if (at == addresses.end() || !owns(at->second, size)) return engine.refuse(one.first + " is not all in one allocation");
    if (!different.insert(at->second).second) return engine.refuse("one address for two tensors");
  }
  bool captured = capturing(stream);
  if (captured && deferred) return engine.refuse("captured with updates of shapes still to do");
  deferred = false;
  auto *work = new Work{this, &engine, captured ? changes : -1, rows, addresses};
  return driver<int (*)(cudaStream_t, void (*)(void *), void *)>("cuLaunchHostFunc")(stream, compute, work) == 0;
}

struct Registry : apiv::RegistryRest {
  PluginLibraryHandle loadLibrary(AsciiChar const *path) noexcept override {
    FILE *file = fopen(path, "rb");
    if (file != nullptr) fclose(file);
    return file == nullptr ? nullptr : this;
  }
};

struct Runtime : IRuntime, apiv::RuntimeRest {
  ILogger &log;
  explicit Runtime(ILogger &given) : log(given) { IRuntime::mImpl = this; }
  IRuntime *getPImpl() noexcept override { return this; }
  void setEngineHostCodeAllowed(bool) noexcept override {}
  ICudaEngine *deserializeCudaEngine(void const *blob, std::size_t size) noexcept override {
    std::string plan(static_cast<const char *>(blob), size);
    if (plan.compare(0, sizeof kHead - 1, kHead) == 0) return new Engine(log, plan);
    log.log(ILogger::Severity::kERROR, "the plan's magic tag does not match\nmore of it");
    return nullptr;
  }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) int32_t getInferLibVersion() noexcept { return STANDIN_VERSION; }
extern "C" __attribute__((visibility("default"))) void *createInferRuntime_INTERNAL(void *log, int32_t) noexcept {
  return static_cast<IRuntime *>(new Runtime(*static_cast<ILogger *>(log)));
}
extern "C" __attribute__((visibility("default"))) IPluginRegistry *getPluginRegistry() noexcept {
  static Registry registry;
  return &registry;
}
