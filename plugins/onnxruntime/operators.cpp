// The operators: FusedLSTMCell, FusedGRUCell, FusedGates, FusedGatesI8, FusedGatesU8 (domain edgelstm, version 1, states in float32),
// and RegisterCustomOps.
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "instructions.h"
#include "node.h"
#include "packed.h"

#ifndef EDGELSTM_BUILD
#define EDGELSTM_BUILD "{}"
#endif
// What this file was built from and for, readable before it is loaded.
extern "C" __attribute__((visibility("default"), used)) const char edgelstm_native_info[] = "edgelstm-native " EDGELSTM_BUILD;

namespace edgelstm {

namespace {

const ort::Api* the_api = nullptr;

// Multiplications above which a step is worth waking ONNX Runtime's other threads: some 5 us of one core.
constexpr int64_t kWorthSharing = 1 << 17;

const Kernels* best() {
#if defined(__x86_64__)
  const Kernels* all[] = {&kAvx512, &kAvx2, &kPortable};
  Instructions has = instructions();
  bool there[] = {has.avx512, has.avx2, true};
#else
  const Kernels* all[] = {&kPortable};
  bool there[] = {true};
#endif
  const char* wanted = getenv("EDGELSTM_NATIVE_ISA");
  const Kernels* found = nullptr;
  for (size_t k = 0; k < sizeof(all) / sizeof(*all); k++)
    if (there[k] && (found == nullptr || (wanted != nullptr && strcmp(wanted, all[k]->name) == 0))) found = all[k];
  return found;
}

}  // namespace

const ort::Api& api() { return *the_api; }
bool registered() { return the_api != nullptr; }
const Kernels& kernels() {
  static const Kernels* chosen = best();
  return *chosen;
}

std::string text(const Shape& shape) {
  std::string out = "[";
  for (size_t k = 0; k < shape.size(); k++) out += (k ? ", " : "") + std::to_string(shape[k]);
  return out + "]";
}

int64_t Info::integer(const char* name, int64_t otherwise) const {
  int64_t value = otherwise;
  ort::Status* status = api().KernelInfoGetAttribute_int64(info, name, &value);
  if (status == nullptr) return value;
  api().ReleaseStatus(status);
  return otherwise;
}

float Info::real(const char* name, float otherwise) const {
  float value = otherwise;
  ort::Status* status = api().KernelInfoGetAttribute_float(info, name, &value);
  if (status == nullptr) return value;
  api().ReleaseStatus(status);
  return otherwise;
}

Tensor Info::constant(size_t input) const {
  int is_constant = 0;
  const ort::Value* value = nullptr;
  Tensor found;
  check(api().KernelInfoGetConstantInput_tensor(info, input, &is_constant, &value));
  if (!is_constant || value == nullptr) return found;
  void* data = nullptr;
  check(api().GetTensorMutableData(const_cast<ort::Value*>(value), &data));
  found.data = static_cast<const float*>(data);
  ort::TensorInfo* type = nullptr;
  check(api().GetTensorTypeAndShape(value, &type));
  size_t rank = 0;
  ort::Status* status = api().GetDimensionsCount(type, &rank);
  found.shape.resize(rank);
  if (status == nullptr) status = api().GetDimensions(type, found.shape.data(), rank);
  api().ReleaseTensorTypeAndShapeInfo(type);
  check(status);
  return found;
}

namespace {
struct Lent {
  std::mutex lock;
  std::map<int64_t, Tensor> matrices;
};
Lent& lent() {
  static Lent all;
  return all;
}
}  // namespace

Tensor Info::matrix(size_t input, const char* attribute) const {
  int64_t number = integer(attribute, 0);
  if (number == 0) return constant(input);
  std::lock_guard<std::mutex> guard(lent().lock);
  auto found = lent().matrices.find(number);
  if (found == lent().matrices.end()) refuse(op, "weights " + std::to_string(number) + " were not lent");
  return found->second;
}

Variant Info::variant() const {
  Variant v;
  v.hard_sigmoid = integer("hard_sigmoid", 0) != 0;
  v.alpha = real("alpha", 0.2f), v.beta = real("beta", 0.5f);
  v.candidate_relu = integer("candidate_relu", 0) != 0;
  v.output_relu = integer("output_relu", 0) != 0;
  v.cell_clip = real("cell_clip", 0);
  v.coupled = integer("coupled", 0) != 0;
  return v;
}

size_t Context::shape(size_t input, int64_t* dims, size_t most) const {
  ort::TensorInfo* type = nullptr;
  check(api().GetTensorTypeAndShape(value(input), &type));
  size_t rank = 0;
  ort::Status* status = api().GetDimensionsCount(type, &rank);
  if (status == nullptr && rank <= most) status = api().GetDimensions(type, dims, rank);
  api().ReleaseTensorTypeAndShapeInfo(type);
  check(status);
  return rank;
}

const float* Context::matrix(size_t input, int64_t rows, int64_t columns, const char* what) const {
  int64_t dims[8];
  size_t rank = shape(input, dims, 8);
  if (rank == 2 && dims[0] == rows && dims[1] == columns) return data(value(input));
  refuse(op, std::string(what) + " is " + text(Shape(dims, dims + (rank <= 8 ? rank : 0))) + ", expected " + text({rows, columns}));
}

namespace {

// A peephole, [units] or one number, [panel][lanes].
Shared peephole(const Info& info, size_t input, int64_t units) {
  Tensor p = info.constant(input);
  if (p.data == nullptr) refuse(info.op, "peepholes have to be constants");
  std::vector<float> values(units);
  if (p.count() != units && p.count() != 1) refuse(info.op, "a peephole is " + text(p.shape) + ", expected [" + std::to_string(units) + "]");
  for (int64_t k = 0; k < units; k++) values[k] = p.data[p.count() == 1 ? 0 : k];
  return pack_bias({values.data()}, units, kernels().lanes);
}

// h', c' of one LSTM layer. Inputs: x [N, I], h [N, R] (may be missing: all of it is x), c [N, units], W [gates * units, I + R]
// (transposed: the other way round; missing where it is lent), b [gates * units] (may be missing), p_i, p_f, p_o, and what is added to
// the sums, [N, gates * units] (may be missing). Gates i, f, g, o; i, g, o if coupled.
class LstmCell {
 public:
  static constexpr const char* kName = "FusedLSTMCell";
  static constexpr size_t kInputs = 9, kOutputs = 2;
  static bool optional(size_t k) { return k == 1 || k >= 3; }
  static int type(size_t) { return ort::kFloat; }

