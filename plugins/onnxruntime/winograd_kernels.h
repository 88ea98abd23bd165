// A ConvLSTM's step by Winograd's algorithm (winograd.h). Part of kernels.cpp, inside its namespace, compiled once for each set of
// instructions. Lanes are channels everywhere; every tile goes through the same operations in the same order, whatever stands beside it.

// In every quad of the result: four of a's (0 to 3) and b's (4 to 7) numbers of the same quad.
#define PICK(quad, k) ((k) < 4 ? 4 * (quad) + (k) : L + 4 * (quad) + (k) - 4)
#define QUAD(quad, i, j, k, l) PICK(quad, i), PICK(quad, j), PICK(quad, k), PICK(quad, l)
#if LANES == 16
#define QUADS(...) QUAD(0, __VA_ARGS__), QUAD(1, __VA_ARGS__), QUAD(2, __VA_ARGS__), QUAD(3, __VA_ARGS__)
#elif LANES == 8
#define QUADS(...) QUAD(0, __VA_ARGS__), QUAD(1, __VA_ARGS__)
#else
#define QUADS(...) QUAD(0, __VA_ARGS__)
#endif
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, QUADS(__VA_ARGS__))
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, vi{QUADS(__VA_ARGS__)})
#endif

// Four vectors whose quads are rows of 4x4 matrices, transposed each.
INLINE void transpose(vf (&a)[4]) {
  vf p = SHUFFLE(a[0], a[1], 0, 4, 1, 5), q = SHUFFLE(a[0], a[1], 2, 6, 3, 7);
  vf r = SHUFFLE(a[2], a[3], 0, 4, 1, 5), s = SHUFFLE(a[2], a[3], 2, 6, 3, 7);
  a[0] = SHUFFLE(p, r, 0, 1, 4, 5), a[1] = SHUFFLE(p, r, 2, 3, 6, 7);
  a[2] = SHUFFLE(q, s, 0, 1, 4, 5), a[3] = SHUFFLE(q, s, 2, 3, 6, 7);
}

// The vector whose quads stand at p, p + next, ... The forms with masks are the same instructions: without, GCC 12 warns.
INLINE vf load_quads(const float* p, int64_t next) {
#if LANES == 16 && defined(__AVX512F__)
  __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(p));
  v = _mm512_maskz_insertf32x4(0xffff, v, _mm_loadu_ps(p + next), 1);
  v = _mm512_maskz_insertf32x4(0xffff, v, _mm_loadu_ps(p + 2 * next), 2);
  return (vf)_mm512_maskz_insertf32x4(0xffff, v, _mm_loadu_ps(p + 3 * next), 3);
#elif LANES == 8 && defined(__AVX__)
  return (vf)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + next), 1);
#else
  vf v;
  for (int q = 0; q < L / 4; q++) memcpy(reinterpret_cast<float*>(&v) + 4 * q, p + q * next, 16);
  return v;
#endif
}
INLINE void store_quads(float* p, int64_t next, vf v) {
#if LANES == 16 && defined(__AVX512F__)
  _mm_storeu_ps(p, _mm512_maskz_extractf32x4_ps(15, (__m512)v, 0));
  _mm_storeu_ps(p + next, _mm512_maskz_extractf32x4_ps(15, (__m512)v, 1));
  _mm_storeu_ps(p + 2 * next, _mm512_maskz_extractf32x4_ps(15, (__m512)v, 2));
  _mm_storeu_ps(p + 3 * next, _mm512_maskz_extractf32x4_ps(15, (__m512)v, 3));
#elif LANES == 8 && defined(__AVX__)
  _mm_storeu_ps(p, _mm256_castps256_ps128((__m256)v));
  _mm_storeu_ps(p + next, _mm256_extractf128_ps((__m256)v, 1));
#else
  for (int q = 0; q < L / 4; q++) memcpy(p + q * next, reinterpret_cast<const float*>(&v) + 4 * q, 16);
#endif
}

// Four places of L channels that lie `next` floats apart, as vectors of channels.
INLINE void load_places(const float* p, int64_t next, vf (&v)[4]) {
  for (int k = 0; k < 4; k++) v[k] = load_quads(p + k * next, 4 * next);
  transpose(v);
}
INLINE void store_places(float* p, int64_t next, vf (&v)[4]) {
  transpose(v);
  for (int k = 0; k < 4; k++) store_quads(p + k * next, 4 * next, v[k]);
}

