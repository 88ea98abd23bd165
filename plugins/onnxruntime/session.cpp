// A session of ONNX Runtime and its calls, for Python through ctypes: a step is one call of a function with one argument, where
// ONNX Runtime's own Python interface takes longer than a small cell. Functions return 0, or 1 and leave a message.
#include <limits>
#include <memory>
#include <string_view>

#include "look.h"

namespace edgelstm {
namespace {

thread_local std::string message;

template <class Work>
int tried(const Work& work) {
  try {
    work();
    return 0;
  } catch (const std::exception& error) {
    message = error.what();
    return 1;
  }
}

struct Opened {
  ort::Session* session = nullptr;
  ort::RunOptions* options = nullptr;
  ~Opened() {
    if (session != nullptr) api().ReleaseSession(session);
    if (options != nullptr) api().ReleaseRunOptions(options);
  }
};

// A step over fixed memory. It keeps its session.
struct Call {
  std::shared_ptr<Opened> opened;
  ort::Binding* binding = nullptr;
  const float* watched = nullptr;
  int64_t count = 0;
  std::vector<Piece> looked;  // where each step is looked at
  bool offered = false;       // operators may look there themselves
  unsigned char bad = 0;      // what such a look found
  ~Call() {
    if (binding != nullptr) api().ReleaseIoBinding(binding);
  }
};

constexpr float kLargest = std::numeric_limits<float>::max();

}  // namespace
}  // namespace edgelstm

using namespace edgelstm;
#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char* edgelstm_message() { return message.c_str(); }

// RegisterCustomOps has to have been called by the ONNX Runtime that is to open the session.
EXPORT int edgelstm_open(const void* model, size_t size, int threads, int spin, void** out) {
  return tried([&] {
    if (!registered()) throw std::runtime_error("the library of operators is not registered");
    static ort::Env* env = nullptr;  // ONNX Runtime has one for the process, and counts who uses it
    if (env == nullptr) check(api().CreateEnv(4, "edgelstm", &env));
    ort::SessionOptions* options = nullptr;
    check(api().CreateSessionOptions(&options));
    std::unique_ptr<ort::SessionOptions, void (*)(ort::SessionOptions*)> owned(options, api().ReleaseSessionOptions);
    check(api().SetIntraOpNumThreads(options, threads));
    check(api().SetInterOpNumThreads(options, 1));
    check(api().SetSessionLogSeverityLevel(options, 4));
    check(api().AddSessionConfigEntry(options, "session.intra_op.allow_spinning", spin ? "1" : "0"));
    // On x86 without VNNI products of uint8 and int8 would saturate at 16 bits.
    check(api().AddSessionConfigEntry(options, "session.x64quantprecision", "1"));
    std::string_view text(static_cast<const char*>(model), size);
    const char unfused[] = "session.disable_quant_qdq";
    bool codes = text.find("QuantizeLinear") != text.npos;
    // Weights alone in int8, that no cell of ours took: dequantised once, not in every step.
    if (text.find("DequantizeLinear") != text.npos && !codes) check(api().AddSessionConfigEntry(options, unfused, "1"));
    check(add_operators(options));
    auto opened = std::make_shared<Opened>();
    ort::Status* status = api().CreateSessionFromArray(env, model, size, options, &opened->session);
    if (status != nullptr && codes) {  // there it fails where two products read the same weights; unfused it computes in float32
      api().ReleaseStatus(status);
      check(api().AddSessionConfigEntry(options, unfused, "1"));
      status = api().CreateSessionFromArray(env, model, size, options, &opened->session);
    }
    check(status);
    check(api().CreateRunOptions(&opened->options));
    *out = new std::shared_ptr<Opened>(opened);
  });
}

EXPORT void edgelstm_close(void* session) { delete static_cast<std::shared_ptr<Opened>*>(session); }

// A call over `inputs` tensors that are read and `outputs` that are written: their names, addresses, sizes in bytes, element
// types, ranks, and dimensions one after the other. `watched`: floats of theirs, or null. The memory has to outlive the call.
EXPORT int edgelstm_bind(void* session, size_t inputs, size_t outputs, const char* const* names, void* const* data,
                         const size_t* bytes, const int* types, const size_t* ranks, const int64_t* dims,
                         const float* watched, int64_t count, void** out) {
  return tried([&] {
    auto call = std::make_unique<Call>();
    call->opened = *static_cast<std::shared_ptr<Opened>*>(session);
    call->watched = watched, call->count = count;
    check(api().CreateIoBinding(call->opened->session, &call->binding));
    ort::MemoryInfo* memory = nullptr;
    check(api().CreateCpuMemoryInfo(0, 0, &memory));
    std::unique_ptr<ort::MemoryInfo, void (*)(ort::MemoryInfo*)> owned(memory, api().ReleaseMemoryInfo);
    for (size_t k = 0; k < inputs + outputs; k++) {
      ort::Value* value = nullptr;
      check(api().CreateTensorWithDataAsOrtValue(memory, data[k], bytes[k], dims, ranks[k], types[k], &value));
      dims += ranks[k];
      auto bind = k < inputs ? api().BindInput : api().BindOutput;
      ort::Status* status = bind(call->binding, names[k], value);
      api().ReleaseValue(value);  // the binding has a reference of its own
      check(status);
    }
    *out = call.release();
  });
}

EXPORT void edgelstm_unbind(void* call) { delete static_cast<Call*>(call); }

// From here on a call looks at `count` pieces of floats that it writes, right after each step, which gives 3 where one holds NaN or a
// number outside its low and high, which are finite. The memory has to outlive the call.
EXPORT int edgelstm_watch(void* pointer, size_t count, const float* const* data, const int64_t* sizes, const float* low,
                          const float* high) {
  return tried([&] {
    auto& call = *static_cast<Call*>(pointer);
    call.looked.clear(), call.offered = false, call.bad = 0;
    for (size_t k = 0; k < count; k++) {
      Piece one{data[k], sizes[k], {low[k], high[k], &call.bad}, false};
      Piece* last = call.looked.empty() ? nullptr : &call.looked.back();
      if (one.count >= kWorthOwnLook) {
        call.offered = true;
      } else if (last != nullptr && last->count < kWorthOwnLook && last->data + last->count == one.data &&
                 last->bounds.low == one.bounds.low && last->bounds.high == one.bounds.high) {
        last->count += one.count;  // small ones side by side are one
        continue;
      }
      call.looked.push_back(one);
    }
  });
}

EXPORT int edgelstm_run(void* pointer) {
  auto& call = *static_cast<Call*>(pointer);
  if (call.offered) {
    for (Piece& piece : call.looked) piece.seen = false;
    call.bad = 0;
    pieces = &call.looked;
  }
  ort::Status* status = api().RunWithBinding(call.opened->session, call.opened->options, call.binding);
  if (call.offered) pieces = nullptr;
  if (status != nullptr) return tried([&] { check(status); });
  bool bad = call.bad != 0;
  for (const Piece& piece : call.looked)
    if (!piece.seen && !kernels().within(piece.data, piece.count, piece.bounds.low, piece.bounds.high)) bad = true;
  return bad ? 3 : 0;
}

// As edgelstm_run; but 2, and nothing is done, where what is watched holds NaN or infinity.
EXPORT int edgelstm_run_watched(void* pointer) {
  auto& call = *static_cast<Call*>(pointer);
  return kernels().within(call.watched, call.count, -kLargest, kLargest) ? edgelstm_run(pointer) : 2;
}
