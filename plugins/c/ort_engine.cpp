// ONNX Runtime as an Engine, on the processor or by its CUDA provider.
#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <thread>

#include "engine.h"
#include "ort.h"

namespace edgelstm {
namespace {

int processors() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return std::max(1, int(std::thread::hardware_concurrency()));
}

// Whether that stands in the file: a Signature's JSON, and names of operators, stand there as they are.
bool has(const std::string& path, const std::string& word) {
  std::ifstream file(path, std::ios::binary);
  std::string held;
  std::vector<char> piece(1 << 20);
  while (file.read(piece.data(), std::streamsize(piece.size())), file.gcount() > 0) {
    held.append(piece.data(), size_t(file.gcount()));
    if (held.find(word) != std::string::npos) return true;
    held.erase(0, held.size() - std::min(held.size(), word.size() - 1));
  }
  return false;
}

class OrtStep : public Step {
 public:
  OrtStep(const Runtime& runtime, ort::Session* session, ort::RunOptions* options, ort::Binding* binding)
      : runtime_(runtime), session_(session), options_(options), binding_(binding, runtime.ReleaseIoBinding) {}
  void run(CudaStream) override { runtime_.check(runtime_.RunWithBinding(session_, options_, binding_.get())); }

 private:
  const Runtime& runtime_;
  ort::Session* session_;
  ort::RunOptions* options_;
  Owned<ort::Binding> binding_;
};

class OrtEngine : public Engine {
 public:
  OrtEngine(const std::string& path, const edgelstm_options& options, const Cuda* cuda);
  std::unique_ptr<Step> bind(int rows, const std::vector<Bound>& tensors) override;

 private:
  const Runtime& runtime_;
  std::string where_;
  const Cuda* cuda_;
  Owned<ort::Session> session_;
  Owned<ort::RunOptions> run_options_;
  Owned<ort::MemoryInfo> memory_;