constexpr float A1 = kPointA, B1 = kPointB, A2 = kPointA * kPointA, B2 = kPointB * kPointB, A3 = kPointA * kPointA * kPointA,
                B3 = kPointB * kPointB * kPointB, SUM2 = kPointA * kPointA + kPointB * kPointB,
                PRODUCT2 = kPointA * kPointA * kPointB * kPointB;

INLINE void transform_in(const vf (&d)[6], vf (&r)[6]) {
  r[0] = (d[4] - SUM2 * d[2]) + PRODUCT2 * d[0];
  vf even = d[4] - B2 * d[2], odd = d[3] - B2 * d[1];
  r[1] = even + A1 * odd, r[2] = even - A1 * odd;
  even = d[4] - A2 * d[2], odd = d[3] - A2 * d[1];
  r[3] = even + B1 * odd, r[4] = even - B1 * odd;
  r[5] = (d[5] - SUM2 * d[3]) + PRODUCT2 * d[1];
}
INLINE void transform_out(const vf (&m)[6], vf (&y)[4]) {
  vf sum_a = m[1] + m[2], sum_b = m[3] + m[4], apart_a = m[1] - m[2], apart_b = m[3] - m[4];
  y[0] = (m[0] + sum_a) + sum_b;
  y[1] = A1 * apart_a + B1 * apart_b;
  y[2] = A2 * sum_a + B2 * sum_b;
  y[3] = (A3 * apart_a + m[5]) + B3 * apart_b;
}

// The same of codes, `next` bytes apart; and of their numbers into four bytes for each channel. Shifts put them in their places.
template <class Code>
INLINE void load_places(const Code* p, int64_t next, float zero, vf (&v)[4]) {
  auto four = [&](int64_t k) __attribute__((always_inline)) {
    int32_t codes;
    memcpy(&codes, p + k * next, 4);
    return codes;
  };
#if LANES == 16
  vi all = {four(0), four(1), four(2),  four(3),  four(4),  four(5),  four(6),  four(7),
            four(8), four(9), four(10), four(11), four(12), four(13), four(14), four(15)};
#elif LANES == 8
  vi all = {four(0), four(1), four(2), four(3), four(4), four(5), four(6), four(7)};
#else
  vi all = {four(0), four(1), four(2), four(3)};
#endif
  for (int j = 0; j < 4; j++) {
    vi codes = Code(-1) > 0 ? (all >> 8 * j) & 255 : (all << (24 - 8 * j)) >> 24;
    v[j] = __builtin_convertvector(codes, vf) - zero;
  }
}
template <class Code>
INLINE void store_places(Code* p, int64_t next, const vi (&codes)[4]) {
  vi all = (codes[0] & 255) | (codes[1] & 255) << 8 | (codes[2] & 255) << 16 | codes[3] << 24;
  for (int k = 0; k < L; k++) {
    int32_t four = all[k];
    memcpy(p + k * next, &four, 4);
  }
}

constexpr int kRun = 16;  // tiles of a row whose input is turned into vectors at once
constexpr int kColumns = kTile * kRun + 2;

// One row of a stretch of tiles, places x0 - 1 to x0 + 4 * tiles, from maps of `count` channels (at most L) that lie `size` apart; the
// largest magnitude goes into `largest`, as bits: NaN above infinity above numbers. Codes are worth code - zero, and none is large.
template <class X>
INLINE void read_row(const X* row, int64_t size, int64_t count, int64_t x0, int64_t tiles, int64_t width, float zero, vf* to, vi* largest) {
  constexpr bool kCodes = sizeof(X) == 1;
  int64_t columns = kTile * tiles + 2;
  auto one = [&](int64_t k) __attribute__((always_inline)) {
    int64_t x = x0 - 1 + k;
    vf v{};
    if (x >= 0 && x < width)
      for (int64_t j = 0; j < count; j++) v[j] = kCodes ? row[j * size + x] - zero : row[j * size + x];
    if constexpr (!kCodes) {
      vi bits = (vi)absolute(v);
      *largest = bits > *largest ? bits : *largest;
    }
    to[k] = v;
  };
  one(0);
  int64_t k = 1;
  if (count >= L) {
    vi most = *largest;
    for (; k + 4 < columns && x0 - 1 + k + 4 <= width; k += 4) {
      vf v[4];
      if constexpr (kCodes) {
        load_places(row + x0 - 1 + k, size, zero, v);
      } else {
        load_places(row + x0 - 1 + k, size, v);
      }
      for (int j = 0; j < 4; j++) {
        if constexpr (!kCodes) {
          vi bits = (vi)absolute(v[j]);
          most = bits > most ? bits : most;
        }
        to[k + j] = v[j];
      }
    }
    *largest = most;
  }
  for (; k < columns; k++) one(k);
}

