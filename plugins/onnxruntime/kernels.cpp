// The arithmetic, once for all processors: vectors are the compiler's own (GCC, Clang), LANES floats wide.
// Compiled once for each set of instructions, with KERNELS the table's name; nothing here is visible outside but that table,
// and nothing of the standard library's templates is used, which the linker might take from the wrong copy.
#include "kernels.h"
#include "winograd.h"

#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace edgelstm {
namespace {

constexpr int L = LANES;
typedef float vf __attribute__((vector_size(4 * LANES)));
typedef float vfu __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
#define INLINE inline __attribute__((always_inline))

INLINE vf load(const float* p) { return *reinterpret_cast<const vfu*>(p); }
INLINE void store(float* p, vf v) { *reinterpret_cast<vfu*>(p) = v; }
INLINE vf splat(float x) { return x - vf{}; }
INLINE vf load(const float* p, int64_t count) {
  if (count >= L) return load(p);
  vf v{};
  memcpy(&v, p, count * sizeof(float));
  return v;
}
INLINE void store(float* p, vf v, int64_t count) {
  if (count >= L) {
    store(p, v);
  } else {
    memcpy(p, &v, count * sizeof(float));
  }
}
// L codes as floats. GCC 12 makes scalar instructions of a conversion from bytes, so the processors' own stand here.
#if defined(__AVX512F__)
INLINE vf decoded(const int8_t* p) {
  __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return __builtin_convertvector((vi)_mm512_maskz_cvtepi8_epi32(0xffff, codes), vf);
}
INLINE vf decoded(const uint8_t* p) {
  __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return __builtin_convertvector((vi)_mm512_maskz_cvtepu8_epi32(0xffff, codes), vf);
}
#elif defined(__AVX2__)
INLINE vf decoded(const int8_t* p) {
  __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return __builtin_convertvector((vi)_mm256_cvtepi8_epi32(codes), vf);
}
INLINE vf decoded(const uint8_t* p) {
  __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return __builtin_convertvector((vi)_mm256_cvtepu8_epi32(codes), vf);
}
#else
template <class Code>
INLINE vf decoded(const Code* p) {
  typedef Code vc __attribute__((vector_size(LANES)));
  vc v;
  memcpy(&v, p, L);
  return __builtin_convertvector(v, vf);
}
#endif
template <class Code>
INLINE vf decode(const Code* p, int64_t count) {
  if (count >= L) return decoded(p);
  Code some[L] = {};
  memcpy(some, p, count);
  return decoded(some);
}
// G vectors of weights that lie side by side, as floats.
template <int G>
INLINE void widen(const float* p, vf (&w)[G]) {
  for (int g = 0; g < G; g++) w[g] = load(p + g * L);
}
template <int G>
INLINE void widen(const uint16_t* p, vf (&w)[G]) {  // bfloat16: the upper half of a float
  for (int g = 0; g < G; g++) {
#if defined(__AVX512F__)
    w[g] = (vf)((vi)_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + g * L))) << 16);
#elif defined(__AVX2__)
    w[g] = (vf)((vi)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + g * L))) << 16);
#else
    typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
    typedef uint32_t vw __attribute__((vector_size(4 * LANES)));
    vh half;
    memcpy(&half, p + g * L, sizeof half);
    w[g] = (vf)(__builtin_convertvector(half, vw) << 16);
#endif
  }
}
template <int G>
INLINE void widen(const int8_t* p, vf (&w)[G]) {
#if defined(__AVX2__)
  for (int g = 0; g < G; g++) w[g] = decoded(p + g * L);
#elif defined(__SSE2__)
  for (int g = 0; g < G; g++) {
    int32_t four;
    memcpy(&four, p + g * L, L);
    __m128i codes = _mm_cvtsi32_si128(four), pairs = _mm_unpacklo_epi8(codes, codes);
    w[g] = __builtin_convertvector((vi)_mm_srai_epi32(_mm_unpacklo_epi16(pairs, pairs), 24), vf);
  }
#elif defined(__aarch64__)
  int8_t codes[16] = {};
  memcpy(codes, p, G * L);
  int8x16_t all = vld1q_s8(codes);
  int16x8_t half[2] = {vmovl_s8(vget_low_s8(all)), vmovl_s8(vget_high_s8(all))};
  for (int g = 0; g < G; g++) {
    int16x8_t eight = half[g / 2];
    w[g] = (vf)vcvtq_f32_s32(vmovl_s16(g % 2 ? vget_high_s16(eight) : vget_low_s16(eight)));
  }
#else
  for (int g = 0; g < G; g++) w[g] = decoded(p + g * L);
#endif
}
INLINE vf absolute(vf x) { return (vf)((vi)x & 0x7fffffff); }
INLINE vf at_least(vf x, float low) { return x < splat(low) ? splat(low) : x; }   // NaN stays NaN
INLINE vf at_most(vf x, float high) { return x > splat(high) ? splat(high) : x; }

