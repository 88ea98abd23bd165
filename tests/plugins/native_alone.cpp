// The kernels without ONNX Runtime, against the equations in double: for processors that only an emulator stands in for.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels.h"
#include "packed.h"
#include "winograd.h"

using namespace edgelstm;
using Vector = std::vector<float>;

static uint32_t seed = 1;
static float large = 1;
static float draw() { return static_cast<float>((seed = seed * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1.0f; }
static Vector draws(int64_t count) {
  Vector v(count);
  for (float& x : v) x = draw();
  return v;
}
static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
static void expect(bool good, const char* what) {
  if (good) return;
  std::printf("%s differs\n", what);
  std::exit(1);
}
static void close(double a, double b, const char* what) { expect(std::fabs(a - b) <= 3e-5 * (1 + std::fabs(b)), what); }

// A matrix in fewer bits: its elements as they are stored, what a code of each row is worth, and what they are worth in float.
struct Stored {
  std::vector<int8_t> codes;
  std::vector<uint16_t> halves;
  Vector scale;
  const void* data(const Vector& w, Weights kind) const {
    return kind == Weights::kInt8 ? static_cast<const void*>(codes.data()) : kind == Weights::kBfloat16 ? halves.data() : static_cast<const void*>(w.data());
  }
};
static Stored store(Vector& w, int64_t columns, Weights kind) {
  Stored s;
  for (size_t at = 0; at < w.size(); at++) {
    if (at % columns == 0) s.scale.push_back(0.005f * (1.5f + draw()));
    if (kind == Weights::kInt8) {
      s.codes.push_back(static_cast<int8_t>(std::lrint(w[at] * 128 - 0.5f)));  // -128 too
      w[at] = s.codes.back() * s.scale.back();
    } else if (kind == Weights::kBfloat16) {
      uint32_t bits;
      std::memcpy(&bits, &w[at], 4);
      s.halves.push_back(static_cast<uint16_t>(bits >> 16));
      bits &= 0xffff0000u;
      std::memcpy(&w[at], &bits, 4);
    }
  }
  return s;
}
static Shared scales(const Stored& s, const std::vector<int64_t>& gates, int64_t units, int lanes) {
  std::vector<const float*> first;
  for (int64_t row : gates) first.push_back(s.scale.data() + row);
  return pack_bias(first, units, lanes);
}

static void lstm(const Kernels& k, const Dot* dot, int64_t inputs, int64_t units, int64_t rows, Weights kind) {
  int64_t columns = inputs + units;
  Vector w = draws(4 * units * columns);
  Stored stored = store(w, columns, kind);
  Vector b = draws(4 * units), p = draws(3 * units), x = draws(rows * inputs), h = draws(rows * units),
         c = draws(rows * units), h_out(rows * units), c_out(rows * units);
  x[0] *= large;
  std::vector<int64_t> four{0, units, 2 * units, 3 * units};
  auto panels = pack({stored.data(w, kind), 4 * units, columns, 0, columns, false, four, kind, dot}, units, k.lanes);
  auto scale = scales(stored, four, units, k.lanes);
  auto bias = pack_bias({b.data(), b.data() + units, b.data() + 2 * units, b.data() + 3 * units}, units, k.lanes);
  Shared peepholes[3];
  for (int j = 0; j < 3; j++) peepholes[j] = pack_bias({p.data() + j * units}, units, k.lanes);
  LstmStep s{};
  s.panels = panels->data(), s.bias = bias->data(), s.scale = scale->data(), s.weights = kind;
  s.p_i = peepholes[0]->data(), s.p_f = peepholes[1]->data(), s.p_o = peepholes[2]->data();
  s.inputs = inputs, s.width = units, s.units = units, s.rows = rows;
  s.x = x.data(), s.h = h.data(), s.c = c.data(), s.h_out = h_out.data(), s.c_out = c_out.data();
  DotRows of_x, of_h;
  if (dot != nullptr) {
    of_x.encode(*dot, s.x, rows, inputs, 0), of_h.encode(*dot, s.h, rows, units, inputs % 4);
    s.dot = dot, s.x_rows = of_x.get(), s.h_rows = of_h.get();
  }
  k.lstm(s, 0, (units + k.lanes - 1) / k.lanes);
  for (int64_t n = 0; n < rows; n++)
    for (int64_t u = 0; u < units; u++) {
      double z[4], old = c[n * units + u];
      for (int g = 0; g < 4; g++) {
        const float* row = w.data() + (g * units + u) * columns;
        z[g] = b[g * units + u];
        for (int64_t j = 0; j < inputs; j++) z[g] += double(row[j]) * x[n * inputs + j];
        for (int64_t j = 0; j < units; j++) z[g] += double(row[inputs + j]) * h[n * units + j];
      }
      double next = sigmoid(z[1] + p[units + u] * old) * old + sigmoid(z[0] + p[u] * old) * std::tanh(z[2]);
      close(c_out[n * units + u], next, "c of an LSTM");
      close(h_out[n * units + u], sigmoid(z[3] + p[2 * units + u] * next) * std::tanh(next), "h of an LSTM");
    }
}

static void gru(const Kernels& k, const Dot* dot, int64_t inputs, int64_t units, int64_t rows, bool after, Weights kind) {
  Vector w = draws(3 * units * inputs), r = draws(3 * units * units);
  Stored of_w = store(w, inputs, kind), of_r = store(r, units, kind);
  Vector b = draws(4 * units), x = draws(rows * inputs), h = draws(rows * units),
         out(rows * units), scratch(3 * rows * units);
  std::vector<int64_t> three{0, units, 2 * units}, first = three, last{2 * units};
  if (!after) first.pop_back();
  auto x_panels = pack({of_w.data(w, kind), 3 * units, inputs, 0, inputs, false, three, kind, dot}, units, k.lanes);
  auto h_panels = pack({of_r.data(r, kind), 3 * units, units, 0, units, false, first, kind, dot}, units, k.lanes);
  auto n_panels = pack({of_r.data(r, kind), 3 * units, units, 0, units, false, last, kind, dot}, units, k.lanes);
  auto x_scale = scales(of_w, three, units, k.lanes), h_scale = scales(of_r, first, units, k.lanes), n_scale = scales(of_r, last, units, k.lanes);
  auto bias = pack_bias({b.data(), b.data() + units, b.data() + 2 * units, b.data() + 3 * units}, units, k.lanes);
  GruStep s{};
  s.x_panels = x_panels->data(), s.h_panels = h_panels->data(), s.n_panels = n_panels->data(), s.bias = bias->data();
  s.weights = kind, s.x_scale = x_scale->data(), s.h_scale = h_scale->data(), s.n_scale = n_scale->data();
  s.after = after, s.inputs = inputs, s.units = units, s.rows = rows;
  s.x = x.data(), s.h = h.data(), s.h_out = out.data();
  s.z = scratch.data(), s.reset_h = s.z + rows * units, s.n = s.reset_h + rows * units;
  int64_t panels = (units + k.lanes - 1) / k.lanes;
  DotRows of_x, of_h, of_n;
  if (dot != nullptr) {
    of_x.encode(*dot, s.x, rows, inputs, 0), of_h.encode(*dot, s.h, rows, units, 0);
    s.dot = dot, s.x_rows = of_x.get(), s.h_rows = of_h.get();
  }
  k.gru(s, 0, panels);
  if (dot != nullptr && !after) of_n.encode(*dot, s.reset_h, rows, units, 0), s.n_rows = of_n.get();
  if (!after) k.gru_candidate(s, 0, panels);
  for (int64_t n = 0; n < rows; n++) {
    auto product = [&](const Vector& m, const double* v, int64_t count, int64_t row) {
      double sum = 0;
      for (int64_t j = 0; j < count; j++) sum += double(m[row * count + j]) * v[j];
      return sum;
    };
    std::vector<double> xs(x.begin() + n * inputs, x.begin() + (n + 1) * inputs), hs(h.begin() + n * units, h.begin() + (n + 1) * units), rh(units);
    for (int64_t u = 0; u < units; u++)
      rh[u] = hs[u] * sigmoid(product(w, xs.data(), inputs, units + u) + product(r, hs.data(), units, units + u) + b[units + u]);
    for (int64_t u = 0; u < units; u++) {
      double z = sigmoid(product(w, xs.data(), inputs, u) + product(r, hs.data(), units, u) + b[u]);
      double reset = hs[u] == 0 ? 0 : rh[u] / hs[u], old = hs[u];
      double inner = after ? reset * (product(r, hs.data(), units, 2 * units + u) + b[3 * units + u])
                           : product(r, rh.data(), units, 2 * units + u) + b[3 * units + u];
      double fresh = std::tanh(product(w, xs.data(), inputs, 2 * units + u) + b[2 * units + u] + inner);
      close(out[n * units + u], (1 - z) * fresh + z * old, after ? "GRU, reset after" : "GRU, reset before");
    }
  }
}

// A ConvLSTM's step on maps, one tile of which holds what is not to be transformed.
static void conv_lstm(const Kernels& k, int64_t inputs, int64_t units, int64_t height, int64_t width) {
  int64_t rows = 2, channels = inputs + units, size = height * width, across = (width + 3) / 4, down = (height + 3) / 4;
  Vector w = draws(4 * units * channels * kTaps), b = draws(4 * units), x = draws(rows * inputs * size), h = draws(rows * units * size),
         c = draws(rows * units * size), h_out(c.size()), c_out(c.size());
  for (float& v : w) v /= 3;
  x[size / 2] = 1e6f;
  ConvWeights weights(w.data(), b.data(), units, 4, channels, k.lanes);
  ConvStep s{};
  s.transformed = weights.transformed.data(), s.direct = weights.direct.data(), s.bias = weights.bias.data(), s.limit = weights.limit.data();
  s.inputs = inputs, s.hidden = units, s.units = units, s.rows = rows, s.height = height, s.width = width;
  s.x = x.data(), s.h = h.data(), s.c = c.data(), s.h_out = h_out.data(), s.c_out = c_out.data();
  s.across = across, s.down = down, s.lines = rows * down, s.block = 7, s.stride = (channels + 15) / 16 * 16;
  int64_t tiles = s.lines * across, blocks = (tiles + s.block - 1) / s.block;
  Vector patches(blocks * kPoints * s.block * s.stride), scratch(kPoints * (s.block * 4 * k.lanes + channels) + 16);
  std::vector<unsigned char> direct(tiles);
  s.patches = patches.data(), s.direct_tiles = direct.data();
  k.conv_input(s, 0, s.lines * ((inputs + k.lanes - 1) / k.lanes + (units + k.lanes - 1) / k.lanes));
  k.conv_lstm(s, 0, weights.panels * blocks, scratch.data());
  for (int64_t n = 0; n < rows; n++)
    for (int64_t u = 0; u < units; u++)
      for (int64_t at = 0; at < size; at++) {
        double z[4];
        for (int g = 0; g < 4; g++) {
          z[g] = b[g * units + u];
          for (int64_t j = 0; j < channels; j++)
            for (int tap = 0; tap < kTaps; tap++) {
              int64_t y = at / width + tap / 3 - 1, from = at % width + tap % 3 - 1;
              if (y < 0 || y >= height || from < 0 || from >= width) continue;
              const float* map = j < inputs ? &x[(n * inputs + j) * size] : &h[(n * units + j - inputs) * size];
              z[g] += double(w[((g * units + u) * channels + j) * kTaps + tap]) * map[y * width + from];
            }
        }
        int64_t place = (n * units + u) * size + at;
        double next = sigmoid(z[1]) * c[place] + sigmoid(z[0]) * std::tanh(z[2]);
        close(c_out[place], next, "c of a ConvLSTM");
        close(h_out[place], sigmoid(z[3]) * std::tanh(next), "h of a ConvLSTM");
      }
}

int main() {
  const Kernels& k = kPortable;
  for (int64_t units : {1, 4, 13, 37})
    for (int64_t rows : {1, 2, 3, 9})
      for (Weights kind : {Weights::kFloat, Weights::kInt8, Weights::kBfloat16}) {
        const Dot* all[] = {nullptr, &kDotNeon};
        for (const Dot* dot : all) {
          if (dot != nullptr && kind != Weights::kInt8) continue;
          lstm(k, dot, 5, units, rows, kind);
          gru(k, dot, 5, units, rows, true, kind);
          gru(k, dot, 5, units, rows, false, kind);
          if (dot == nullptr) continue;
          large = 300;  // those in float32
          lstm(k, dot, 5, units, rows, kind);
          large = 1;
        }
      }
  for (int64_t units : {3, 8, 13}) conv_lstm(k, 2, units, 5, 11), conv_lstm(k, 5, units, 8, 4);
  double worst = 0;
  for (int kind = 0; kind < 2; kind++)
    for (float x = -30; x < 30; x += 0.0007f) {
      float y;
      k.activate(kind, &x, &y, 1);
      double exact = kind == 0 ? sigmoid(x) : std::tanh(double(x));
      float size = std::fabs(static_cast<float>(exact));
      worst = std::fmax(worst, std::fabs(y - exact) / (std::nextafter(size, 2.0f) - size));
    }
  float nan = std::numeric_limits<float>::quiet_NaN(), y;
  for (int kind = 0; kind < 2; kind++) {
    k.activate(kind, &nan, &y, 1);
    expect(std::isnan(y), "NaN");
  }
  expect(worst <= 3, "sigmoid or tanh");
  std::printf("%s and %s good, %.2f ulp\n", k.name, kDotNeon.name, worst);
}
