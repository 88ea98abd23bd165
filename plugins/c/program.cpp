#include "program.h"

#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <set>
#include <thread>

#include "digest.h"
#include "snapshot.h"

namespace edgelstm {
namespace {

constexpr size_t kAlignment = 64;
constexpr double kDense = 0.75;    // as rows.py
constexpr size_t kMostCalls = 512;

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

std::string element_text(int element) {
  for (const char* name : {"float32", "float16", "bfloat16", "float8e4m3fn", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"})
    if (type_of(name).element == element) return name;
  return "type " + std::to_string(element);
}

}  // namespace

Buffer::Buffer(const Spec& spec, size_t rows) : bytes_(spec.bytes()), data_(nullptr, free) {
  if (bytes_ > (SIZE_MAX - kAlignment) / rows) throw std::bad_alloc();
  size_t size = (bytes_ * rows + kAlignment - 1) / kAlignment * kAlignment;
  data_.reset(static_cast<char*>(aligned_alloc(kAlignment, size)));
  if (!data_) throw std::bad_alloc();
  memset(data_.get(), 0, size);
}

Program::Program(const char* path, const edgelstm_options& options)
    : model(model_identity(path)), runtime_(load_runtime(options.onnxruntime)), where_(path), session_(nullptr, runtime_.ReleaseSession),
      run_options_(nullptr, runtime_.ReleaseRunOptions), memory_(nullptr, runtime_.ReleaseMemoryInfo),
      streams_(options.streams ? options.streams : 1) {
  open(options);
  ort::RunOptions* run_options;
  runtime_.check(runtime_.CreateRunOptions(&run_options));
  run_options_.reset(run_options);
  ort::MemoryInfo* memory;
  runtime_.check(runtime_.CreateCpuMemoryInfo(0, 0, &memory));
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
  if (signature.rows > 1 && size_t(signature.rows) != streams_)
    throw Error(EDGELSTM_INVALID, where_ + " takes " + std::to_string(signature.rows) + " streams in every call: found streams=" +
                std::to_string(streams_), "Open it with streams=" + std::to_string(signature.rows) + ", or export the model anew with any number");
  capacity_ = streams_;
  if (streams_ > size_t{1} << 24) throw Error(EDGELSTM_INVALID, "streams: found " + std::to_string(streams_), "Open several programs");
  side_.assign(capacity_, 0);
  order_.reserve(streams_);
  free_.reserve(streams_);
  for (size_t row = streams_; row-- > 0;) free_.push_back(int(row));
  for (const Spec& input : signature.inputs) inputs_.emplace_back(input, capacity_);
  for (const Spec& output : signature.outputs) {
    int state = -1;
    for (size_t k = 0; k < signature.states.size(); k++)
      if (signature.states[k].output == output.name) state = int(k);
    shared_.push_back(state);
    place_.push_back(int(outputs_.size()));
    if (state < 0) outputs_.emplace_back(output, capacity_);
  }
  for (Buffers& side : states_) side = state_buffers();
  // Rows that no stream has yet may be computed beside others: they hold numbers that mean something.
  for (size_t row = 0; row < capacity_; row++) reset(int(row));
  state_size = save(0).size();
}

Program::~Program() { calls_.clear(); }

void Program::open(const edgelstm_options& options) {
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
    // It fuses Q/DQ pairs of fp8 into operators that have no fp8. Unfused it computes in float32.
    // Weights alone in int8: dequantised once, not in every step.
    if (unfused || (has(where_, "DequantizeLinear") && !has(where_, "QuantizeLinear"))) entry("session.disable_quant_qdq", "1");
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
  if (trouble.find("float8") != std::string::npos) trouble = attempt(true);
  if (trouble.find("edgelstm:Fused") != std::string::npos || trouble.find("edgelstm.Fused") != std::string::npos)
    throw Error(EDGELSTM_LIBRARY, where_ + " needs our operators: " + trouble,
                "Build them, edgelstm build-plugin --ort, and name their library: the option operators, or $EDGELSTM_NATIVE_LIBRARY");
  if (!trouble.empty())
    throw Error(EDGELSTM_MODEL, "ONNX Runtime can't open " + where_ + ": " + trouble,
                "If the file was cut short or edited, export it again");
}

void Program::compare_with_graph() {
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
      if (element != spec->second->type->element || dims != expected)
        disagree("tensor " + edgelstm::quoted(name) + " is " + element_text(element) + " of rank " + std::to_string(rank) + ", expected " + spec->second->text());
    }
  }
}

Buffers Program::state_buffers() const {
  Buffers made;
  for (const State& state : signature.states) made.emplace_back(state, capacity_);
  return made;
}

int Program::take_row() {
  auto lock = turn();
  if (free_.empty())
    throw Error(EDGELSTM_FULL, "no place for another stream: found " + std::to_string(streams_), "Free one, or open the program with more streams");
  int row = free_.back();
  free_.pop_back();
  return row;
}

void Program::give_row(int row) {
  auto lock = turn();
  free_.push_back(row);
}

void Program::reset(int row) {
  auto lock = turn();
  for (size_t k = 0; k < signature.states.size(); k++) {
    const Buffer& buffer = states_[int(side_[row])][k];
    const std::string& initial = signature.states[k].initial;
    if (initial.empty()) memset(buffer.row(row), 0, buffer.bytes());
    else memcpy(buffer.row(row), initial.data(), buffer.bytes());
  }
}

std::string Program::save(int row) {
  auto lock = turn();
  std::vector<const void*> values;
  for (const Buffer& buffer : states_[int(side_[row])]) values.push_back(buffer.row(row));
  return write_snapshot(signature.states, values, model);
}

void Program::load(int row, const void* data, size_t size) {
  std::vector<const void*> values = read_snapshot(signature.states, model, data, size);
  auto lock = turn();
  for (size_t k = 0; k < values.size(); k++) {
    const Buffer& buffer = states_[int(side_[row])][k];
    memcpy(buffer.row(row), values[k], buffer.bytes());
  }
}

void Program::put(const Frames& frames, int slot) {
  for (size_t k = 0; k < inputs_.size(); k++) memcpy(inputs_[k].row(slot), frames.inputs[k].data, inputs_[k].bytes());
}

void Program::take(const Frames& frames, int slot, const Buffers& after) {
  for (size_t k = 0; k < shared_.size(); k++) {
    const Buffer& buffer = shared_[k] < 0 ? outputs_[place_[k]] : after[shared_[k]];
    if (frames.outputs[k].data != nullptr) memcpy(frames.outputs[k].data, buffer.row(slot), buffer.bytes());
  }
}

void Program::step() {
  int active = int(order_.size()), least = std::max(1, int(signature.rows));
  bool alone = signature.rows == 1 || (active == 1 && least == 1);
  int first = order_[0].row, count = order_[active - 1].row + 1 - first;
  if (count < least) first = std::min(first, int(capacity_) - least), count = least;
  int fewest = std::max(active, least);
  if (alone) {
    for (const Frames& one : order_) {
      int side = side_[one.row];
      put(one, one.row);
      run({one.row, 1, side}, one.row, 1, states_[side], states_[1 - side]);
    }
  } else if (fewest < kDense * count) {
    // Few rows, far apart: their states are copied together, run as one call, and copied back.
    if (scratch_[0].empty() && !signature.states.empty()) {
      Buffers before = state_buffers(), after = state_buffers();
      scratch_[0] = std::move(before), scratch_[1] = std::move(after);
    }
    for (int slot = 0; slot < active; slot++) {
      int row = order_[slot].row;
      put(order_[slot], slot);
      for (size_t k = 0; k < scratch_[0].size(); k++)
        memcpy(scratch_[0][k].row(slot), states_[int(side_[row])][k].row(row), scratch_[0][k].bytes());
    }
    run({-1, fewest, 0}, 0, fewest, scratch_[0], scratch_[1]);
    for (int slot = 0; slot < active; slot++) {
      int row = order_[slot].row;
      take(order_[slot], slot, scratch_[1]);
      side_[row] ^= 1;
      for (size_t k = 0; k < scratch_[1].size(); k++)
        memcpy(states_[int(side_[row])][k].row(row), scratch_[1][k].row(slot), scratch_[1][k].bytes());
    }
    return;
  } else {
    for (const Frames& one : order_) put(one, one.row);
    int side = side_[order_[0].row];
    for (int row = first; row < first + count; row++)
      if (side_[row] != side) {  // only after a step in which some of them were idle
        for (size_t k = 0; k < states_[0].size(); k++)
          memcpy(states_[side][k].row(row), states_[1 - side][k].row(row), states_[0][k].bytes());
        side_[row] = char(side);
      }
    run({first, count, side}, first, count, states_[side], states_[1 - side]);
  }
  for (const Frames& one : order_) {
    take(one, one.row, states_[1 - side_[one.row]]);
    side_[one.row] ^= 1;
  }
}

void Program::run(const Key& key, int first, int count, const Buffers& before, const Buffers& after) {
  auto call = calls_.find(key);
  if (call == calls_.end()) {
    Binding made = bind(first, count, before, after);
    if (calls_.size() >= kMostCalls) calls_.erase(oldest_.front()), oldest_.pop_front();
    oldest_.push_back(key);
    call = calls_.emplace(key, std::move(made)).first;
  }
  runtime_.check(runtime_.RunWithBinding(session_.get(), run_options_.get(), call->second.get()));
}

Program::Binding Program::bind(int first, int count, const Buffers& before, const Buffers& after) const {
  const Runtime& r = runtime_;
  ort::Binding* made;
  r.check(r.CreateIoBinding(session_.get(), &made));
  Binding binding(made, r.ReleaseIoBinding);
  auto bound = [&](bool in, const std::string& name, const Spec& spec, const Buffer& buffer) {
    std::vector<int64_t> dims = {count};
    dims.insert(dims.end(), spec.shape.begin(), spec.shape.end());
    ort::Value* value;
    r.check(r.CreateTensorWithDataAsOrtValue(memory_.get(), buffer.row(first), buffer.bytes() * size_t(count), dims.data(), dims.size(),
                                             spec.type->element, &value));
    ort::Status* status = (in ? r.BindInput : r.BindOutput)(made, name.c_str(), value);
    r.ReleaseValue(value);  // the binding has a reference of its own
    r.check(status);
  };
  for (size_t k = 0; k < inputs_.size(); k++) bound(true, signature.inputs[k].name, signature.inputs[k], inputs_[k]);
  for (size_t k = 0; k < signature.states.size(); k++) {
    const State& state = signature.states[k];
    bound(true, state.input, state, before[k]);
    bound(false, state.output, state, after[k]);
  }
  for (size_t k = 0; k < shared_.size(); k++)
    if (shared_[k] < 0) bound(false, signature.outputs[k].name, signature.outputs[k], outputs_[place_[k]]);
  return binding;
}

}  // namespace edgelstm