// exp(t) = 2^n (1 + q): n and q for t in [-87, 0]. Polynomial: Cephes (Moshier), expf.c.
INLINE void reduce(vf t, vi* n, vf* q) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  vf shifted = t * 1.44269504088896341f + magic;
  vf k = shifted - magic;
  *n = (vi)shifted - (vi)splat(magic);
  vf r = t - k * 0.693359375f;
  r = r - k * -2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  *q = p * (r * r) + r;
}
INLINE vf power_of_two(vi n) { return (vf)((n + 127) << 23); }

// Activations as fractions: products of them take one division, the slowest instruction here. Denominators lie
// between 1 and 2.
struct Fraction {
  vf top, bottom;
};
INLINE vf value(const Fraction& f) { return f.top / f.bottom; }

// A gate and 1 - it, over one denominator.
struct Gate {
  vf top, rest, bottom;
};

// exp(t) for t <= 0; 0 where it would be below 2^-126: denormal numbers take a processor a hundred times as long, and saturated
// gates are common.
INLINE vf exp_(vf t) {
  vi n;
  vf q;
  reduce(at_least(t, -87.33f), &n, &q);
  return t < splat(-87.33f) ? vf{} : (q + 1.0f) * power_of_two(n);
}

INLINE Gate sigmoid(vf x) {
  vf e = exp_(-absolute(x)), one = splat(1);
  return {x < vf{} ? e : one, x < vf{} ? one : e, 1.0f + e};
}

INLINE Fraction tanh_(vf x) {
  vi n;
  vf q;
  reduce(at_least(-2.0f * absolute(x), -60.0f), &n, &q);
  vf scale = power_of_two(n);
  vf m = q * scale + (scale - 1.0f);  // exp(-2|x|) - 1, exact where |x| is small
  return {(vf)(((vi)m & 0x7fffffff) | ((vi)x & (int32_t)0x80000000)), 2.0f + m};
}

INLINE Gate gate(const Variant& v, vf z) {
  if (!v.hard_sigmoid) return sigmoid(z);
  vf y = at_most(at_least(v.alpha * z + v.beta, 0), 1);
  return {y, 1.0f - y, splat(1)};
}
INLINE Fraction cell(bool relu, vf x) { return relu ? Fraction{at_least(x, 0), splat(1)} : tanh_(x); }

// gate * state
INLINE vf keep(const Gate& g, vf state) { return g.top * state / g.bottom; }

// The new c. z: i, f, g, o, or i, g, o where f = 1 - i.
INLINE vf next_cell(const Variant& v, const vf* z, vf c, bool peephole, vf p_i, vf p_f) {
  const vf* rest = z + (v.coupled ? 1 : 2);
  Gate i = gate(v, peephole ? z[0] + p_i * c : z[0]);
  Fraction g = cell(v.candidate_relu, rest[0]);
  // The old state keeps a division of its own: multiplied by the other denominators, a huge one would become infinite.
  vf kept = v.coupled ? i.rest * c / i.bottom : keep(gate(v, peephole ? z[1] + p_f * c : z[1]), c);
  vf next = kept + (i.top * g.top) / (i.bottom * g.bottom);
  return v.cell_clip != 0 ? at_most(at_least(next, -v.cell_clip), v.cell_clip) : next;
}
// The new h. z: o's.
INLINE vf shown(const Variant& v, vf z, vf next, bool peephole, vf p_o) {
  Gate o = gate(v, peephole ? z + p_o * next : z);
  Fraction a = cell(v.output_relu, next);
  return (o.top * a.top) / (o.bottom * a.bottom);
}
INLINE void finish(const Variant& v, const vf* z, vf c, bool peephole, vf p_i, vf p_f, vf p_o, vf* h, vf* c_out) {
  *c_out = next_cell(v, z, c, peephole, p_i, p_f);
  *h = shown(v, z[v.coupled ? 2 : 3], *c_out, peephole, p_o);
}