INLINE bool exceeds(vi bits, vi limit) {
  vi over = bits > limit;
  int32_t any = 0;
  for (int k = 0; k < L; k++) any |= over[k];
  return any != 0;
}

// The input transform of [first, last) of lines * groups, a group at most L channels of x or of h.
template <class X>
INLINE void conv_input_of(const ConvStep& s, int64_t first, int64_t last) {
  int64_t of_x = (s.inputs + L - 1) / L, groups = of_x + (s.hidden + L - 1) / L, size = s.height * s.width;
  for (int64_t unit = first; unit < last; unit++) {
    int64_t line = unit / groups, group = unit % groups, stream = (s.first_line + line) / s.down, y0 = (s.first_line + line) % s.down * kTile - 1;
    bool is_x = group < of_x;
    int64_t channels = is_x ? s.inputs : s.hidden, channel = (is_x ? group : group - of_x) * L, count = channels - channel;
    const X* maps = static_cast<const X*>(is_x ? s.x : s.h) + (stream * channels + channel) * size;
    float* to = s.patches + (is_x ? 0 : s.inputs) + channel;
    vi limit = (vi)load(s.limit + (is_x ? 0 : s.inputs) + channel);
    for (int64_t start = 0; start < s.across; start += kRun) {
      int64_t tiles = s.across - start < kRun ? s.across - start : kRun;
      vf input[kPatch][kColumns];
      vi largest{};
      for (int k = 0; k < kPatch; k++) {
        if (y0 + k < 0 || y0 + k >= s.height) {
          for (int64_t j = 0; j < kTile * tiles + 2; j++) input[k][j] = vf{};
        } else {
          read_row(maps + (y0 + k) * s.width, size, count < L ? count : L, start * kTile, tiles, s.width, s.zero, input[k], &largest);
        }
      }
      bool large = exceeds(largest, limit);
      for (int64_t t = 0; t < tiles; t++) {
        int64_t tile = line * s.across + start + t;
        const vf* from = &input[0][kTile * t];
        if (large) {
          vi most{};
          for (int i = 0; i < kPatch; i++)
            for (int j = 0; j < kPatch; j++) {
              vi bits = (vi)absolute(from[i * kColumns + j]);
              most = bits > most ? bits : most;
            }
          if (exceeds(most, limit)) __atomic_store_n(s.direct_tiles + tile, 1, __ATOMIC_RELAXED);
        }
        vf half[kPatch][kPatch], column[6], out[6];
        for (int j = 0; j < kPatch; j++) {
          for (int i = 0; i < kPatch; i++) column[i] = from[i * kColumns + j];
          transform_in(column, out);
          for (int i = 0; i < kPatch; i++) half[i][j] = out[i];
        }
        float* vectors = to + ((tile / s.block) * kPoints * s.block + tile % s.block) * s.stride;
        for (int i = 0; i < kPatch; i++) {
          transform_in(half[i], out);
          for (int j = 0; j < kPatch; j++) store(vectors + (i * kPatch + j) * s.block * s.stride, out[j], count);
        }
      }
    }
  }
}

void conv_input(const ConvStep& s, int64_t first, int64_t last) {
  if (s.read == Codes::kUint8) {
    conv_input_of<uint8_t>(s, first, last);
  } else if (s.read == Codes::kInt8) {
    conv_input_of<int8_t>(s, first, last);
  } else {
    conv_input_of<float>(s, first, last);
  }
}