  explicit LstmCell(const Info& info) {
    step_ = {};
    step_.variant = info.variant();
    threads_ = info.integer("threads", 1);
    bool transposed = info.integer("transposed", 0) != 0;
    Tensor w = info.matrix(3, "lent"), b = info.constant(4);
    int64_t gates = step_.variant.gates();
    if (w.data == nullptr || w.shape.size() != 2) refuse(kName, "W has to be a constant matrix");
    int64_t rows = w.shape[transposed ? 1 : 0], columns = w.shape[transposed ? 0 : 1];
    step_.units = rows / gates;
    if (rows != step_.units * gates || rows == 0 || columns == 0)
      refuse(kName, "W is " + text(w.shape) + ", expected rows for " + std::to_string(gates) + " gates");
    if (b.data != nullptr && b.count() != rows) refuse(kName, "b is " + text(b.shape) + ", expected [" + std::to_string(rows) + "]");
    columns_ = columns;
    recurrent_ = info.integer("recurrent", 1) != 0;
    added_ = info.integer("added", 0) != 0;
    std::vector<int64_t> first;
    std::vector<const float*> bias;
    for (int64_t g = 0; g < gates; g++) {
      first.push_back(g * step_.units);
      bias.push_back(b.data == nullptr ? nullptr : b.data + g * step_.units);
    }
    weights_ = pack({w.data, rows, columns, 0, columns, transposed, first}, step_.units, kernels().lanes);
    bias_ = pack_bias(bias, step_.units, kernels().lanes);
    step_.panels = weights_->data(), step_.bias = bias_->data();
    if (info.integer("peephole", 0)) {
      for (int k = 0; k < 3; k++)
        if (k != 1 || !step_.variant.coupled) p_[k] = peephole(info, 5 + k, step_.units);
      step_.p_i = p_[0]->data(), step_.p_o = p_[2]->data();
      if (p_[1]) step_.p_f = p_[1]->data();
    }
  }