// n + z (old - n)
INLINE vf blend(const Gate& z, const Fraction& n, vf old) {
  return (z.rest * n.top) / (z.bottom * n.bottom) + keep(z, old);
}

// sum[row][panel][gate] += value[row] over a panel's matrix. In the same order whatever the number of rows and panels at once,
// so that a stream's numbers do not depend on its neighbours.
template <int G, int R, int U, class W>
INLINE void multiply(vf (&sum)[R][U][G], const float* values, int64_t stride, int64_t count, const W* panel, int64_t next) {
#pragma GCC unroll 2
  for (int64_t k = 0; k < count; k++) {
    vf value[R];
    for (int r = 0; r < R; r++) value[r] = splat(values[r * stride + k]);
    for (int u = 0; u < U; u++) {
      vf w[G];
      widen<G>(panel + u * next + k * G * L, w);
      for (int g = 0; g < G; g++)
        for (int r = 0; r < R; r++) sum[r][u][g] += value[r] * w[g];
    }
  }
}

// The same of codes by Dot, of numbers from its rows' first on.
template <int G, int R, int U>
INLINE void dot_product(vf (&sum)[R][U][G], const Dot& dot, const DotRow* rows, const void* panels, int64_t panel, int64_t inputs,
                        int64_t first, bool add) {
  int64_t group = 4 * G * L, next = Dot::groups(inputs) * group;
  dot.sums(rows, R, static_cast<const uint8_t*>(panels) + panel * next + first / 4 * group, next, U, G, add, reinterpret_cast<float*>(sum));
}

// Sums of codes become what they are worth.
template <int G, int R, int U>
INLINE void worth(vf (&sum)[R][U][G], const float* scale) {
  for (int u = 0; u < U; u++)
    for (int g = 0; g < G; g++) {
      vf one = load(scale + (u * G + g) * L);
      for (int r = 0; r < R; r++) sum[r][u][g] *= one;
    }
}

template <int G, class W, int R, int U>
INLINE void lstm_block(const LstmStep& s, int64_t panel, int64_t row) {
  int64_t inputs = s.inputs + s.width, next = inputs * G * L;
  constexpr bool coded = sizeof(W) == 1;
  vf sum[R][U][G];
  for (int r = 0; r < R; r++)
    for (int u = 0; u < U; u++)
      for (int g = 0; g < G; g++) sum[r][u][g] = coded ? vf{} : load(s.bias + ((panel + u) * G + g) * L);
  const W* weights = static_cast<const W*>(s.panels) + panel * next;
  if constexpr (coded) {
    if (s.dot != nullptr) {
      dot_product<G, R, U>(sum, *s.dot, s.x_rows + row, s.panels, panel, inputs, 0, false);
      dot_product<G, R, U>(sum, *s.dot, s.h_rows + row, s.panels, panel, inputs, s.inputs, true);
    } else {
      multiply<G, R, U>(sum, s.x + row * s.inputs, s.inputs, s.inputs, weights, next);
      multiply<G, R, U>(sum, s.h + row * s.width, s.width, s.width, weights + s.inputs * G * L, next);
    }
    worth<G, R, U>(sum, s.scale + panel * G * L);
    for (int r = 0; r < R; r++)
      for (int u = 0; u < U; u++)
        for (int g = 0; g < G; g++) sum[r][u][g] += load(s.bias + ((panel + u) * G + g) * L);
  }
  if (s.z != nullptr)
    for (int r = 0; r < R; r++)
      for (int u = 0; u < U; u++)
        for (int g = 0; g < G; g++) {
          int64_t unit = (panel + u) * L;
          sum[r][u][g] += load(s.z + ((row + r) * G + g) * s.units + unit, s.units - unit);
        }
  if constexpr (!coded) {
    multiply<G, R, U>(sum, s.x + row * s.inputs, s.inputs, s.inputs, weights, next);
    multiply<G, R, U>(sum, s.h + row * s.width, s.width, s.width, weights + s.inputs * G * L, next);
  }
  bool peephole = s.p_i != nullptr;
  for (int u = 0; u < U; u++) {
    int64_t unit = (panel + u) * L;
    vf p_i{}, p_f{}, p_o{};
    if (peephole) {
      p_i = load(s.p_i + unit), p_o = load(s.p_o + unit);
      if (s.p_f != nullptr) p_f = load(s.p_f + unit);
    }
    for (int r = 0; r < R; r++) {
      int64_t at = (row + r) * s.units + unit;
      vf h, c;
      finish(s.variant, sum[r][u], load(s.c + at, s.units - unit), peephole, p_i, p_f, p_o, &h, &c);
      store(s.h_out + at, h, s.units - unit);
      store(s.c_out + at, c, s.units - unit);
    }
  }
}

