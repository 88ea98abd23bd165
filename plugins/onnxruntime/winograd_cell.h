// FusedConvLSTMCell: a ConvLSTM's step whose convolution is 3x3, by Winograd's algorithm (winograd.h).
#pragma once

#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "gates.h"
#include "look.h"
#include "node.h"
#include "sharing.h"
#include "winograd.h"

namespace edgelstm {

// Memory that steps need while they run, kept from one to the next.
class Scratch {
 public:
  class Loan {
   public:
    Loan(Scratch& from, size_t count) : from_(from), memory_(from.take(count)) {}
    ~Loan() { from_.give(std::move(memory_)); }
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    float* data() const { return memory_.floats->data(); }

   private:
    friend class Scratch;
    Scratch& from_;
    struct Memory {
      std::unique_ptr<Floats> floats;
      size_t count = 0;
    } memory_;
  };

 private:
  Loan::Memory take(size_t count) {
    std::unique_lock<std::mutex> guard(lock_);
    for (auto& one : free_)
      if (one.count >= count) {
        Loan::Memory found = std::move(one);
        one = std::move(free_.back());
        free_.pop_back();
        return found;
      }
    if (!free_.empty()) free_.pop_back();  // too small: in its place comes a larger one
    guard.unlock();
    Loan::Memory made;
    made.floats = std::make_unique<Floats>(count), made.count = count;
    return made;
  }
  void give(Loan::Memory memory) noexcept {
    try {
      std::lock_guard<std::mutex> guard(lock_);
      free_.push_back(std::move(memory));
    } catch (const std::bad_alloc&) {  // then it is freed
    }
  }

  std::mutex lock_;
  std::vector<Loan::Memory> free_;
};

// How a convolution's step goes through its maps: some rows of tiles after the other, their input transform, then their products and
// what is made of them, each divided among the threads. A thread gets a stretch of panels, whose weights its caches keep.
class ConvPasses {
 public:
  // products(first, last, scratch) of panels * blocks, with scratch for a block's products, [point][tile][gates][lanes], and a patch,
  // [inputs + hidden][36].
  template <class Products>
  void run(const Context& context, ConvStep& s, int64_t panels, int64_t gates, int64_t threads, const Products& work) const {
    const Kernels& k = kernels();
    s.across = (s.width + kTile - 1) / kTile, s.down = (s.height + kTile - 1) / kTile;
    int64_t channels = s.inputs + s.hidden;
    int64_t lines = s.rows * s.down, together = kTogether / s.across > 1 ? kTogether / s.across : 1, passes = (lines + together - 1) / together;
    together = (lines + passes - 1) / passes;
    int64_t tiles = together * s.across, blocks = (tiles + kBlock - 1) / kBlock;
    int64_t groups = (s.inputs + k.lanes - 1) / k.lanes + (s.hidden + k.lanes - 1) / k.lanes;
    bool shared = threads > 1 && tiles * kPoints * channels * s.units * gates > kWorthSharing;
    while (shared && panels * blocks < threads && tiles > blocks * kLeast) blocks++;
    s.block = (tiles + blocks - 1) / blocks, s.stride = (channels + 15) / 16 * 16;
    Scratch::Loan patches(scratch_[0], blocks * kPoints * s.block * s.stride + (tiles + 3) / 4);
    s.patches = patches.data();
    s.direct_tiles = reinterpret_cast<unsigned char*>(s.patches + blocks * kPoints * s.block * s.stride);
    size_t products = kPoints * (s.block * gates * k.lanes + channels);
    std::atomic<bool> short_of_memory{false};
    for (s.first_line = 0; s.first_line < lines; s.first_line += together) {
      s.lines = lines - s.first_line < together ? lines - s.first_line : together;
      memset(s.direct_tiles, 0, tiles);
      divided(context, sharing_[0], s.lines * groups, shared ? threads : 1, s.rows, [&](int64_t a, int64_t b) { k.conv_input(s, a, b); });
      divided(context, sharing_[1], panels * ((s.lines * s.across + s.block - 1) / s.block), shared ? threads : 1, s.rows, [&](int64_t a, int64_t b) {
        try {  // nothing may leave a thread of ONNX Runtime's
          Scratch::Loan loan(scratch_[1], products);
          work(a, b, loan.data());
        } catch (const std::bad_alloc&) {
          short_of_memory = true;
        }
      });
    }
    if (short_of_memory) throw std::bad_alloc();
  }

 private:
  static constexpr int64_t kTogether = 128, kBlock = 30, kLeast = 6;  // tiles: of one pass, of one product at most, and at least
  static constexpr int64_t kWorthSharing = 1 << 17;                   // multiplications