  void run(const Context& context) const {
    LstmStep s = step_;
    int64_t dims[2];
    if (context.shape(0, dims, 2) != 2) refuse(kName, "x has to be [N, inputs]");
    s.rows = dims[0], s.inputs = dims[1], s.width = columns_ - s.inputs;
    if (s.width < 0 || (!recurrent_ && s.width != 0))
      refuse(kName, "x is " + text({dims[0], dims[1]}) + ", W takes " + std::to_string(columns_) + " inputs");
    if (s.rows == 0) {
      int64_t none[] = {0, s.units};
      context.output(0, none, 2), context.output(1, none, 2);
      return;
    }
    s.x = context.data(context.value(0));
    if (recurrent_) s.h = s.width ? context.matrix(1, s.rows, s.width, "h") : s.x;
    else s.h = s.x;
    s.c = context.matrix(2, s.rows, s.units, "c");
    if (added_) s.z = context.matrix(8, s.rows, s.variant.gates() * s.units, "what is added");
    int64_t out[] = {s.rows, s.units};
    s.h_out = context.output(0, out, 2), s.c_out = context.output(1, out, 2);
    int64_t panels = (s.units + kernels().lanes - 1) / kernels().lanes;
    bool shared = threads_ > 1 && s.rows * columns_ * s.units * s.variant.gates() > kWorthSharing;
    context.share(panels, shared ? threads_ : 1, [&s](int64_t a, int64_t b) { kernels().lstm(s, a, b); });
  }

 private:
  LstmStep step_;
  Shared weights_, bias_, p_[3];
  int64_t columns_, threads_;
  bool recurrent_, added_;
};

// h' of one GRU layer, gates z, r, n as in ONNX. Inputs: x [N, I], h [N, units], W [3 units, I], R [3 units, units],
// b [6 units] (of W, then of R; may be missing). linear_before_reset as in ONNX.
class GruCell {
 public:
  static constexpr const char* kName = "FusedGRUCell";
  static constexpr size_t kInputs = 5, kOutputs = 1;
  static bool optional(size_t k) { return k >= 2; }
  static int type(size_t) { return ort::kFloat; }

  explicit GruCell(const Info& info) {
    step_ = {};
    step_.variant = info.variant();
    step_.after = info.integer("linear_before_reset", 0) != 0;
    threads_ = info.integer("threads", 1);
    Tensor w = info.matrix(2, "lent_w"), r = info.matrix(3, "lent_r"), b = info.constant(4);
    if (w.data == nullptr || r.data == nullptr || w.shape.size() != 2 || r.shape.size() != 2)
      refuse(kName, "W and R have to be constant matrices");
    int64_t units = r.shape[1], rows = 3 * units;
    if (w.shape[0] != rows || r.shape[0] != rows || units == 0 || w.shape[1] == 0)
      refuse(kName, "W is " + text(w.shape) + " and R " + text(r.shape) + ", expected [3 units, inputs] and [3 units, units]");
    if (b.data != nullptr && b.count() != 2 * rows) refuse(kName, "b is " + text(b.shape) + ", expected [" + std::to_string(2 * rows) + "]");
    step_.units = units, step_.inputs = w.shape[1];
    int lanes = kernels().lanes;
    std::vector<float> sums(2 * units);
    std::vector<const float*> bias(4, nullptr);
    if (b.data != nullptr) {
      for (int64_t k = 0; k < 2 * units; k++) sums[k] = b.data[k] + b.data[rows + k];
      bias = {sums.data(), sums.data() + units, b.data + 2 * units, b.data + rows + 2 * units};
    }
    std::vector<int64_t> three{0, units, 2 * units}, two{0, units};
    x_ = pack({w.data, rows, step_.inputs, 0, step_.inputs, false, three}, units, lanes);
    h_ = pack({r.data, rows, units, 0, units, false, step_.after ? three : two}, units, lanes);
    if (!step_.after) n_ = pack({r.data, rows, units, 0, units, false, {2 * units}}, units, lanes);
    bias_ = pack_bias(bias, units, lanes);
    step_.x_panels = x_->data(), step_.h_panels = h_->data(), step_.bias = bias_->data();
    if (n_) step_.n_panels = n_->data();
  }

