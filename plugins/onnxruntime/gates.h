// The operators for gates by themselves: FusedGates, after anything, and FusedGatesI8, FusedGatesU8, which read codes. Each has
// two relatives that store the new h as codes too: FusedGatesQuantizeLinearI8, FusedGatesU8QuantizeLinearU8 and so on. They are
// named after the operator they have in them also because whoever opens a file looks for its name (session.cpp). And
// FusedQuantizeLinearTwiceI8, ..U8: a value in two codes, as products of frames read it.
#pragma once

#include <memory>

#include "look.h"
#include "node.h"

namespace edgelstm {

template <Codes kIn, Codes kOut>
constexpr const char* gates_name() {
  constexpr const char* names[3][3] = {
      {"FusedGates", "FusedGatesQuantizeLinearI8", "FusedGatesQuantizeLinearU8"},
      {"FusedGatesI8", "FusedGatesI8QuantizeLinearI8", "FusedGatesI8QuantizeLinearU8"},
      {"FusedGatesU8", "FusedGatesU8QuantizeLinearI8", "FusedGatesU8QuantizeLinearU8"},
  };
  return names[static_cast<int>(kIn)][static_cast<int>(kOut)];
}

constexpr int element(Codes codes) { return codes == Codes::kInt8 ? ort::kInt8 : codes == Codes::kUint8 ? ort::kUint8 : ort::kFloat; }

constexpr size_t kMostAxes = 8;

// Of a tensor of codes.
inline float code(const float* codes, int64_t k, Codes kind) {
  return kind == Codes::kInt8 ? reinterpret_cast<const int8_t*>(codes)[k] : reinterpret_cast<const uint8_t*>(codes)[k];
}

// An input that is broadcast to [C, *spatial], which is `target`, and how far apart its values lie.
inline const float* spread(const Context& context, size_t input, const char* what, const int64_t* target, size_t rank, Steps* steps) {
  int64_t all[kMostAxes], *dims = all;
  size_t axes = context.shape(input, all, kMostAxes);
  for (; axes > rank && axes <= kMostAxes && *dims == 1; axes--) dims++;
  bool whole = true, one = true, fits = axes <= rank;
  for (size_t k = 0; fits && k < rank; k++) {
    int64_t d = k + axes < rank ? 1 : dims[k + axes - rank];
    fits = d == 1 || d == target[k];
    if (k == 0) continue;
    if (d != target[k]) whole = false;
    if (d != 1) one = false;
  }
  if (!fits || !(whole || one)) {
    std::string found = axes <= kMostAxes ? text(Shape(dims, dims + axes)) : "of more than 8 axes";
    refuse(context.op, std::string(what) + " is " + found + ", which does not go with " + text(Shape(target, target + rank)));
  }
  int64_t size = 1;
  for (size_t k = 1; k < rank; k++) size *= target[k];
  bool channels = axes == rank && axes > 0 && dims[0] != 1;
  steps->place = one && !(whole && size > 1) ? 0 : 1;
  steps->channel = channels ? (steps->place ? size : 1) : 0;
  return context.data(context.value(input));
}

// h, c_out from z [N, gates * C, *spatial] and c [N, C, *spatial]; p_i, p_f, p_o broadcastable to [C, *spatial].
// I8 and U8 take codes, worth (z - zero_point) * scale: scale and zero_point [gates], constants, after the peepholes.
// QuantizeLinear: three inputs more and one output, QuantizeLinear(h * factor, scale, zero_point) along axis 1. factor broadcastable
// to [C, *spatial], may be missing; scale and zero_point [C] or one number, constants; zero_point may be missing: 0. Then h may be
// missing among the outputs.
template <Codes kIn, Codes kOut = Codes::kNone>
class Gates {
 public:
  static constexpr const char* kName = gates_name<kIn, kOut>();
  static constexpr bool kCoded = kIn != Codes::kNone, kQuantises = kOut != Codes::kNone;
  static constexpr size_t kFactor = kCoded ? 7 : 5, kInputs = kFactor + (kQuantises ? 3 : 0), kOutputs = kQuantises ? 3 : 2;
  static bool optional(size_t k) { return (k >= 2 && k < 5) || k == kFactor || k == kFactor + 2; }
  static int type(size_t k) { return kCoded && (k == 0 || k == 6) ? element(kIn) : k == kFactor + 2 ? element(kOut) : ort::kFloat; }
  static int output_type(size_t k) { return k == 2 ? element(kOut) : ort::kFloat; }
  static bool output_optional(size_t k) { return kQuantises && k == 0; }