// products[tile][gate] of R tiles at one point.
template <int G, int R>
INLINE void conv_product(const float* patches, int64_t stride, int64_t count, const float* weights, float* products) {
  vf sum[R][G];
  for (int r = 0; r < R; r++)
    for (int g = 0; g < G; g++) sum[r][g] = vf{};
  const float* end = patches + count;
#pragma GCC unroll 1
  for (; patches != end; patches++, weights += G * L) {
    vf w[G];
    for (int g = 0; g < G; g++) w[g] = load(weights + g * L);
    for (int r = 0; r < R; r++) {
      vf value = splat(patches[r * stride]);
      for (int g = 0; g < G; g++) sum[r][g] += value * w[g];
    }
  }
  for (int r = 0; r < R; r++)
    for (int g = 0; g < G; g++) store(products + (r * G + g) * L, sum[r][g]);
}

#if LANES == 16
constexpr int kTogether = 6;
#elif ROWS >= 4
constexpr int kTogether = 6;  // 32 registers
#else
constexpr int kTogether = ROWS;
#endif

template <int G, int R>
INLINE void conv_rest(int64_t left, const float* patches, int64_t stride, int64_t count, const float* weights, float* products) {
  if constexpr (R > 0) {
    if (left == R) {
      conv_product<G, R>(patches, stride, count, weights, products);
    } else {
      conv_rest<G, R - 1>(left, patches, stride, count, weights, products);
    }
  }
}

// A tile's pre-activations, [gate][place], from its products.
template <int G>
INLINE void conv_output(const float* products, int64_t next, const float* bias, vf (&z)[G][16]) {
  for (int g = 0; g < G; g++) {
    vf half[4][6], m[6], y[4], b = load(bias + g * L);
    for (int j = 0; j < 6; j++) {
      for (int i = 0; i < 6; i++) m[i] = load(products + (i * 6 + j) * next + g * L);
      transform_out(m, y);
      for (int i = 0; i < 4; i++) half[i][j] = y[i];
    }
    for (int i = 0; i < 4; i++) {
      transform_out(half[i], y);
      for (int j = 0; j < 4; j++) z[g][i * 4 + j] = y[j] + b;
    }
  }
}

// The same by the definition, place by place. patch: [channel][36], zeros outside of the map.
template <int G>
INLINE void conv_direct(const float* patch, int64_t channels, const float* weights, const float* bias, vf (&z)[G][16]) {
  for (int i = 0; i < 4; i++) {
    vf sum[4][G];
    for (int g = 0; g < G; g++)
      for (int j = 0; j < 4; j++) sum[j][g] = load(bias + g * L);
    for (int64_t k = 0; k < channels; k++)
      for (int tap = 0; tap < kTaps; tap++) {
        const float* from = patch + k * kPoints + (i + tap / 3) * kPatch + tap % 3;
        vf w[G];
        for (int g = 0; g < G; g++) w[g] = load(weights + ((k * kTaps + tap) * G + g) * L);
        for (int j = 0; j < 4; j++) {
          vf value = splat(from[j]);
          for (int g = 0; g < G; g++) sum[j][g] += value * w[g];
        }
      }
    for (int g = 0; g < G; g++)
      for (int j = 0; j < 4; j++) z[g][i * 4 + j] = sum[j][g];
  }
}

// Where a tile lies in a map, and how much of it.
struct Place {
  int64_t stream, y, x, high, wide;
};

// 4x4 places of up to L channels, as vectors of channels; what lies outside stays as it is.
INLINE void read_tile(const float* maps, int64_t channel, int64_t place, int64_t width, const Place& at, int64_t count, vf (&to)[16]) {
  const float* from = maps + (at.y * width + at.x) * place;
  if (count >= L && at.high == 4 && at.wide == 4 && place == 1) {
    for (int i = 0; i < 4; i++) {
      vf v[4];
      load_places(from + i * width, channel, v);
      for (int j = 0; j < 4; j++) to[i * 4 + j] = v[j];
    }
    return;
  }
  for (int64_t k = 0; k < (count < L ? count : L); k++)
    for (int64_t i = 0; i < at.high; i++)
      for (int64_t j = 0; j < at.wide; j++) to[i * 4 + j][k] = from[k * channel + (i * width + j) * place];
}
INLINE void write_tile(float* maps, int64_t channel, int64_t width, const Place& at, int64_t count, vf (&from)[16]) {
  float* to = maps + at.y * width + at.x;
  if (count >= L && at.high == 4 && at.wide == 4) {
    for (int i = 0; i < 4; i++) {
      vf v[4];
      for (int j = 0; j < 4; j++) v[j] = from[i * 4 + j];
      store_places(to + i * width, channel, v);
    }
    return;
  }
  for (int64_t k = 0; k < (count < L ? count : L); k++)
    for (int64_t i = 0; i < at.high; i++)
      for (int64_t j = 0; j < at.wide; j++) to[k * channel + i * width + j] = from[i * 4 + j][k];
}