  void run(const Context& context) const {
    GruStep s = step_;
    int64_t dims[2];
    if (context.shape(0, dims, 2) != 2 || dims[1] != s.inputs) refuse(kName, "x has to be [N, " + std::to_string(s.inputs) + "]");
    s.rows = dims[0];
    int64_t out[] = {s.rows, s.units};
    s.h_out = context.output(0, out, 2);
    if (s.rows == 0) return;
    s.x = context.data(context.value(0));
    s.h = context.matrix(1, s.rows, s.units, "h");
    std::unique_ptr<float[]> scratch;
    if (!s.after) {
      int64_t size = s.rows * s.units;
      scratch.reset(new float[3 * size]);
      s.z = scratch.get(), s.reset_h = s.z + size, s.n = s.reset_h + size;
    }
    int64_t panels = (s.units + kernels().lanes - 1) / kernels().lanes;
    int64_t parts = threads_ > 1 && s.rows * (s.inputs + s.units) * s.units * 3 > kWorthSharing ? threads_ : 1;
    context.share(panels, parts, [&s](int64_t a, int64_t b) { kernels().gru(s, a, b); });
    if (!s.after) context.share(panels, parts, [&s](int64_t a, int64_t b) { kernels().gru_candidate(s, a, b); });
  }

 private:
  GruStep step_;
  Shared x_, h_, n_, bias_;
  int64_t threads_;
};

// h, c_out from z [N, gates * C, *spatial] and c [N, C, *spatial]; p_i, p_f, p_o broadcastable to [C, *spatial]. FusedGatesI8 and
// FusedGatesU8 take codes, worth (z - zero_point) * scale: scale and zero_point [gates], constants, after the peepholes.
template <Codes kCodes>
class Gates {
 public:
  static constexpr const char* kName = kCodes == Codes::kNone ? "FusedGates" : kCodes == Codes::kInt8 ? "FusedGatesI8" : "FusedGatesU8";
  static constexpr bool kCoded = kCodes != Codes::kNone;
  static constexpr size_t kInputs = kCoded ? 7 : 5, kOutputs = 2, kMostAxes = 8;
  static constexpr int kCode = kCodes == Codes::kInt8 ? ort::kInt8 : ort::kUint8;
  static bool optional(size_t k) { return k >= 2 && k < 5; }
  static int type(size_t k) { return kCoded && (k == 0 || k == 6) ? kCode : ort::kFloat; }

  explicit Gates(const Info& info) : variant_(info.variant()), threads_(info.integer("threads", 1)) {
    peephole_ = info.integer("peephole", 0) != 0;
    if constexpr (kCoded) {
      Tensor scale = info.constant(5), zero = info.constant(6);
      int64_t gates = variant_.gates();
      if (scale.data == nullptr || zero.data == nullptr || scale.count() != gates || zero.count() != gates)
        refuse(kName, "scale and zero point have to be constants, one for each gate");
      for (int64_t g = 0; g < gates; g++) {
        scale_[g] = scale.data[g];
        zero_[g] = kCodes == Codes::kInt8 ? reinterpret_cast<const int8_t*>(zero.data)[g] : reinterpret_cast<const uint8_t*>(zero.data)[g];
      }
    }
  }