  explicit Gates(const Info& info) : variant_(info.variant()), threads_(info.integer("threads", 1)) {
    peephole_ = info.integer("peephole", 0) != 0;
    factor_ = info.integer("factor", 0) != 0;
    if constexpr (kCoded) {
      Tensor scale = info.constant(5), zero = info.constant(6);
      int64_t gates = variant_.gates();
      if (scale.data == nullptr || zero.data == nullptr || scale.count() != gates || zero.count() != gates)
        refuse(kName, "scale and zero point have to be constants, one for each gate");
      for (int64_t g = 0; g < gates; g++) scale_[g] = scale.data[g], zero_[g] = code(zero.data, g, kIn);
    }
    if constexpr (kQuantises) {
      Tensor scale = info.constant(kFactor + 1), zero = info.constant(kFactor + 2);
      if (scale.data == nullptr || scale.count() < 1 || (zero.data != nullptr && zero.count() != scale.count()))
        refuse(kName, "the codes' scale and zero point have to be constants, as many of one as of the other");
      codes_ = scale.count();
      code_scale_.reset(new float[2 * codes_]);
      for (int64_t k = 0; k < codes_; k++) {
        code_scale_[k] = scale.data[k];
        code_scale_[codes_ + k] = zero.data == nullptr ? 0 : code(zero.data, k, kOut);
      }
    }
  }

  void run(const Context& context) const {
    int64_t z[kMostAxes], c[kMostAxes];
    size_t rank = context.shape(1, c, kMostAxes);
    if (rank < 2 || rank > kMostAxes || context.shape(0, z, kMostAxes) != rank) refuse(kName, "z and c need as many axes, 2 to 8");
    GatesStep s{};
    s.variant = variant_, s.codes = kIn, s.made = kOut;
    for (int g = 0; g < 4; g++) s.scale[g] = scale_[g], s.zero[g] = zero_[g];
    s.rows = c[0], s.channels = c[1], s.size = 1;
    bool fits = z[0] == c[0] && z[1] == variant_.gates() * c[1];
    for (size_t k = 2; k < rank; k++) s.size *= c[k], fits = fits && z[k] == c[k];
    if (!fits) refuse(kName, "z is " + text(Shape(z, z + rank)) + " and c " + text(Shape(c, c + rank)));
    if (codes_ != 1 && kQuantises && codes_ != s.channels)
      refuse(kName, std::to_string(codes_) + " scales of codes, expected one or " + std::to_string(s.channels));
    s.h_out = context.output(0, c, rank), s.c_out = context.output(1, c, rank);
    s.z = context.data(context.value(0)), s.c = context.data(context.value(1));
    const float** p[] = {&s.p_i, &s.p_f, &s.p_o};
    for (int k = 0; peephole_ && k < 3; k++)
      if (k != 1 || !variant_.coupled) *p[k] = spread(context, 2 + k, "a peephole", c + 1, rank - 1, &s.p_steps[k]);
    if constexpr (kQuantises) {
      s.codes_out = context.output(2, c, rank);
      if (factor_) s.h_factor = spread(context, kFactor, "the factor", c + 1, rank - 1, &s.factor_steps);
      s.h_scale = code_scale_.get(), s.h_zero = s.h_scale + codes_;
      s.code_steps = {codes_ > 1 ? 1 : 0, 0};
    }
    if (s.size == 1) {  // the channels take the maps' place: they lie side by side
      s.size = s.channels, s.channels = 1;
      for (Steps* steps : {s.p_steps, s.p_steps + 1, s.p_steps + 2, &s.factor_steps, &s.code_steps}) *steps = {0, steps->channel};
    }
    int64_t maps = s.rows * s.channels;
    bool shared = threads_ > 1 && maps * s.size > kWorthSharingGates;
    int64_t threads = shared ? threads_ : 1, size = s.size;
    const Piece* looked[] = {piece(s.h_out, maps * size), piece(s.c_out, maps * size)};
    if (looked[0] == nullptr && looked[1] == nullptr)
      return context.share(maps, threads, [&s](int64_t a, int64_t b) { kernels().gates(s, a, b); });
    // So few maps at once that they are still in the nearest caches when they are looked at.
    int64_t some = size > 0 && size < kNear ? kNear / size : 1;
    context.share(maps, threads, [&](int64_t a, int64_t b) {
      for (int64_t first = a; first < b; first += some) {
        int64_t last = first + some < b ? first + some : b;
        kernels().gates(s, first, last);
        for (const Piece* each : looked)
          if (each != nullptr) each->look(first * size, last * size);
      }
    });
  }

