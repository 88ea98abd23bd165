// Operators for what stands around the cells of a small model, where each standard operator costs as much as its work: FusedDense,
// FusedNorm, FusedMove.
#pragma once

#include <algorithm>
#include <utility>

#include "node.h"
#include "packed.h"

namespace edgelstm {

constexpr size_t kMostAxesAround = 8;

// The shape in a constant input of int64.
inline Shape shape_of(const Info& info, size_t input) {
  Tensor found = info.constant(input);
  if (found.data == nullptr || found.shape.size() != 1) refuse(info.op, "the output's shape has to be a constant");
  const auto* dims = reinterpret_cast<const int64_t*>(found.data);
  Shape shape(dims, dims + found.count());
  if (shape.size() > kMostAxesAround) refuse(info.op, "more than 8 axes");
  for (int64_t d : shape)
    if (d < 0 || d > (int64_t{1} << 40)) refuse(info.op, "a shape of " + text(shape));
  return shape;
}

inline int64_t count_of(const Context& context, size_t input) {
  int64_t dims[kMostAxesAround], count = 1;
  size_t rank = context.shape(input, dims, kMostAxesAround);
  if (rank > kMostAxesAround) refuse(context.op, "more than 8 axes");
  for (size_t k = 0; k < rank; k++) count *= dims[k];
  return count;
}

// y = activation(W x + b) * factor, of the shape that is given. Inputs: x, read as [rows, inputs] whatever its shape; W
// [units, inputs] (transposed: the other way round; missing where it is lent); b [units] (may be missing); factor, as many numbers as y
// (may be missing); y's shape, constant int64. activation: 0 none, 1 sigmoid, 2 tanh, 3 relu.
class Dense {
 public:
  static constexpr const char* kName = "FusedDense";
  static constexpr size_t kInputs = 5, kOutputs = 1;
  static bool optional(size_t k) { return k >= 1 && k <= 3; }
  static int type(size_t k) { return k == 4 ? ort::kInt64 : ort::kFloat; }

  explicit Dense(const Info& info) : shape_(shape_of(info, 4)), threads_(info.integer("threads", 1)) {
    step_ = {};
    bool transposed = info.integer("transposed", 0) != 0;
    Tensor w = info.matrix(1, "lent", ort::kFloat), b = info.constant(2);
    if (w.data == nullptr || w.shape.size() != 2 || w.count() == 0) refuse(kName, "W has to be a constant matrix");
    step_.units = w.shape[transposed ? 1 : 0], step_.inputs = w.shape[transposed ? 0 : 1];
    if (b.data != nullptr && b.count() != step_.units) refuse(kName, "b is " + text(b.shape) + ", expected [" + std::to_string(step_.units) + "]");
    weights_ = pack({w.data, step_.units, step_.inputs, 0, step_.inputs, transposed, {0}}, step_.units, kernels().lanes);
    bias_ = pack_bias({b.data}, step_.units, kernels().lanes);
    step_.panels = weights_->data(), step_.bias = bias_->data();
    step_.activation = static_cast<int>(info.integer("activation", 0));
    factor_ = info.integer("factor", 0) != 0;
    int64_t count = 1;
    for (int64_t d : shape_) count *= d;
    step_.rows = count / step_.units;
    if (count != step_.rows * step_.units) refuse(kName, "y is " + text(shape_) + ", W has " + std::to_string(step_.units) + " rows");
  }

  void run(const Context& context) const {
    DenseStep s = step_;
    if (count_of(context, 0) != s.rows * s.inputs)
      refuse(kName, "x has " + std::to_string(count_of(context, 0)) + " numbers, expected " + std::to_string(s.rows * s.inputs));
    if (factor_ && count_of(context, 3) != s.rows * s.units) refuse(kName, "the factor needs as many numbers as y");
    s.y = context.output(0, shape_.data(), shape_.size());
    s.x = context.data(context.value(0));
    if (factor_) s.factor = context.data(context.value(3));
    int64_t panels = (s.units + kernels().lanes - 1) / kernels().lanes;
    bool shared = threads_ > 1 && s.rows * s.inputs * s.units > (1 << 16);
    context.share(panels, shared ? threads_ : 1, [&s](int64_t a, int64_t b) { kernels().dense(s, a, b); });
  }

 private:
  DenseStep step_;
  Shape shape_;
  Shared weights_, bias_;
  int64_t threads_;
  bool factor_;
};

// (x - mean) / sqrt(variance + epsilon) * gain + bias over the last axis. Inputs: x, read as [rows, size]; gain and bias [size],
// constants; y's shape, constant int64.
class Norm {
 public:
  static constexpr const char* kName = "FusedNorm";
  static constexpr size_t kInputs = 4, kOutputs = 1;
  static bool optional(size_t) { return false; }
  static int type(size_t k) { return k == 3 ? ort::kInt64 : ort::kFloat; }