  void run(const Context& context) const {
    int64_t z[kMostAxes], c[kMostAxes];
    size_t rank = context.shape(1, c, kMostAxes);
    if (rank < 2 || rank > kMostAxes || context.shape(0, z, kMostAxes) != rank) refuse(kName, "z and c need as many axes, 2 to 8");
    GatesStep s{};
    s.variant = variant_, s.codes = kCodes;
    for (int g = 0; g < 4; g++) s.scale[g] = scale_[g], s.zero[g] = zero_[g];
    s.rows = c[0], s.channels = c[1], s.size = 1;
    bool fits = z[0] == c[0] && z[1] == variant_.gates() * c[1];
    for (size_t k = 2; k < rank; k++) s.size *= c[k], fits = fits && z[k] == c[k];
    if (!fits) refuse(kName, "z is " + text(Shape(z, z + rank)) + " and c " + text(Shape(c, c + rank)));
    s.h_out = context.output(0, c, rank), s.c_out = context.output(1, c, rank);
    s.z = context.data(context.value(0)), s.c = context.data(context.value(1));
    const float** p[] = {&s.p_i, &s.p_f, &s.p_o};
    for (int k = 0; peephole_ && k < 3; k++) {
      if (k == 1 && variant_.coupled) continue;
      int64_t dims[kMostAxes];
      size_t axes = context.shape(2 + k, dims, kMostAxes);
      *p[k] = context.data(context.value(2 + k));
      spread(dims, axes, c + 1, rank - 1, &s.p_channel[k], &s.p_place[k]);
    }
    if (s.size == 1) {  // the channels take the maps' place: they lie side by side
      s.size = s.channels, s.channels = 1;
      for (int k = 0; k < 3; k++) s.p_place[k] = s.p_channel[k], s.p_channel[k] = 0;
    }
    int64_t maps = s.rows * s.channels;
    bool shared = threads_ > 1 && maps * s.size > kWorthSharing / 16;
    context.share(maps, shared ? threads_ : 1, [&s](int64_t a, int64_t b) { kernels().gates(s, a, b); });
  }

 private:
  // Steps from channel to channel and from place to place of a peephole [dims] broadcast to [C, *spatial].
  static void spread(const int64_t* dims, size_t axes, const int64_t* target, size_t rank, int64_t* channel, int64_t* place) {
    bool whole = true, one = true, fits = axes <= rank;
    for (size_t k = 0; fits && k < rank; k++) {
      int64_t d = k + axes < rank ? 1 : dims[k + axes - rank];
      fits = d == 1 || d == target[k];
      if (k == 0) continue;
      if (d != target[k]) whole = false;
      if (d != 1) one = false;
    }
    if (!fits || !(whole || one)) refuse(kName, "a peephole is " + text(Shape(dims, dims + axes)) + ", which does not go with c");
    int64_t size = 1;
    for (size_t k = 1; k < rank; k++) size *= target[k];
    bool channels = axes == rank && dims[0] != 1;
    *place = one && !(whole && size > 1) ? 0 : 1;
    *channel = channels ? (*place ? size : 1) : 0;
  }