 private:
  static constexpr int64_t kWorthSharingGates = 1 << 13;  // places: some 5 us of one core
  static constexpr int64_t kNear = 2048;  // numbers that a core's nearest caches hold together with what they are made of

  Variant variant_;
  int64_t threads_, codes_ = 1;
  bool peephole_, factor_;
  float scale_[4] = {}, zero_[4] = {};
  std::unique_ptr<float[]> code_scale_;  // scales, then zero points
};

// A value in two codes, worth half of one each, or the second what the first leaves. Inputs: x; factor, broadcastable to x's axes but
// the first (may be missing); the codes' scale; what a code is worth; what that is multiplied by, as the factor (may be missing); the
// further codes' scale; the zero point of all. Scales and zero point: constants, one number. codes: QuantizeLinear(x * factor, scale),
// rest: QuantizeLinear((x - DequantizeLinear(codes, worth) * worth_factor) * factor, rest_scale). rows: rest is not an output but lies
// behind the codes along the first axis.
template <Codes kOut>
class TwoCodes {
 public:
  static constexpr const char* kName = kOut == Codes::kInt8 ? "FusedQuantizeLinearTwiceI8" : "FusedQuantizeLinearTwiceU8";
  static constexpr size_t kInputs = 7, kOutputs = 2;
  static bool optional(size_t k) { return k == 1 || k == 4; }
  static int type(size_t k) { return k == 6 ? element(kOut) : ort::kFloat; }
  static int output_type(size_t) { return element(kOut); }
  static bool output_optional(size_t k) { return k == 1; }

  explicit TwoCodes(const Info& info) : threads_(info.integer("threads", 1)) {
    rows_ = info.integer("rows", 0) != 0;
    factor_ = info.integer("factor", 0) != 0, worth_factor_ = info.integer("worth_factor", 0) != 0;
    auto one = [&](size_t input) {
      Tensor found = info.constant(input);
      if (found.data == nullptr || found.count() != 1) refuse(kName, "scales and the zero point have to be constants, one number");
      return found.data;
    };
    step_ = {};
    step_.made = kOut;
    step_.scale = *one(2), step_.worth = *one(3), step_.rest_scale = *one(5), step_.zero = code(one(6), 0, kOut);
  }

  void run(const Context& context) const {
    int64_t x[kMostAxes], out[kMostAxes];
    size_t rank = context.shape(0, x, kMostAxes);
    if (rank < 2 || rank > kMostAxes) refuse(kName, "x needs 2 to 8 axes");
    TwoCodesStep s = step_;
    s.channels = x[1], s.size = 1;
    for (size_t k = 2; k < rank; k++) s.size *= x[k];
    int64_t maps = x[0] * s.channels;
    if (factor_) s.factor = spread(context, 1, "the factor", x + 1, rank - 1, &s.factor_steps);
    if (worth_factor_) s.worth_factor = spread(context, 4, "what codes are multiplied by", x + 1, rank - 1, &s.worth_steps);
    if (s.size == 1) {  // the channels take the maps' place: they lie side by side
      s.size = s.channels, maps = x[0], s.channels = 1;
      for (Steps* steps : {&s.factor_steps, &s.worth_steps}) *steps = {0, steps->channel};
    }
    for (size_t k = 0; k < rank; k++) out[k] = k == 0 && rows_ ? 2 * x[k] : x[k];
    s.x = context.data(context.value(0));
    s.codes = context.output(0, out, rank);
    s.rest = rows_ ? static_cast<uint8_t*>(s.codes) + maps * s.size : static_cast<void*>(context.output(1, out, rank));
    if (maps * s.size == 0) return;  // nothing has no address
    if (s.rest == nullptr) refuse(kName, "two outputs, or rows");
    bool shared = threads_ > 1 && maps * s.size > kWorthSharingCodes;
    context.share(maps, shared ? threads_ : 1, [&s](int64_t a, int64_t b) { kernels().two_codes(s, a, b); });
  }

 private:
  static constexpr int64_t kWorthSharingCodes = 1 << 15;  // places: some 5 us of one core
  TwoCodesStep step_;
  int64_t threads_;
  bool rows_, factor_, worth_factor_;
};

}  // namespace edgelstm