  explicit Norm(const Info& info) : shape_(shape_of(info, 3)) {
    step_ = {};
    Tensor gain = info.constant(1), bias = info.constant(2);
    if (gain.data == nullptr || bias.data == nullptr || gain.count() != bias.count() || gain.count() == 0)
      refuse(kName, "gain and bias have to be constants of one size");
    gain_.assign(gain.data, gain.data + gain.count()), bias_.assign(bias.data, bias.data + bias.count());
    step_.size = gain.count(), step_.gain = gain_.data(), step_.bias = bias_.data(), step_.epsilon = info.real("epsilon", 0);
    int64_t count = 1;
    for (int64_t d : shape_) count *= d;
    step_.rows = count / step_.size;
    if (count != step_.rows * step_.size) refuse(kName, "y is " + text(shape_) + ", gain has " + std::to_string(step_.size) + " numbers");
  }

  void run(const Context& context) const {
    NormStep s = step_;
    if (count_of(context, 0) != s.rows * s.size) refuse(kName, "x and y need as many numbers");
    s.y = context.output(0, shape_.data(), shape_.size());
    s.x = context.data(context.value(0));
    kernels().norm(s);
  }

 private:
  NormStep step_;
  Shape shape_;
  std::vector<float> gain_, bias_;
};

// Values whose numbers are those of others in another order: what slices, transposes and concatenations of small tensors come to.
// Inputs: a plan, then up to 8 tensors of any shape. The plan, constant int64: how many outputs; for each its rank and dimensions;
// then for each number of each output, in order, source * 2^32 + place.
class Move {
 public:
  static constexpr const char* kName = "FusedMove";
  static constexpr size_t kMost = 8, kInputs = 1 + kMost, kOutputs = kMost;
  static bool optional(size_t k) { return k >= 2; }
  static int type(size_t k) { return k == 0 ? ort::kInt64 : ort::kFloat; }

  explicit Move(const Info& info) {
    Tensor plan = info.constant(0);
    if (plan.data == nullptr) refuse(kName, "the plan has to be a constant");
    const auto* next = reinterpret_cast<const int64_t*>(plan.data);
    const int64_t* end = next + plan.count();
    auto take = [&] {
      if (next == end) refuse(kName, "the plan is cut short");
      return *next++;
    };
    int64_t outputs = take();
    if (outputs < 1 || outputs > static_cast<int64_t>(kMost)) refuse(kName, "1 to 8 outputs");
    for (int64_t k = 0; k < outputs; k++) {
      int64_t rank = take();
      if (rank < 0 || rank > static_cast<int64_t>(kMostAxesAround)) refuse(kName, "more than 8 axes");
      Shape shape;
      for (int64_t j = 0; j < rank; j++) {
        shape.push_back(take());
        if (shape.back() < 0 || shape.back() > end - next) refuse(kName, "a shape that is not in the plan");
      }
      outputs_.push_back(shape);
    }
    for (int64_t k = 0; k < outputs; k++) {
      int64_t count = 1;
      for (int64_t d : outputs_[k]) {
        count *= d;
        if (count > end - next) refuse(kName, "the plan is cut short");
      }
      std::vector<std::vector<std::pair<int64_t, int64_t>>> pairs(kMost);  // by source: (to, from)
      for (int64_t to = 0; to < count; to++) {
        int64_t code = take(), source = code >> 32;
        if (code < 0 || source >= static_cast<int64_t>(kMost)) refuse(kName, "a source that is not there");
        pairs[source].push_back({to, code & 0xffffffff});
      }
      for (size_t source = 0; source < kMost; source++) runs(pairs[source], source, k);
    }
    if (next != end) refuse(kName, "the plan is too long");
  }

  void run(const Context& context) const {
    const float* from[kMost] = {};
    for (size_t source = 0; source < kMost; source++) {
      if (least_[source] == 0) continue;
      if (count_of(context, 1 + source) < least_[source]) refuse(kName, "a source is smaller than the plan says");
      from[source] = context.data(context.value(1 + source));
    }
    float* to[kMost];
    for (size_t k = 0; k < outputs_.size(); k++) to[k] = context.output(k, outputs_[k].data(), outputs_[k].size());
    for (const Run& r : runs_) {
      const float* a = from[r.source] + r.from;
      float* b = to[r.output] + r.to;
      for (int64_t k = 0; k < r.count; k++) b[k * r.to_step] = a[k * r.from_step];
    }
  }

 private:
  // So many numbers at even distances.
  struct Run {
    size_t source, output;
    int64_t from, from_step, to, to_step, count;
  };

  void runs(const std::vector<std::pair<int64_t, int64_t>>& pairs, size_t source, size_t output) {
    for (size_t k = 0; k < pairs.size();) {
      Run r{source, output, pairs[k].second, 1, pairs[k].first, 1, 1};
      if (k + 1 < pairs.size()) r.from_step = pairs[k + 1].second - r.from, r.to_step = pairs[k + 1].first - r.to;
      while (k + r.count < pairs.size() && pairs[k + r.count].second == r.from + r.count * r.from_step &&
             pairs[k + r.count].first == r.to + r.count * r.to_step)
        r.count++;
      for (int64_t j = 0; j < r.count; j++) least_[source] = std::max(least_[source], pairs[k + j].second + 1);
      runs_.push_back(r);
      k += r.count;
    }
  }

  std::vector<Shape> outputs_;
  std::vector<Run> runs_;
  int64_t least_[kMost] = {};
};

}  // namespace edgelstm