  Variant variant_;
  int64_t threads_;
  bool peephole_;
  float scale_[4] = {}, zero_[4] = {};
};

ort::Status* failed(const std::exception& error) {
  bool argument = dynamic_cast<const std::invalid_argument*>(&error) != nullptr;
  return api().CreateStatus(argument ? ort::Code::kInvalidArgument : ort::Code::kFail, error.what());
}

template <class Op>
const ort::CustomOp* definition() {
  static const ort::CustomOp op = [] {
    ort::CustomOp o{};
    o.version = ort::kVersion;
    o.GetName = [](const ort::CustomOp*) { return Op::kName; };
    o.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return nullptr; };
    o.GetInputType = [](const ort::CustomOp*, size_t k) { return Op::type(k); };
    o.GetOutputType = [](const ort::CustomOp*, size_t) { return ort::kFloat; };
    o.GetInputTypeCount = [](const ort::CustomOp*) { return Op::kInputs; };
    o.GetOutputTypeCount = [](const ort::CustomOp*) { return Op::kOutputs; };
    o.GetInputCharacteristic = [](const ort::CustomOp*, size_t k) {
      return Op::optional(k) ? ort::Presence::kOptional : ort::Presence::kRequired;
    };
    o.GetOutputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::Presence::kRequired; };
    o.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return 0; };
    o.CreateKernelV2 = [](const ort::CustomOp*, const void*, const ort::KernelInfo* info, void** kernel) -> ort::Status* {
      try {
        *kernel = new Op(Info{info, Op::kName});
        return nullptr;
      } catch (const std::exception& error) {
        return failed(error);
      }
    };
    o.KernelComputeV2 = [](void* kernel, ort::KernelContext* context) -> ort::Status* {
      try {
        static_cast<const Op*>(kernel)->run(Context{context, Op::kName});
        return nullptr;
      } catch (const std::exception& error) {
        return failed(error);
      }
    };
    o.KernelDestroy = [](void* kernel) { delete static_cast<Op*>(kernel); };
    o.GetStartVersion = [](const ort::CustomOp*) { return 1; };
    o.GetEndVersion = [](const ort::CustomOp*) { return 1; };
    return o;
  }();
  return &op;
}

}  // namespace

ort::Status* add_operators(ort::SessionOptions* options) {
  // One domain for the process: sessions refer to it as long as they live.
  static ort::Domain* domain = nullptr;
  static std::mutex lock;
  std::lock_guard<std::mutex> guard(lock);
  if (domain == nullptr) {
    ort::Domain* made = nullptr;
    if (auto status = api().CreateCustomOpDomain("edgelstm", &made)) return status;
    for (const ort::CustomOp* op : {definition<LstmCell>(), definition<GruCell>(), definition<Gates<Codes::kNone>>(),
                                    definition<Gates<Codes::kInt8>>(), definition<Gates<Codes::kUint8>>()})
      if (auto status = api().CustomOpDomain_Add(made, op)) return status;
    domain = made;
  }
  return api().AddCustomOpDomain(options, domain);
}

}  // namespace edgelstm

// What ONNX Runtime calls when the library is registered with a session's options.
extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::Base* base) {
  using namespace edgelstm;
  const void* table = base->get_api(ort::kVersion);
  auto refuse = [&](const char* why) {
    // Every release has version 1 of the interface, and with it CreateStatus.
    auto create = reinterpret_cast<ort::Api::CreateStatus_t>(static_cast<void* const*>(base->get_api(1))[0]);
    return create(ort::Code::kFail, why);
  };
  if (table == nullptr) return refuse("edgelstm's operators need ONNX Runtime 1.18 or later");
  static std::mutex lock;
  std::lock_guard<std::mutex> guard(lock);
  static const void* const first = table;
  // Its objects and its functions are not another one's: they would end the process.
  if (table != first)
    return refuse("edgelstm's operators serve another ONNX Runtime in this process already: one process registers a file of theirs with one");
  static const ort::Api functions(table);
  the_api = &functions;  // for sessions of session.cpp too
  return add_operators(options);
}

// A float matrix that kernels find under a number while a session is opened; data null: no longer.
extern "C" __attribute__((visibility("default"))) void edgelstm_lend(int64_t number, const float* data, int64_t rows, int64_t columns) {
  using namespace edgelstm;
  std::lock_guard<std::mutex> guard(lent().lock);
  if (data == nullptr) {
    lent().matrices.erase(number);
  } else {
    lent().matrices[number] = Tensor{data, {rows, columns}};
  }
}

// For the tests and `edgelstm doctor`: which instructions were chosen, and its sigmoid (0) and tanh (1).
extern "C" __attribute__((visibility("default"))) const char* edgelstm_native_isa() { return edgelstm::kernels().name; }
extern "C" __attribute__((visibility("default"))) void edgelstm_native_activate(int kind, const float* x, float* y, int64_t count) {
  edgelstm::kernels().activate(kind, x, y, count);
}