  template <class Work>
  static void divided(const Context& context, Sharing& sharing, int64_t count, int64_t threads, int64_t rows, const Work& work) {
    if (threads < 2 || count < 2) return work(0, count);
    // Pieces are of an even number there, and here of any.
    sharing.run(context, 2 * count, threads, rows, [&work](int64_t a, int64_t b) { work(a / 2, b / 2); });
  }

  mutable Scratch scratch_[2];
  mutable Sharing sharing_[2];
};

template <Codes kIn, Codes kOut>
constexpr const char* conv_lstm_name() {
  constexpr const char* names[3][3] = {
      {"FusedConvLSTMCell", "FusedConvLSTMCellQuantizeLinearI8", "FusedConvLSTMCellQuantizeLinearU8"},
      {"FusedConvLSTMCellI8", "FusedConvLSTMCellI8QuantizeLinearI8", "FusedConvLSTMCellI8QuantizeLinearU8"},
      {"FusedConvLSTMCellU8", "FusedConvLSTMCellU8QuantizeLinearI8", "FusedConvLSTMCellU8QuantizeLinearU8"},
  };
  return names[static_cast<int>(kIn)][static_cast<int>(kOut)];
}

// h', c' of one ConvLSTM layer on maps. Inputs: x [N, I, H, W], h [N, R, H, W] (missing with recurrent 0: all of it is x), c [N, units, H, W], W [gates * units, (I + R) * 9]: a
// kernel of 3x3 row by row, over x, then h, padded with zeros to the size of the maps (missing where it is lent); b [gates * units]
// (may be missing), p_i, p_f, p_o: constants, one number, [units], or [units, H, W]. Gates i, f, g, o; i, g, o if coupled. Then what
// gates read in place of pre-activations z, if not them: codes q = round(z), clipped to low..high, worth (q - zero) * scale: a constant
// of scales [gates], zeros [gates], low, high (may be missing; attribute rounded).
// I8 and U8: x and h are codes, worth code - zero, an attribute. QuantizeLinear: as FusedGates..QuantizeLinear (gates.h), with
// constants of one number or one a channel.
template <Codes kIn = Codes::kNone, Codes kOut = Codes::kNone>
class ConvLstmCell {
 public:
  static constexpr const char* kName = conv_lstm_name<kIn, kOut>();
  static constexpr bool kCoded = kIn != Codes::kNone, kQuantises = kOut != Codes::kNone;
  static constexpr size_t kFactor = 9, kInputs = kFactor + (kQuantises ? 3 : 0), kOutputs = kQuantises ? 3 : 2;
  static bool optional(size_t k) { return k == 1 || (k >= 3 && k != kFactor + 1); }
  static int type(size_t k) { return k < 2 ? element(kIn) : k == kFactor + 2 ? element(kOut) : ort::kFloat; }
  static int output_type(size_t k) { return k == 2 ? element(kOut) : ort::kFloat; }
  static bool output_optional(size_t k) { return kQuantises && k == 0; }

  explicit ConvLstmCell(const Info& info) : threads_(info.integer("threads", 1)), recurrent_(info.integer("recurrent", 1) != 0) {
    step_ = {};
    step_.read = kIn, step_.made = kOut, step_.zero = static_cast<float>(info.integer("zero", 0));
    step_.variant = info.variant();
    int64_t gates = step_.variant.gates();
    Tensor w = info.matrix(3, "lent", ort::kFloat), b = info.constant(4);
    if (w.data == nullptr || w.shape.size() != 2) refuse(kName, "W has to be a constant matrix");
    step_.units = w.shape[0] / gates, channels_ = w.shape[1] / kTaps;
    if (step_.units * gates != w.shape[0] || channels_ * kTaps != w.shape[1] || w.count() == 0)
      refuse(kName, "W is " + text(w.shape) + ", expected rows for " + std::to_string(gates) + " gates and 9 columns for each channel");
    if (b.data != nullptr && b.count() != w.shape[0]) refuse(kName, "b is " + text(b.shape) + ", expected [" + std::to_string(w.shape[0]) + "]");
    weights_ = std::make_unique<ConvWeights>(w.data, b.data, step_.units, gates, channels_, kernels().lanes, kCoded);
    for (int64_t k = 0; kCoded && k < channels_; k++)
      if (weights_->limit.data()[k] < 0) refuse(kName, "weights that multiply codes have to be finite, and below 1e24");
    step_.transformed = weights_->transformed.data(), step_.direct = weights_->direct.data();
    step_.bias = weights_->bias.data(), step_.limit = weights_->limit.data();
    for (size_t k = 0; info.integer("peephole", 0) && k < 3; k++) {
      if (k == 1 && step_.variant.coupled) continue;
      Tensor p = info.constant(5 + k);
      if (p.data == nullptr) refuse(kName, "peepholes have to be constants");
      peephole_[k].assign(p.data, p.data + p.count());
      step_.peephole[k] = peephole_[k].data();
    }
    if (info.integer("rounded", 0)) {
      Tensor codes = info.constant(8);
      if (codes.data == nullptr || codes.count() != 2 * gates + 2) refuse(kName, "the gates' codes have to be a constant of 2 numbers for each gate and 2");
      for (int64_t g = 0; g < gates; g++) gate_codes_.scale[g] = codes.data[g], gate_codes_.zero[g] = codes.data[gates + g];
      gate_codes_.low = codes.data[2 * gates], gate_codes_.high = codes.data[2 * gates + 1];
      rounded_ = true;
    }
    if constexpr (kQuantises) {
      Tensor scale = info.constant(kFactor + 1), zero = info.constant(kFactor + 2), factor = info.constant(kFactor);
      if (info.integer("factor", 0) == 0) factor = {};
      int64_t units = step_.units, lanes = kernels().lanes;
      auto fits = [units](const Tensor& t) { return t.data == nullptr || t.count() == 1 || t.count() == units; };
      size_t rank = factor.shape.size();
      if (factor.count() > 1 && (rank < 3 || factor.shape[rank - 3] != units)) refuse(kName, "the factor is " + text(factor.shape) + ", expected one number or one a channel");
      if (scale.data == nullptr || !fits(scale) || !fits(zero) || !fits(factor))
        refuse(kName, "the codes' scale and zero point have to be constants, one number or one a channel");
      coding_ = std::make_unique<Floats>(weights_->panels * 3 * lanes);
      for (int64_t k = 0; k < weights_->panels * lanes; k++) {
        int64_t unit = k < units ? k : 0;
        auto of = [unit](const Tensor& t) { return t.count() == 1 ? 0 : unit; };
        float* to = coding_->data() + k / lanes * 3 * lanes + k % lanes;
        to[0] = factor.data == nullptr ? 1 : factor.data[of(factor)];
        to[lanes] = scale.data[of(scale)];
        to[2 * lanes] = zero.data == nullptr ? 0 : code(zero.data, of(zero), kOut);
      }
      step_.coding = coding_->data();
    }
  }

