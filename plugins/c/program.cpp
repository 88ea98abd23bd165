#include "program.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>

#include "digest.h"
#include "error.h"
#include "snapshot.h"

namespace edgelstm {
namespace {

constexpr size_t kAlignment = 64, kOnGpu = 256;  // TensorRT asks for it
constexpr double kDense = 0.75;                  // as rows.py
constexpr size_t kMostCalls = 512, kMostGraphs = 32;

// Which GPU; -1: the processor.
int read_device(const char* given, bool engine) {
  std::string device = given == nullptr || *given == '\0' ? (engine ? "cuda" : "cpu") : given;
  if (device == "cpu" && !engine) return -1;
  if (device == "cpu") throw Error(EDGELSTM_INVALID, "device cpu: an engine runs on a GPU", "On the processor open the .onnx file that it was built from");
  if (device == "cuda") return 0;
  if (device.compare(0, 5, "cuda:") == 0 && device.size() > 5 && device.size() < 9 && device.find_first_not_of("0123456789", 5) == std::string::npos)
    return std::stoi(device.substr(5));
  throw Error(EDGELSTM_INVALID, "device: found " + edgelstm::quoted(device), "It is cpu, cuda or cuda:N");
}

bool ends_with(const std::string& path, const char* end) {
  std::string low = path;
  for (char& c : low) c = c >= 'A' && c <= 'Z' ? char(c + 32) : c;
  size_t size = strlen(end);
  return low.size() >= size && low.compare(low.size() - size, size, end) == 0;
}

std::unique_ptr<Engine> open_engine(const std::string& path, const edgelstm_options& options, std::unique_ptr<Cuda>* cuda) {
  std::string identity = model_identity(path);
  bool plan = ends_with(path, ".plan") || ends_with(path, ".engine");
  int device = read_device(options.device, plan);
  if (device >= 0) *cuda = std::make_unique<Cuda>(device);
  Cuda::Current now(cuda->get());
  auto engine = plan ? open_tensorrt(path, options, cuda->get()) : open_onnx(path, options, cuda->get());
  if (engine->model.empty()) engine->model = identity;
  return engine;
}

}  // namespace

Buffer::Buffer(const Spec& spec, size_t rows, size_t stride, Cuda* cuda, Host host) : bytes_(spec.bytes()), stride_(stride), own_(nullptr, free) {
  if (stride_ > (SIZE_MAX - kAlignment) / rows) throw std::bad_alloc();
  size_t size = (stride_ * rows + kAlignment - 1) / kAlignment * kAlignment;
  if (cuda != nullptr) {
    if (host != Host::kOnly) device_ = cuda->allocate(size);
    if (host != Host::kNone) host_ = cuda->allocate_host(size);
    return;
  }
  own_.reset(static_cast<char*>(aligned_alloc(kAlignment, size)));
  if (!own_) throw std::bad_alloc();
  memset(own_.get(), 0, size);
  device_ = host_ = own_.get();
}

Program::Program(const char* path, const edgelstm_options& options)
    : engine_(open_engine(path, options, &cuda_)), signature(engine_->signature), json(engine_->json), size_(engine_->size),
      streams_(options.streams ? options.streams : 1) {
  if (signature.rows > 1 && size_t(signature.rows) != streams_)
    throw Error(EDGELSTM_INVALID, std::string(path) + " takes " + std::to_string(signature.rows) + " streams in every call: found streams=" +
                std::to_string(streams_), "Open it with streams=" + std::to_string(signature.rows) + ", or export the model anew with any number");
  if (streams_ > size_t{1} << 24) throw Error(EDGELSTM_INVALID, "streams: found " + std::to_string(streams_), "Open several programs");
  if (size_.most > 1 && streams_ > size_t(size_.most))
    throw Error(EDGELSTM_INVALID, std::string(path) + " was built for at most " + std::to_string(size_.most) + " streams: found streams=" +
                std::to_string(streams_), "Build it for more: edgelstm build-engine --streams " + std::to_string(streams_));
  capacity_ = std::max(streams_, size_t(size_.least));
  side_.assign(capacity_, 0);
  order_.reserve(streams_);
  free_.reserve(streams_);
  for (size_t row = streams_; row-- > 0;) free_.push_back(int(row));
  Cuda::Current now(cuda_.get());
  allocate();
  // Rows that no stream has yet may be computed beside others: they hold numbers that mean something.
  for (int row = 0; row < int(capacity_); row++) begin_anew(states_[0], row), begin_anew(states_[1], row);
  wait();
  state_size = save(0).size();
}

void Program::allocate() {
  auto each = [&](auto work) {
    for (const Spec& spec : signature.inputs) work(spec);
    for (const Spec& spec : signature.outputs) work(spec);
    for (const State& spec : signature.states) work(spec), work(spec);
  };
  if (cuda_) {
    size_t needed = 0;
    each([&](const Spec& spec) {
      needed += stride(spec) * capacity_;
      // All are powers of two, so the largest is a multiple of each.
      granule_ = std::max(granule_, int(kOnGpu / std::gcd(kOnGpu, stride(spec))));
    });
    size_t free = cuda_->free_memory();
    if (needed > free)
      throw Error(EDGELSTM_DEVICE, "the memory of " + cuda_->name + " is too small: " + std::to_string(free) + " bytes are free, states and buffers take " +
                  std::to_string(needed), "Open it with fewer streams, or end other programs on this GPU");
  }
  for (const Spec& input : signature.inputs) inputs_.emplace_back(input, capacity_, stride(input), cuda_.get(), Buffer::Host::kToo);
  for (const Spec& output : signature.outputs) {
    int state = -1;
    for (size_t k = 0; k < signature.states.size(); k++)
      if (signature.states[k].output == output.name) state = int(k);
    shared_.push_back(state);
    place_.push_back(int(outputs_.size()));
    if (state < 0 || cuda_) outputs_.emplace_back(output, capacity_, stride(output), cuda_.get(), state < 0 ? Buffer::Host::kToo : Buffer::Host::kOnly);
  }
  for (Buffers& side : states_) side = state_buffers();
}

// Bytes from row to row: on a GPU, rows that go into a call alone lie on boundaries.
size_t Program::stride(const Spec& spec) const {
  return cuda_ && size_.most == 1 ? (spec.bytes() + kOnGpu - 1) / kOnGpu * kOnGpu : spec.bytes();
}

Buffers Program::state_buffers() {
  Buffers made;
  for (const State& state : signature.states) made.emplace_back(state, capacity_, stride(state), cuda_.get(), Buffer::Host::kNone);
  return made;
}

void Program::copy(void* to, const void* from, size_t size) const {
  if (cuda_) cuda_->copy(to, from, size);
  else memcpy(to, from, size);
}

void Program::wait() const {
  if (cuda_) cuda_->wait();
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

void Program::begin_anew(const Buffers& states, int row) {
  for (size_t k = 0; k < signature.states.size(); k++) {
    const Buffer& buffer = states[k];
    const std::string& initial = signature.states[k].initial;
    if (!initial.empty()) copy(buffer.row(row), initial.data(), buffer.bytes());
    else if (cuda_) copy(buffer.row(row), std::string(buffer.bytes(), '\0').data(), buffer.bytes());
    else memset(buffer.row(row), 0, buffer.bytes());
  }
}

void Program::reset(int row) {
  auto lock = turn();
  Cuda::Current now(cuda_.get());
  begin_anew(states_[int(side_[row])], row);
  wait();
}

std::string Program::save(int row) {
  auto lock = turn();
  std::vector<const void*> values;
  std::vector<std::string> copies;
  for (const Buffer& buffer : states_[int(side_[row])]) {
    if (cuda_) copies.emplace_back(buffer.bytes(), '\0');
    else values.push_back(buffer.row(row));
  }
  if (cuda_) {
    Cuda::Current now(cuda_.get());
    for (size_t k = 0; k < copies.size(); k++) copy(&copies[k][0], states_[int(side_[row])][k].row(row), copies[k].size());
    wait();
    for (const std::string& one : copies) values.push_back(one.data());
  }
  return write_snapshot(signature.states, values, engine_->model);
}

void Program::load(int row, const void* data, size_t size) {
  std::vector<const void*> values = read_snapshot(signature.states, engine_->model, data, size);
  auto lock = turn();
  Cuda::Current now(cuda_.get());
  for (size_t k = 0; k < values.size(); k++) {
    const Buffer& buffer = states_[int(side_[row])][k];
    copy(buffer.row(row), values[k], buffer.bytes());
  }
  wait();
}

void Program::put(const Frames& frames, int slot) {
  for (size_t k = 0; k < inputs_.size(); k++) memcpy(inputs_[k].host(slot), frames.inputs[k].data, inputs_[k].bytes());
}

void Program::take(const Frames& frames, int slot, const Buffers& after) const {
  for (size_t k = 0; k < shared_.size(); k++) {
    const Buffer& buffer = shared_[k] < 0 || cuda_ ? outputs_[place_[k]] : after[shared_[k]];
    if (frames.outputs[k].data != nullptr) memcpy(frames.outputs[k].data, buffer.host(slot), buffer.bytes());
  }
}

void Program::step() {
  Cuda::Current now(cuda_.get());
  int active = int(order_.size()), least = size_.least;
  bool alone = size_.most == 1 || (active == 1 && least == 1 && granule_ == 1);
  int first = order_[0].row - order_[0].row % granule_, end = order_[active - 1].row + 1;
  if (end - first < least) first = std::min(first, int(capacity_) - least), first -= first % granule_;
  int count = std::max(end - first, least), fewest = std::max(active, least);
  if (alone) {
    for (const Frames& one : order_) {
      int side = side_[one.row];
      put(one, one.row);
      run({one.row, 1, side}, one.row, 1, states_[side], states_[1 - side]);
    }
  } else if (fewest < kDense * count || (size_.overwrites && active < count)) {
    // Few rows, far apart: their states are copied together, run as one call, and copied back.
    if (scratch_[0].empty() && !signature.states.empty()) {
      Buffers before = state_buffers(), after = state_buffers();
      scratch_[0] = std::move(before), scratch_[1] = std::move(after);
      // As rows that no stream has yet.
      for (int slot = 0; slot < least; slot++) begin_anew(scratch_[0], slot);
    }
    for (int slot = 0; slot < active; slot++) {
      int row = order_[slot].row;
      put(order_[slot], slot);
      for (size_t k = 0; k < scratch_[0].size(); k++)
        copy(scratch_[0][k].row(slot), states_[int(side_[row])][k].row(row), scratch_[0][k].bytes());
    }
    run({-1, fewest, 0}, 0, fewest, scratch_[0], scratch_[1]);
    for (int slot = 0; slot < active; slot++) {
      int row = order_[slot].row;
      for (size_t k = 0; k < scratch_[1].size(); k++)
        copy(states_[1 - side_[row]][k].row(row), scratch_[1][k].row(slot), scratch_[1][k].bytes());
    }
    wait();
    for (int slot = 0; slot < active; slot++) {
      take(order_[slot], slot, scratch_[1]);
      side_[order_[slot].row] ^= 1;
    }
    return;
  } else {
    for (const Frames& one : order_) put(one, one.row);
    int side = side_[order_[0].row];
    for (int row = first; row < first + count; row++)
      if (side_[row] != side) {  // only after a step in which some of them were idle
        for (size_t k = 0; k < states_[0].size(); k++)
          copy(states_[side][k].row(row), states_[1 - side][k].row(row), states_[0][k].bytes());
        side_[row] = char(side);
      }
    run({first, count, side}, first, count, states_[side], states_[1 - side]);
  }
  wait();
  for (const Frames& one : order_) {
    take(one, one.row, states_[1 - side_[one.row]]);
    side_[one.row] ^= 1;
  }
}

void Program::Call::put(CudaStream on) const {
  for (const Copy& one : load) cuda->copy(one.to, one.from, one.size, on);
  step->run(on);
  for (const Copy& one : store) cuda->copy(one.to, one.from, one.size, on);
}

Program::Call::~Call() {
  if (cuda == nullptr) return;
  Cuda::Current now(cuda);
  if (graph != nullptr) cuda->destroy(graph);
  step.reset();
}

void Program::run(const Key& key, int first, int count, const Buffers& before, const Buffers& after) {
  auto found = calls_.find(key);
  if (found == calls_.end()) {
    auto made = bind(first, count, before, after);
    if (calls_.size() >= (cuda_ ? kMostGraphs : kMostCalls)) {
      wait();
      calls_.erase(oldest_.front()), oldest_.pop_front();
    }
    oldest_.push_back(key);
    found = calls_.emplace(key, std::move(made)).first;
  }
  Call& call = *found->second;
  if (!cuda_) return call.step->run(nullptr);
  // The first run does what no capture survives: contexts prepare themselves.
  if (call.graph == nullptr && engine_->captures && call.runs == 1) call.graph = cuda_->capture([&](CudaStream on) { call.put(on); });
  call.runs = std::min(call.runs + 1, 2);
  if (call.graph != nullptr) cuda_->launch(call.graph);
  else call.put(cuda_->stream);
}

std::unique_ptr<Program::Call> Program::bind(int first, int count, const Buffers& before, const Buffers& after) {
  std::unique_ptr<Call> call(new Call{cuda_.get(), nullptr, {}, {}});
  std::vector<Bound> tensors;
  for (size_t k = 0; k < inputs_.size(); k++) {
    const Buffer& buffer = inputs_[k];
    tensors.push_back({&signature.inputs[k].name, &signature.inputs[k], buffer.row(first), true});
    if (cuda_) call->load.push_back({buffer.row(first), buffer.host(first), buffer.stride() * size_t(count)});
  }
  for (size_t k = 0; k < signature.states.size(); k++) {
    const State& state = signature.states[k];
    tensors.push_back({&state.input, &state, before[k].row(first), true});
    tensors.push_back({&state.output, &state, after[k].row(first), false});
  }
  for (size_t k = 0; k < shared_.size(); k++) {
    if (shared_[k] < 0) tensors.push_back({&signature.outputs[k].name, &signature.outputs[k], outputs_[place_[k]].row(first), false});
    if (!cuda_) continue;
    const Buffer& buffer = outputs_[place_[k]];
    const char* from = shared_[k] < 0 ? buffer.row(first) : after[shared_[k]].row(first);
    call->store.push_back({buffer.host(first), from, buffer.stride() * size_t(count)});
  }
  call->step = engine_->bind(count, tensors);
  return call;
}

}  // namespace edgelstm