  void open(const edgelstm_options& options);
  void add_provider(ort::SessionOptions* made);
  void compare_with_graph();
};

OrtEngine::OrtEngine(const std::string& path, const edgelstm_options& options, const Cuda* cuda)
    : runtime_(load_runtime(options.onnxruntime)), where_(path), cuda_(cuda), session_(nullptr, runtime_.ReleaseSession),
      run_options_(nullptr, runtime_.ReleaseRunOptions), memory_(nullptr, runtime_.ReleaseMemoryInfo) {
  open(options);
  ort::RunOptions* run_options;
  runtime_.check(runtime_.CreateRunOptions(&run_options));
  run_options_.reset(run_options);
  // On a GPU the stream orders everything; the program waits for it once a step.
  if (cuda_ != nullptr) runtime_.check(runtime_.AddRunConfigEntry(run_options, "disable_synchronize_execution_providers", "1"));
  ort::MemoryInfo* memory;
  runtime_.check(cuda_ == nullptr ? runtime_.CreateCpuMemoryInfo(0, 0, &memory) : runtime_.CreateMemoryInfo("Cuda", 0, cuda_->index, 0, &memory));
  memory_.reset(memory);
  ort::Allocator* allocator;
  runtime_.check(runtime_.GetAllocatorWithDefaultOptions(&allocator));
  ort::Metadata* found;
  runtime_.check(runtime_.SessionGetModelMetadata(session_.get(), &found));
  Owned<ort::Metadata> metadata(found, runtime_.ReleaseModelMetadata);
  auto told = [&](const char* key) {
    char* text = nullptr;
    runtime_.check(runtime_.ModelMetadataLookupCustomMetadataMap(metadata.get(), allocator, key, &text));
    std::string value = text == nullptr ? "" : text;
    if (text != nullptr) runtime_.check(runtime_.AllocatorFree(allocator, text));
    return value;
  };
  json = told("edgelstm.signature");
  if (json.empty())
    throw Error(EDGELSTM_MODEL, where_ + " has no Signature: nothing tells which of its tensors are states",
                "Declare the state pairs: edgelstm export " + where_ + " --state INPUT=OUTPUT -o step.onnx");
  // One with our operators in it has the states of the file that it was made of.
  if (std::string source = told("edgelstm.source"); source.size() == 64 && source.find_first_not_of("0123456789abcdef") == std::string::npos)
    model = source;
  signature = parse_signature(json, where_);
  compare_with_graph();
  if (signature.rows != 0) size.least = size.most = int(signature.rows);
}

void OrtEngine::add_provider(ort::SessionOptions* made) {
  const Runtime& r = runtime_;
  const char hint[] = "Name the library of ONNX Runtime for GPUs (the PyPI package onnxruntime-gpu), and let CUDA's and cuDNN's be found "
                      "($LD_LIBRARY_PATH); or leave out the option device";
  char** names = nullptr;
  int count = 0;
  r.check(r.GetAvailableProviders(&names, &count));
  bool there = std::any_of(names, names + count, [](const char* name) { return std::string(name) == "CUDAExecutionProvider"; });
  r.check(r.ReleaseAvailableProviders(names, count));
  if (!there) throw Error(EDGELSTM_LIBRARY, "this ONNX Runtime has no CUDA provider: " + r.path, hint);
  ort::CudaOptions* made_options;
  r.check(r.CreateCUDAProviderOptions(&made_options));
  Owned<ort::CudaOptions> provider(made_options, r.ReleaseCUDAProviderOptions);
  std::string device = std::to_string(cuda_->index);
  // use_tf32: else products of float32 round their inputs to 10 bits of mantissa.
  const char* keys[] = {"device_id", "use_tf32"};
  const char* values[] = {device.c_str(), "0"};
  r.check(r.UpdateCUDAProviderOptions(made_options, keys, values, 2));
  r.check(r.UpdateCUDAProviderOptionsWithValue(made_options, "user_compute_stream", cuda_->stream));
  ort::Status* status = r.SessionOptionsAppendExecutionProvider_CUDA_V2(made, made_options);
  if (status != nullptr) throw Error(EDGELSTM_LIBRARY, "ONNX Runtime's CUDA provider does not start: " + r.message(status), hint);
}

void OrtEngine::open(const edgelstm_options& options) {
  const Runtime& r = runtime_;
  auto attempt = [&](bool unfused) {
    ort::SessionOptions* made;
    r.check(r.CreateSessionOptions(&made));
    Owned<ort::SessionOptions> session_options(made, r.ReleaseSessionOptions);
    auto entry = [&](const char* name, const char* value) { r.check(r.AddSessionConfigEntry(made, name, value)); };
    r.check(r.SetIntraOpNumThreads(made, options.threads ? int(options.threads) : processors()));
    r.check(r.SetInterOpNumThreads(made, 1));
    r.check(r.SetSessionLogSeverityLevel(made, 4));
    entry("session.intra_op.allow_spinning", options.no_spin ? "0" : "1");
    // 1.31 crashes in this optimizer at a Transpose before a MatMul in float16.
    if (has(where_, "\"float16\"")) entry("optimization.disable_specified_optimizers", "NchwcTransformer");
    // On x86 without VNNI products of uint8 and int8 saturate at 16 bits, and results are off by half: there uint8 and uint8.
    entry("session.x64quantprecision", "1");
    // It fuses Q/DQ pairs of fp8 into operators that have no fp8, and fails to make int8 weights uint8 that two products read. Unfused it
    // computes in float32. Weights alone in int8: dequantised once, not in every step.
    if (unfused || (has(where_, "DequantizeLinear") && !has(where_, "QuantizeLinear"))) entry("session.disable_quant_qdq", "1");
    if (cuda_ != nullptr) add_provider(made);
    const char* operators = options.operators != nullptr ? options.operators : getenv("EDGELSTM_NATIVE_LIBRARY");
    if (operators != nullptr && *operators != '\0') {
      ort::Status* status = r.RegisterCustomOpsLibrary_V2(made, operators);
      if (status != nullptr)
        throw Error(EDGELSTM_LIBRARY, std::string("operators ") + operators + ": " + r.message(status),
                    "edgelstm build-plugin --ort builds them; another ONNX Runtime in one process needs a copy of the file");
    }
    ort::Session* session = nullptr;
    ort::Status* status = r.CreateSession(r.env, where_.c_str(), made, &session);
    if (status != nullptr) return r.message(status);
    session_.reset(session);
    return std::string();
  };
  std::string trouble = attempt(false);
  if (trouble.find("float8") != std::string::npos || trouble.find("AddInitializer") != std::string::npos) trouble = attempt(true);
  if (trouble.find("edgelstm:Fused") != std::string::npos || trouble.find("edgelstm.Fused") != std::string::npos)
    throw Error(EDGELSTM_LIBRARY, where_ + " needs our operators: " + trouble,
                "Build them, edgelstm build-plugin --ort, and name their library: the option operators, or $EDGELSTM_NATIVE_LIBRARY");
  if (!trouble.empty())
    throw Error(EDGELSTM_MODEL, "ONNX Runtime can't open " + where_ + ": " + trouble,
                "If the file was cut short or edited, export it again");
}

void OrtEngine::compare_with_graph() {
  const Runtime& r = runtime_;
  ort::Allocator* allocator;
  r.check(r.GetAllocatorWithDefaultOptions(&allocator));
  auto disagree = [&](const std::string& what) {
    throw Error(EDGELSTM_MODEL, where_ + ": the graph and its Signature disagree: " + what, "The file was edited after export: export it again");
  };
  for (bool in : {true, false}) {
    std::map<std::string, const Spec*> wanted;
    for (const Spec& spec : in ? signature.inputs : signature.outputs) wanted[spec.name] = &spec;
    for (const State& state : signature.states) {
      const Spec*& spec = wanted[in ? state.input : state.output];
      if (spec != nullptr && (spec->type != state.type || spec->shape != state.shape)) disagree(spec->name);
      spec = &state;
    }
    size_t count;
    r.check((in ? r.SessionGetInputCount : r.SessionGetOutputCount)(session_.get(), &count));
    if (count != wanted.size()) disagree(std::to_string(count) + (in ? " inputs" : " outputs") + ", expected " + std::to_string(wanted.size()));
    for (size_t k = 0; k < count; k++) {
      char* text;
      r.check((in ? r.SessionGetInputName : r.SessionGetOutputName)(session_.get(), k, allocator, &text));
      std::string name = text;
      r.check(r.AllocatorFree(allocator, text));
      auto spec = wanted.find(name);
      if (spec == wanted.end()) disagree("tensor " + edgelstm::quoted(name) + " is not in the Signature");
      ort::TypeInfo* found;
      r.check((in ? r.SessionGetInputTypeInfo : r.SessionGetOutputTypeInfo)(session_.get(), k, &found));
      Owned<ort::TypeInfo> info(found, r.ReleaseTypeInfo);
      const ort::TensorInfo* tensor = nullptr;
      r.check(r.CastTypeInfoToTensorInfo(info.get(), &tensor));
      if (tensor == nullptr) disagree(edgelstm::quoted(name) + " is no tensor");
      int element;
      size_t rank;
      r.check(r.GetTensorElementType(tensor, &element));
      r.check(r.GetDimensionsCount(tensor, &rank));
      std::vector<int64_t> dims(rank);
      r.check(r.GetDimensions(tensor, dims.data(), rank));
      std::vector<int64_t> expected = {signature.rows ? signature.rows : -1};
      expected.insert(expected.end(), spec->second->shape.begin(), spec->second->shape.end());
      if (element == spec->second->type->element && dims == expected) continue;
      const char* type = name_of(element);
      disagree("tensor " + edgelstm::quoted(name) + " is " + (type == nullptr ? "type " + std::to_string(element) : std::string(type)) + " of rank " +
               std::to_string(rank) + ", expected " + spec->second->text());
    }
  }
}

std::unique_ptr<Step> OrtEngine::bind(int rows, const std::vector<Bound>& tensors) {
  const Runtime& r = runtime_;
  ort::Binding* made;
  r.check(r.CreateIoBinding(session_.get(), &made));
  auto step = std::make_unique<OrtStep>(r, session_.get(), run_options_.get(), made);
  for (const Bound& tensor : tensors) {
    std::vector<int64_t> dims = {rows};
    dims.insert(dims.end(), tensor.spec->shape.begin(), tensor.spec->shape.end());
    ort::Value* value;
    r.check(r.CreateTensorWithDataAsOrtValue(memory_.get(), tensor.data, tensor.spec->bytes() * size_t(rows), dims.data(), dims.size(),
                                             tensor.spec->type->element, &value));
    ort::Status* status = (tensor.in ? r.BindInput : r.BindOutput)(made, tensor.name->c_str(), value);
    r.ReleaseValue(value);  // the binding has a reference of its own
    r.check(status);
  }
  return step;
}

}  // namespace

std::unique_ptr<Engine> open_onnx(const std::string& path, const edgelstm_options& options, const Cuda* cuda) {
  return std::make_unique<OrtEngine>(path, options, cuda);
}

}  // namespace edgelstm
