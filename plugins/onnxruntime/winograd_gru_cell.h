// FusedConvGRUCell: a ConvGRU's step whose convolutions are 3x3, by Winograd's algorithm (winograd.h).
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "winograd_cell.h"

namespace edgelstm {

// h' of one ConvGRU layer on maps. Inputs: x [N, I, H, W], h [N, units, H, W], W [3 units, I * 9], R [3 units, units * 9]: kernels of 3x3
// row by row, padded with zeros to the size of the maps (missing where they are lent), b [4 units]: of z, r, n over x, n over h (may be
// missing). Gates z, r, n, h' = (1 - z) n + z h; linear_before_reset as in ONNX's GRU.
class ConvGruCell {
 public:
  static constexpr const char* kName = "FusedConvGRUCell";
  static constexpr size_t kInputs = 5, kOutputs = 1;
  static bool optional(size_t k) { return k >= 2; }
  static int type(size_t) { return ort::kFloat; }

  explicit ConvGruCell(const Info& info) : threads_(info.integer("threads", 1)) {
    step_ = {};
    ConvStep& m = step_.maps;
    m.variant = info.variant();
    step_.after = info.integer("linear_before_reset", 0) != 0;
    Tensor w = info.matrix(2, "lent_w", ort::kFloat), r = info.matrix(3, "lent_r", ort::kFloat), b = info.constant(4);
    if (w.data == nullptr || r.data == nullptr || w.shape.size() != 2 || r.shape.size() != 2)
      refuse(kName, "W and R have to be constant matrices");
    int64_t units = r.shape[1] / kTaps, inputs = w.shape[1] / kTaps, lanes = kernels().lanes;
    if (units == 0 || inputs == 0 || r.shape[1] != units * kTaps || w.shape[1] != inputs * kTaps || r.shape[0] != 3 * units || w.shape[0] != 3 * units)
      refuse(kName, "W is " + text(w.shape) + " and R " + text(r.shape) + ", expected [3 units, 9 inputs] and [3 units, 9 units]");
    if (b.data != nullptr && b.count() != 4 * units) refuse(kName, "b is " + text(b.shape) + ", expected [" + std::to_string(4 * units) + "]");
    m.units = m.hidden = units, m.inputs = inputs;
    std::vector<float> bias(4 * units), of_h(3 * units);
    if (b.data != nullptr) bias.assign(b.data, b.data + 4 * units);
    for (int64_t k = 0; k < units; k++) {
      if (step_.after) {
        of_h[2 * units + k] = bias[3 * units + k];
      } else {
        bias[2 * units + k] += bias[3 * units + k];
      }
    }
    const float* weights = r.data;
    x_ = std::make_unique<ConvWeights>(w.data, bias.data(), units, 3, inputs, lanes);
    h_ = std::make_unique<ConvWeights>(weights, of_h.data(), units, step_.after ? 3 : 2, units, lanes);
    step_.x_transformed = x_->transformed.data(), step_.x_direct = x_->direct.data(), step_.x_bias = x_->bias.data();
    step_.h_transformed = h_->transformed.data(), step_.h_direct = h_->direct.data(), step_.h_bias = h_->bias.data();
    limit_.assign(inputs + units + lanes, 0);
    std::copy_n(x_->limit.data(), inputs, limit_.data()), std::copy_n(h_->limit.data(), units, limit_.data() + inputs);
    m.limit = limit_.data();
    if (!step_.after) candidate(weights + 2 * units * units * kTaps, units, lanes);
  }

  void run(const Context& context) const {
    ConvGruStep s = step_;
    ConvStep& m = s.maps;
    int64_t dims[4];
    if (context.shape(0, dims, 4) != 4 || dims[1] != m.inputs)
      refuse(kName, "x has to be [N, " + std::to_string(m.inputs) + ", height, width]");
    m.rows = dims[0], m.height = dims[2], m.width = dims[3];
    m.x = context.data(context.value(0));
    Shape shape{m.rows, m.units, m.height, m.width};
    int64_t found[4];
    size_t rank = context.shape(1, found, 4);
    if (rank != 4 || Shape(found, found + 4) != shape)
      refuse(kName, "h is " + (rank == 4 ? text(Shape(found, found + 4)) : std::to_string(rank) + " axes") + ", expected " + text(shape));
    m.h = s.old = context.data(context.value(1));
    m.h_out = context.output(0, shape.data(), 4);
    int64_t size = m.rows * m.units * m.height * m.width;
    if (size == 0) return;
    m.h_bounds = bounds(m.h_out, size);
    auto first = [&s](int64_t a, int64_t b, float* scratch) { kernels().conv_gru(s, a, b, scratch); };
    if (s.after) return passes_[0].run(context, m, x_->panels, 4, threads_, first);
    Scratch::Loan kept(scratch_, 2 * size);
    s.z = kept.data(), s.reset_h = s.z + size;
    passes_[0].run(context, m, x_->panels, 3, threads_, first);
    m.inputs = 0, m.h = s.reset_h, m.limit = n_->limit.data();
    passes_[1].run(context, m, n_->panels, s.n_width, threads_, [&s](int64_t a, int64_t b, float* scratch) {
      kernels().conv_candidate(s, a, b, scratch);
    });
  }

 private:
  // Weights of n over r * h. There is one gate alone; so several panels of units stand in the gates' place, of which each number that is
  // read is multiplied with all.
  void candidate(const float* r, int64_t units, int64_t lanes) {
    int64_t panels = (units + lanes - 1) / lanes, width = 1, least = panels;
    if (panels > 1) {
      least = (panels + 3) / 4 * 4, width = 4;
      for (int64_t k : {3, 2})
        if ((panels + k - 1) / k * k < least) least = (panels + k - 1) / k * k, width = k;
    }
    int64_t apart = least / width * lanes, columns = units * kTaps;
    std::vector<float> turned(width * apart * columns);
    for (int64_t unit = 0; unit < units; unit++) {
      int64_t panel = unit / lanes, row = panel % width * apart + panel / width * lanes + unit % lanes;
      std::copy_n(r + unit * columns, columns, turned.data() + row * columns);
    }
    n_ = std::make_unique<ConvWeights>(turned.data(), nullptr, apart, width, units, lanes);
    step_.n_width = width;
    step_.n_transformed = n_->transformed.data(), step_.n_direct = n_->direct.data(), step_.n_bias = n_->bias.data();
  }

  ConvGruStep step_;
  std::unique_ptr<ConvWeights> x_, h_, n_;
  std::vector<float> limit_;
  ConvPasses passes_[2];
  mutable Scratch scratch_;
  int64_t threads_;
};

}  // namespace edgelstm