// Whether what write_tile writes lies within bounds.
INLINE bool within(const Bounds& bounds, const Place& at, int64_t count, const vf (&v)[16]) {
  if (count >= L && at.high == 4 && at.wide == 4) {
    vi good = ~vi{};
    for (int k = 0; k < 16; k++) good &= (v[k] >= splat(bounds.low)) & (v[k] <= splat(bounds.high));
    return !exceeds(~good & 1, vi{});
  }
  bool good = true;
  for (int64_t k = 0; k < (count < L ? count : L); k++)
    for (int64_t i = 0; i < at.high; i++)
      for (int64_t j = 0; j < at.wide; j++) good &= (v[i * 4 + j][k] >= bounds.low) & (v[i * 4 + j][k] <= bounds.high);
  return good;
}

INLINE Place place_of(const ConvStep& s, int64_t tile) {
  int64_t line = s.first_line + tile / s.across, y = line % s.down * kTile, x = tile % s.across * kTile;
  return {line / s.down, y, x, s.height - y < 4 ? s.height - y : 4, s.width - x < 4 ? s.width - x : 4};
}

// Of numbers: no tile of codes is computed by the definition.
INLINE void read_patch(const ConvStep& s, const Place& at, float* patch) {
  int64_t size = s.height * s.width;
  const float *x = static_cast<const float*>(s.x), *h = static_cast<const float*>(s.h);
  for (int64_t k = 0; k < s.inputs + s.hidden; k++) {
    const float* map = k < s.inputs ? x + (at.stream * s.inputs + k) * size : h + (at.stream * s.hidden + k - s.inputs) * size;
    for (int64_t i = 0; i < kPatch; i++)
      for (int64_t j = 0; j < kPatch; j++) {
        int64_t y = at.y - 1 + i, x = at.x - 1 + j;
        *patch++ = y >= 0 && y < s.height && x >= 0 && x < s.width ? map[y * s.width + x] : 0.0f;
      }
  }
}

// The codes of 4x4 places of h, as QuantizeLinear makes them of h * factor. coding: of the panel.
template <class Code>
INLINE void write_codes(Code* maps, int64_t channel, int64_t width, const Place& at, int64_t count, const float* coding, const vf (&h)[16]) {
  vf factor = load(coding), scale = load(coding + L), zero = load(coding + 2 * L);
  Code* to = maps + at.y * width + at.x;
  bool whole = count >= L && at.high == 4 && at.wide == 4;
  for (int64_t i = 0; i < at.high; i++) {
    vi codes[4];
    for (int j = 0; j < 4; j++) codes[j] = codes_of<Code>(h[i * 4 + j] * factor, scale, zero);
    if (whole) {
      store_places(to + i * width, channel, codes);
    } else {
      for (int64_t k = 0; k < (count < L ? count : L); k++)
        for (int64_t j = 0; j < at.wide; j++) to[k * channel + i * width + j] = static_cast<Code>(codes[j][k]);
    }
  }
}