  void run(const Context& context) const {
    ConvStep s = step_;
    int64_t dims[4];
    if (context.shape(0, dims, 4) != 4) refuse(kName, "x has to be [N, inputs, height, width]");
    s.rows = dims[0], s.inputs = dims[1], s.height = dims[2], s.width = dims[3], s.hidden = channels_ - s.inputs;
    if (s.inputs < 1 || (recurrent_ ? s.hidden < 1 : s.hidden != 0))
      refuse(kName, "x is " + text(Shape(dims, dims + 4)) + ", W takes " + std::to_string(channels_) + " channels");
    s.gate_codes = rounded_ ? &gate_codes_ : nullptr;
    s.x = context.data(context.value(0));
    s.h = recurrent_ ? maps(context, 1, {s.rows, s.hidden, s.height, s.width}, "h") : context.data(context.value(0));
    Shape out{s.rows, s.units, s.height, s.width};
    s.c = maps(context, 2, out, "c");
    int64_t size = s.height * s.width;
    for (int k = 0; k < 3; k++) {
      int64_t count = static_cast<int64_t>(peephole_[k].size());
      if (step_.peephole[k] == nullptr || count == 1) continue;
      if (count != s.units && count != s.units * size)
        refuse(kName, "a peephole has " + std::to_string(count) + " numbers, which does not go with c, " + text(out));
      bool whole = count != s.units;
      s.p_channel[k] = whole ? size : 1, s.p_place[k] = whole ? 1 : 0;
    }
    s.h_out = context.output(0, out.data(), 4), s.c_out = context.output(1, out.data(), 4);
    if constexpr (kQuantises) s.codes_out = context.output(2, out.data(), 4);
    if (s.rows * size == 0) return;
    s.h_bounds = bounds(s.h_out, s.rows * s.units * size), s.c_bounds = bounds(s.c_out, s.rows * s.units * size);
    passes_.run(context, s, weights_->panels, s.variant.gates(), threads_, [&s](int64_t a, int64_t b, float* scratch) {
      kernels().conv_lstm(s, a, b, scratch);
    });
  }

 private:
  static const float* maps(const Context& context, size_t input, const Shape& expected, const char* what) {
    int64_t dims[8];
    size_t rank = context.shape(input, dims, 8);
    Shape found(dims, dims + (rank <= 8 ? rank : 0));
    if (found != expected) refuse(kName, std::string(what) + " is " + text(found) + ", expected " + text(expected));
    return context.data(context.value(input));
  }

  ConvStep step_;
  std::unique_ptr<ConvWeights> weights_;
  std::vector<float> peephole_[3];
  GateCodes gate_codes_{};
  std::unique_ptr<Floats> coding_;
  ConvPasses passes_;
  int64_t threads_, channels_;
  bool recurrent_, rounded_ = false;
};

}  // namespace edgelstm
