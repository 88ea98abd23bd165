// The operators: FusedLSTMCell, FusedGRUCell, both with I8 (weights in int8) and BF16 (in bfloat16) behind their names; FusedGates
// and its relatives (gates.h), FusedConvLSTMCell (winograd_cell.h), FusedConvGRUCell (winograd_gru_cell.h) (domain edgelstm, version 1, states in float32); and RegisterCustomOps.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <type_traits>

#include "around.h"
#include "gates.h"
#include "instructions.h"
#include "look.h"
#include "node.h"
#include "packed.h"
#include "sharing.h"
#include "winograd_cell.h"
#include "winograd_gru_cell.h"

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

// The same kernels, with products of int8 codes by bytes.
Kernels with(const Dot& dot, Kernels kernels) {
  kernels.name = dot.name, kernels.dot = &dot;
  return kernels;
}

const Kernels* best() {
#if defined(__x86_64__)
  static const Kernels vnni = with(kDotVnni, kAvx512), vex = with(kDotVex, kAvx2);
  const Kernels* all[] = {&vnni, &kAvx512, &vex, &kAvx2, &kPortable};
  Instructions has = instructions();
  bool there[] = {has.avx512vnni, has.avx512, has.avx2vnni && kDotVex.lanes != 0, has.avx2, true};
#elif defined(__aarch64__)
  static const Kernels neon = with(kDotNeon, kPortable);
  const Kernels* all[] = {&neon, &kPortable};
  bool there[] = {instructions().dot, true};
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

// Who multiplies codes of so many inputs.
const Dot* dot_of(Weights w, int64_t inputs) { return w == Weights::kInt8 && inputs <= Dot::kMost ? kernels().dot : nullptr; }

constexpr int element(Weights w) { return w == Weights::kInt8 ? ort::kInt8 : w == Weights::kBfloat16 ? ort::kBfloat16 : ort::kFloat; }

// What the codes of a matrix's rows are worth, [panel][gates][lanes], of those gates.
Shared scales(const Info& info, size_t input, int64_t rows, const std::vector<int64_t>& gates, int64_t units) {
  Tensor scale = info.constant(input);
  if (scale.data == nullptr || scale.shape.size() != 1 || scale.count() != rows)
    refuse(info.op, "scale is " + (scale.data == nullptr ? std::string("no constant") : text(scale.shape)) + ", expected a constant [" +
                        std::to_string(rows) + "]");
  std::vector<const float*> first;
  for (int64_t row : gates) first.push_back(scale.data + row);
  return pack_bias(first, units, kernels().lanes);
}

// h', c' of one LSTM layer. Inputs: x [N, I], h [N, R] (may be missing: all of it is x), c [N, units], W [gates * units, I + R]
// (transposed: the other way round; missing where it is lent), b [gates * units] (may be missing), p_i, p_f, p_o, and what is added to
// the sums, [N, gates * units] (may be missing). Gates i, f, g, o; i, g, o if coupled. FusedLSTMCellI8: W in int8, and one input more,
// what a code of each row is worth, [gates * units]. FusedLSTMCellBF16: W in bfloat16.
template <Weights kWeights>
class LstmCell {
 public:
  static constexpr const char* kName =
      kWeights == Weights::kInt8 ? "FusedLSTMCellI8" : kWeights == Weights::kBfloat16 ? "FusedLSTMCellBF16" : "FusedLSTMCell";
  static constexpr size_t kInputs = kWeights == Weights::kInt8 ? 10 : 9, kOutputs = 2;
  static bool optional(size_t k) { return k == 1 || k >= 3; }
  static int type(size_t k) { return k == 3 ? element(kWeights) : ort::kFloat; }

  explicit LstmCell(const Info& info) {
    step_ = {};
    step_.variant = info.variant();
    threads_ = info.integer("threads", 1);
    bool transposed = info.integer("transposed", 0) != 0;
    Tensor w = info.matrix(3, "lent", element(kWeights)), b = info.constant(4);
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
    step_.dot = dot_of(kWeights, columns);
    weights_ = pack({w.data, rows, columns, 0, columns, transposed, first, kWeights, step_.dot}, step_.units, kernels().lanes);
    if (kWeights == Weights::kInt8) scale_ = scales(info, 9, rows, first, step_.units), step_.scale = scale_->data();
    step_.weights = kWeights;
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
    DotRows x, h;
    if (s.dot != nullptr) {
      x.encode(*s.dot, s.x, s.rows, s.inputs, 0), h.encode(*s.dot, s.h, s.rows, s.width, s.inputs % 4);
      s.x_rows = x.get(), s.h_rows = h.get();
    }
    int64_t out[] = {s.rows, s.units};
    s.h_out = context.output(0, out, 2), s.c_out = context.output(1, out, 2);
    int64_t panels = (s.units + kernels().lanes - 1) / kernels().lanes;
    bool shared = threads_ > 1 && s.rows * columns_ * s.units * s.variant.gates() > kWorthSharing;
    auto work = [&s](int64_t a, int64_t b) { kernels().lstm(s, a, b); };
    if (shared) {
      sharing_.run(context, panels, threads_, s.rows, work);
    } else {
      work(0, panels);
    }
  }

 private:
  LstmStep step_;
  Shared weights_, scale_, bias_, p_[3];
  mutable Sharing sharing_;
  int64_t columns_, threads_;
  bool recurrent_, added_;
};

// h' of one GRU layer, gates z, r, n as in ONNX. Inputs: x [N, I], h [N, units], W [3 units, I], R [3 units, units],
// b [6 units] (of W, then of R; may be missing). linear_before_reset as in ONNX. FusedGRUCellI8: W and R in int8, and two inputs more,
// what a code of each of their rows is worth, [3 units] each. FusedGRUCellBF16: W and R in bfloat16.
template <Weights kWeights>
class GruCell {
 public:
  static constexpr const char* kName =
      kWeights == Weights::kInt8 ? "FusedGRUCellI8" : kWeights == Weights::kBfloat16 ? "FusedGRUCellBF16" : "FusedGRUCell";
  static constexpr size_t kInputs = kWeights == Weights::kInt8 ? 7 : 5, kOutputs = 1;
  static bool optional(size_t k) { return k >= 2; }
  static int type(size_t k) { return k == 2 || k == 3 ? element(kWeights) : ort::kFloat; }

  explicit GruCell(const Info& info) {
    step_ = {};
    step_.variant = info.variant();
    step_.after = info.integer("linear_before_reset", 0) != 0;
    threads_ = info.integer("threads", 1);
    Tensor w = info.matrix(2, "lent_w", element(kWeights)), r = info.matrix(3, "lent_r", element(kWeights)), b = info.constant(4);
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
    const std::vector<int64_t>&of_h = step_.after ? three : two, of_n{2 * units};
    const Dot* dot = step_.dot = dot_of(kWeights, units > step_.inputs ? units : step_.inputs);
    x_ = pack({w.data, rows, step_.inputs, 0, step_.inputs, false, three, kWeights, dot}, units, lanes);
    h_ = pack({r.data, rows, units, 0, units, false, of_h, kWeights, dot}, units, lanes);
    if (!step_.after) n_ = pack({r.data, rows, units, 0, units, false, of_n, kWeights, dot}, units, lanes);
    step_.weights = kWeights;
    if (kWeights == Weights::kInt8) {
      scale_[0] = scales(info, 5, rows, three, units), scale_[1] = scales(info, 6, rows, of_h, units);
      scale_[2] = scales(info, 6, rows, of_n, units);
      step_.x_scale = scale_[0]->data(), step_.h_scale = scale_[1]->data(), step_.n_scale = scale_[2]->data();
    }
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
    bool shared = threads_ > 1 && s.rows * (s.inputs + s.units) * s.units * 3 > kWorthSharing;
    auto divided = [&](Sharing& sharing, auto work) {
      if (shared) {
        sharing.run(context, panels, threads_, s.rows, work);
      } else {
        work(0, panels);
      }
    };
    DotRows x, h, n;
    if (s.dot != nullptr) {
      x.encode(*s.dot, s.x, s.rows, s.inputs, 0), h.encode(*s.dot, s.h, s.rows, s.units, 0);
      s.x_rows = x.get(), s.h_rows = h.get();
    }
    divided(sharing_[0], [&s](int64_t a, int64_t b) { kernels().gru(s, a, b); });
    if (s.after) return;
    if (s.dot != nullptr) n.encode(*s.dot, s.reset_h, s.rows, s.units, 0), s.n_rows = n.get();
    divided(sharing_[1], [&s](int64_t a, int64_t b) { kernels().gru_candidate(s, a, b); });
  }

 private:
  GruStep step_;
  Shared x_, h_, n_, bias_, scale_[3];
  mutable Sharing sharing_[2];
  int64_t threads_;
};

ort::Status* failed(const std::exception& error) {
  bool argument = dynamic_cast<const std::invalid_argument*>(&error) != nullptr;
  return api().CreateStatus(argument ? ort::Code::kInvalidArgument : ort::Code::kFail, error.what());
}

// Outputs are floats, and all there but those of FusedMove, unless the operator says otherwise.
template <class Op, class = void>
struct Outputs {
  static int type(size_t) { return ort::kFloat; }
  static bool optional(size_t k) { return k > 0 && Op::kOutputs > 2; }
};
template <class Op>
struct Outputs<Op, std::void_t<decltype(Op::output_type(0))>> {
  static int type(size_t k) { return Op::output_type(k); }
  static bool optional(size_t k) { return Op::output_optional(k); }
};

template <class Op>
const ort::CustomOp* definition() {
  static const ort::CustomOp op = [] {
    ort::CustomOp o{};
    o.version = ort::kVersion;
    o.GetName = [](const ort::CustomOp*) { return Op::kName; };
    o.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return nullptr; };
    o.GetInputType = [](const ort::CustomOp*, size_t k) { return Op::type(k); };
    o.GetOutputType = [](const ort::CustomOp*, size_t k) { return Outputs<Op>::type(k); };
    o.GetInputTypeCount = [](const ort::CustomOp*) { return Op::kInputs; };
    o.GetOutputTypeCount = [](const ort::CustomOp*) { return Op::kOutputs; };
    o.GetInputCharacteristic = [](const ort::CustomOp*, size_t k) {
      return Op::optional(k) ? ort::Presence::kOptional : ort::Presence::kRequired;
    };
    o.GetOutputCharacteristic = [](const ort::CustomOp*, size_t k) {
      return Outputs<Op>::optional(k) ? ort::Presence::kOptional : ort::Presence::kRequired;
    };
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
    for (const ort::CustomOp* op : {definition<LstmCell<Weights::kFloat>>(), definition<LstmCell<Weights::kInt8>>(),
                                    definition<LstmCell<Weights::kBfloat16>>(), definition<GruCell<Weights::kFloat>>(),
                                    definition<GruCell<Weights::kInt8>>(), definition<GruCell<Weights::kBfloat16>>(),
                                    definition<Gates<Codes::kNone>>(), definition<Gates<Codes::kInt8>>(), definition<Gates<Codes::kUint8>>(),
                                    definition<Gates<Codes::kNone, Codes::kInt8>>(), definition<Gates<Codes::kNone, Codes::kUint8>>(),
                                    definition<Gates<Codes::kInt8, Codes::kInt8>>(), definition<Gates<Codes::kInt8, Codes::kUint8>>(),
                                    definition<Gates<Codes::kUint8, Codes::kInt8>>(), definition<Gates<Codes::kUint8, Codes::kUint8>>(),
                                    definition<TwoCodes<Codes::kInt8>>(), definition<TwoCodes<Codes::kUint8>>(),
                                    definition<Dense>(), definition<Norm>(), definition<Move>(),
                                    definition<ConvGruCell>(), definition<ConvLstmCell<>>(),
                                    definition<ConvLstmCell<Codes::kNone, Codes::kInt8>>(), definition<ConvLstmCell<Codes::kNone, Codes::kUint8>>(),
                                    definition<ConvLstmCell<Codes::kInt8>>(), definition<ConvLstmCell<Codes::kUint8>>(),
                                    definition<ConvLstmCell<Codes::kInt8, Codes::kInt8>>(), definition<ConvLstmCell<Codes::kInt8, Codes::kUint8>>(),
                                    definition<ConvLstmCell<Codes::kUint8, Codes::kInt8>>(), definition<ConvLstmCell<Codes::kUint8, Codes::kUint8>>()})
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

// For the tests and `edgelstm doctor`: which instructions were chosen, and its sigmoid (0) and tanh (1).
extern "C" __attribute__((visibility("default"))) const char* edgelstm_native_isa() { return edgelstm::kernels().name; }
extern "C" __attribute__((visibility("default"))) void edgelstm_native_activate(int kind, const float* x, float* y, int64_t count) {
  edgelstm::kernels().activate(kind, x, y, count);
}