// Panel by panel, each over all rows while it is in the cache: ROWS of them at once, then as many as are left. The last one
// takes two panels at once, which keeps both multipliers busy.
template <int R, class Block>
INLINE int64_t some_rows(int64_t first, int64_t last, int64_t row, int64_t rows, const Block& block) {
  int64_t end = row + (rows - row) / R * R;
  if (row < end)
    for (int64_t panel = first; panel < last; panel++)
      for (int64_t at = row; at < end; at += R) block.template run<R, 1>(panel, at);
  return end;
}

template <class Block>
INLINE void each_block(int64_t first, int64_t last, int64_t rows, const Block& block) {
  int64_t row = 0;
  if constexpr (ROWS > 2) row = some_rows<ROWS>(first, last, row, rows, block);
  row = some_rows<2>(first, last, row, rows, block);
  if (row < rows) {
    int64_t panel = first;
    for (; panel + 2 <= last; panel += 2) block.template run<1, 2>(panel, row);
    for (; panel < last; panel++) block.template run<1, 1>(panel, row);
  }
}

template <int G, class W>
struct Lstm {
  const LstmStep& s;
  template <int R, int U>
  INLINE void run(int64_t panel, int64_t row) const {
    lstm_block<G, W, R, U>(s, panel, row);
  }
};

template <class W>
INLINE void lstm_of(const LstmStep& s, int64_t first, int64_t last) {
  if (s.variant.coupled) {
    each_block(first, last, s.rows, Lstm<3, W>{s});
  } else {
    each_block(first, last, s.rows, Lstm<4, W>{s});
  }
}

void lstm(const LstmStep& s, int64_t first, int64_t last) {
  if (s.weights == Weights::kInt8) {
    lstm_of<int8_t>(s, first, last);
  } else if (s.weights == Weights::kBfloat16) {
    lstm_of<uint16_t>(s, first, last);
  } else {
    lstm_of<float>(s, first, last);
  }
}

#include "gru_kernels.h"
#include "gates_kernels.h"
#include "around_kernels.h"
#include "winograd_kernels.h"
#include "winograd_gru_kernels.h"

bool within(const float* values, int64_t count, float low, float high) {
  constexpr int kChains = 4;  // no comparison waits for the one before
  bool rest = true;
  if (count < L) {
    for (int64_t k = 0; k < count; k++) rest &= (values[k] >= low) & (values[k] <= high);
    return rest;
  }
  vi good[kChains];
  for (vi& each : good) each = ~vi{};
  const vf least = splat(low), most = splat(high);
  auto look = [&](int chain, const float* at) __attribute__((always_inline)) {
    vf some = load(at);
    good[chain] &= (some >= least) & (some <= most);
  };
  int64_t k = 0;
  for (; k + kChains * L <= count; k += kChains * L)
    for (int j = 0; j < kChains; j++) look(j, values + k + j * L);
  for (; k + L <= count; k += L) look(0, values + k);
  if (k < count) look(1, values + count - L);
  vi all = good[0] & good[1] & good[2] & good[3];
  for (int j = 0; j < L; j++) rest &= all[j] != 0;
  return rest;
}

void activate(int kind, const float* x, float* y, int64_t count) {
  for (int64_t k = 0; k < count; k += L) {
    vf v = load(x + k, count - k);
    Gate s = sigmoid(v);
    store(y + k, kind == 0 ? s.top / s.bottom : value(tanh_(v)), count - k);
  }
}

}  // namespace

extern const Kernels KERNELS = {NAME, L, lstm, gru, gru_candidate, gates, two_codes, dense, norm, conv_input, conv_lstm,
                                conv_gru, conv_candidate, within, activate, nullptr};

}  // namespace edgelstm