template <int G>
INLINE void conv_cells(const ConvStep& s, int64_t panel, const Place& at, vf (&z)[G][16]) {
  const Variant& v = s.variant;
  int64_t size = s.height * s.width, unit = panel * L, count = s.units - unit, maps = (at.stream * s.units + unit) * size;
  bool peephole = s.peephole[0] != nullptr;
  vf old[16] = {}, p[3][16], h[16], c[16];
  read_tile(s.c + maps, size, 1, s.width, at, count, old);
  for (int j = 0; peephole && j < 3; j++) {
    for (int k = 0; k < 16; k++) p[j][k] = vf{};
    if (s.peephole[j] != nullptr)
      read_tile(s.peephole[j] + unit * s.p_channel[j], s.p_channel[j], s.p_place[j], s.width, at, count, p[j]);
  }
  if (s.gate_codes != nullptr) {
    const GateCodes& q = *s.gate_codes;
    constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    for (int g = 0; g < G; g++)
      for (int k = 0; k < 16; k++) {
        vf rounded = (at_most(at_least(z[g][k], q.low), q.high) + magic) - magic;
        z[g][k] = (rounded - q.zero[g]) * q.scale[g];
      }
  }
  for (int k = 0; k < 16; k++) {
    vf parts[4];
    for (int g = 0; g < G; g++) parts[g] = z[g][k];
    if (peephole) {
      finish(v, parts, old[k], true, p[0][k], p[1][k], p[2][k], &h[k], &c[k]);
    } else {
      finish(v, parts, old[k], false, vf{}, vf{}, vf{}, &h[k], &c[k]);
    }
  }
  if (s.h_bounds.bad != nullptr && !within(s.h_bounds, at, count, h)) __atomic_store_n(s.h_bounds.bad, 1, __ATOMIC_RELAXED);
  if (s.c_bounds.bad != nullptr && !within(s.c_bounds, at, count, c)) __atomic_store_n(s.c_bounds.bad, 1, __ATOMIC_RELAXED);
  if (s.made == Codes::kUint8) {
    write_codes(static_cast<uint8_t*>(s.codes_out) + maps, size, s.width, at, count, s.coding + panel * 3 * L, h);
  } else if (s.made == Codes::kInt8) {
    write_codes(static_cast<int8_t*>(s.codes_out) + maps, size, s.width, at, count, s.coding + panel * 3 * L, h);
  }
  if (s.h_out != nullptr) write_tile(s.h_out + maps, size, s.width, at, count, h);
  write_tile(s.c_out + maps, size, s.width, at, count, c);
}

// With so many channels and tiles the next point's numbers are fetched into the second cache while one is multiplied: by itself the
// processor comes too late for what lies that far apart. With fewer it comes in time, and asking costs more than it saves.
constexpr int64_t kFetchChannels = 128, kFetchTiles = 24;
INLINE void fetch(const float* from, const float* to) {
  for (; from < to; from += 16) __builtin_prefetch(from, 0, 2);
}

template <int G>
INLINE void conv_block(const ConvStep& s, int64_t panel, int64_t block, float* scratch) {
  int64_t channels = s.inputs + s.hidden, total = s.lines * s.across, start = block * s.block;
  int64_t tiles = total - start < s.block ? total - start : s.block, next = s.block * G * L;
  const float *weights = s.transformed + panel * kPoints * channels * G * L, *bias = s.bias + panel * G * L;
  for (int64_t point = 0; point < kPoints; point++) {
    const float *from = s.patches + (block * kPoints + point) * s.block * s.stride, *matrix = weights + point * channels * G * L;
    float* to = scratch + point * next;
    bool ahead = channels >= kFetchChannels && tiles >= kFetchTiles && point + 1 < kPoints;
    int64_t t = 0;
    for (; t + kTogether <= tiles; t += kTogether) {
      if (ahead) {
        int64_t size = channels * G * L, runs = tiles / kTogether, run = t / kTogether;
        fetch(matrix + size + size * run / runs, matrix + size + size * (run + 1) / runs);
        fetch(from + (s.block + t) * s.stride, from + (s.block + t + kTogether) * s.stride);
      }
      conv_product<G, kTogether>(from + t * s.stride, s.stride, channels, matrix, to + t * G * L);
    }
    conv_rest<G, kTogether - 1>(tiles - t, from + t * s.stride, s.stride, channels, matrix, to + t * G * L);
  }
  for (int64_t t = 0; t < tiles; t++) {
    Place at = place_of(s, start + t);
    vf z[G][16];
    if (s.direct_tiles[start + t]) {
      float* patch = scratch + kPoints * next;
      read_patch(s, at, patch);
      conv_direct<G>(patch, channels, s.direct + panel * channels * kTaps * G * L, bias, z);
    } else {
      conv_output<G>(scratch + t * G * L, next, bias, z);
    }
    conv_cells<G>(s, panel, at, z);
  }
}

// Products, output transform and gates of [first, last) of panels * blocks. scratch: [point][tile of a block][gates][lanes], then
// [inputs + hidden][36].
void conv_lstm(const ConvStep& s, int64_t first, int64_t last, float* scratch) {
  int64_t blocks = (s.lines * s.across + s.block - 1) / s.block;
  for (int64_t unit = first; unit < last; unit++) {
    if (s.variant.coupled) {
      conv_block<3>(s, unit / blocks, unit % blocks, scratch);
    } else {
      conv_block<4>(s, unit / blocks, unit % blocks, scratch);
    }
  }
}
