// dot.h for AVX-512 with VNNI, for AVX2 with it (DOT_VEX), and for Arm's dot product instructions. Compiled once for each; nothing here is
// visible outside but the tables, and nothing of the standard library's templates is used, which the linker might take from here.
#include "dot.h"

#include <cstring>

// AVX-VNNI: assemblers know it since binutils 2.36.
#if defined(DOT_VEX) && !defined(__clang__) && __GNUC__ < 11
#undef DOT_VEX
extern const edgelstm::Dot edgelstm::kDotVex = {};
#endif

#if defined(__AVX512VNNI__) || defined(DOT_VEX)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns of its own header
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#define KNOWN ""
#else
#define KNOWN ".arch armv8.2-a+dotprod\n\t"
#endif
#endif

#if defined(__AVX512VNNI__) || defined(DOT_VEX) || defined(__aarch64__)

namespace edgelstm {
namespace {

#define INLINE inline __attribute__((always_inline))

#if defined(__AVX512VNNI__)
constexpr int L = 16;
constexpr uint8_t kFlip = 0x80;  // vpdpbusd takes unsigned codes
typedef __m512i Whole;
typedef __m512 Real;
INLINE Whole whole(int32_t x) { return _mm512_set1_epi32(x); }
INLINE Whole codes(const uint8_t* p) { return _mm512_loadu_si512(p); }
INLINE Whole four(const int8_t* p) {
  int32_t bits;
  memcpy(&bits, p, 4);
  return _mm512_set1_epi32(bits);
}
// _mm512_dpbusd_epi32. GCC 12 copies and spills sums around the intrinsic.
INLINE Whole dot(Whole sum, Whole code, Whole byte) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(code), "v"(byte));
  return sum;
}
INLINE Real real(Whole x) { return _mm512_cvtepi32_ps(x); }
INLINE Real splat(float x) { return _mm512_set1_ps(x); }
INLINE Real fused(Real a, Real b, Real c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Real times(Real a, Real b) { return _mm512_mul_ps(a, b); }
INLINE Real load(const float* p) { return _mm512_loadu_ps(p); }
INLINE void store(float* p, Real x) { _mm512_storeu_ps(p, x); }
// The codes of one input of four.
INLINE Real code_of(Whole code, int input) {
  Whole low = _mm512_and_si512(_mm512_srl_epi32(code, _mm_cvtsi32_si128(8 * input)), _mm512_set1_epi32(255));
  return _mm512_cvtepi32_ps(_mm512_sub_epi32(low, _mm512_set1_epi32(128)));
}
INLINE int32_t largest(const float* x, int64_t count) {
  __m512i most = _mm512_setzero_si512(), mask = _mm512_set1_epi32(0x7fffffff);
  for (int64_t k = 0; k < count; k += L) {
    __mmask16 there = count - k < L ? (1u << (count - k)) - 1 : 0xffff;
    most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_castps_si512(_mm512_maskz_loadu_ps(there, x + k)), mask));
  }
  return _mm512_reduce_max_epi32(most);
}
// Bytes of 16 numbers, of which so many are there, at `to` in each plane.
INLINE void split(const float* x, int64_t count, float scale, int8_t* to, int64_t plane) {
  __mmask16 there = count < L ? (1u << count) - 1 : 0xffff;
  __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(there, x), _mm512_set1_ps(scale)));
  __m512i flip = _mm512_set1_epi32(0x808080), bytes = _mm512_xor_si512(_mm512_add_epi32(q, flip), flip);
  _mm512_mask_cvtepi32_storeu_epi8(to, there, _mm512_srli_epi32(bytes, 16));
  _mm512_mask_cvtepi32_storeu_epi8(to + plane, there, _mm512_srli_epi32(bytes, 8));
  _mm512_mask_cvtepi32_storeu_epi8(to + 2 * plane, there, bytes);
}
// 128 times the sum of bytes.
INLINE int32_t added(const int8_t* p, int64_t count) {
  __m512i sum = _mm512_setzero_si512();
  for (int64_t k = 0; k < count; k += 64) {
    __mmask64 there = count - k < 64 ? (uint64_t{1} << (count - k)) - 1 : ~uint64_t{0};
    sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), _mm512_maskz_loadu_epi8(there, p + k));
  }
  return 128 * _mm512_reduce_add_epi32(sum);
}
#elif defined(DOT_VEX)
constexpr int L = 8;
constexpr uint8_t kFlip = 0x80;
typedef __m256i Whole;
typedef __m256 Real;
INLINE Whole whole(int32_t x) { return _mm256_set1_epi32(x); }
INLINE Whole codes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
INLINE Whole four(const int8_t* p) {
  int32_t bits;
  memcpy(&bits, p, 4);
  return _mm256_set1_epi32(bits);
}
// AVX-VNNI's form: the one of AVX-512 is another instruction.
INLINE Whole dot(Whole sum, Whole code, Whole byte) {
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(code), "x"(byte));
  return sum;
}
INLINE Real real(Whole x) { return _mm256_cvtepi32_ps(x); }
INLINE Real splat(float x) { return _mm256_set1_ps(x); }
INLINE Real fused(Real a, Real b, Real c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Real times(Real a, Real b) { return _mm256_mul_ps(a, b); }
INLINE Real load(const float* p) { return _mm256_loadu_ps(p); }
INLINE void store(float* p, Real x) { _mm256_storeu_ps(p, x); }
INLINE Real code_of(Whole code, int input) {
  Whole low = _mm256_and_si256(_mm256_srl_epi32(code, _mm_cvtsi32_si128(8 * input)), _mm256_set1_epi32(255));
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(low, _mm256_set1_epi32(128)));
}
INLINE int32_t largest(const float* x, int64_t count) {
  int32_t each[L] = {}, all = 0;
  for (int64_t k = 0; k < count; k += L) {
    int64_t left = count - k < L ? count - k : L;
    int32_t bits[L] = {};
    memcpy(bits, x + k, left * sizeof(float));
    for (int j = 0; j < L; j++) each[j] = (bits[j] & 0x7fffffff) > each[j] ? bits[j] & 0x7fffffff : each[j];
  }
  for (int32_t one : each) all = one > all ? one : all;
  return all;
}
INLINE void split(const float* x, int64_t count, float scale, int8_t* to, int64_t plane) {
  float some[L] = {};
  if (count < L) memcpy(some, x, count * sizeof(float)), x = some;
  __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(load(x), splat(scale))), flip = whole(0x808080);
  __m256i bytes = _mm256_xor_si256(_mm256_add_epi32(q, flip), flip);
  __m128i each = _mm_setr_epi8(2, 6, 10, 14, 1, 5, 9, 13, 0, 4, 8, 12, -1, -1, -1, -1);
  // Bytes of one kind side by side in each half, then in both.
  bytes = _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(each));
  bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  int8_t all[32];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(all), bytes);
  for (int p = 0; p < 3; p++) memcpy(to + p * plane, all + p * L, count < L ? count : L);
}
INLINE int32_t added(const int8_t* p, int64_t count) {
  int32_t sum = 0;
  for (int64_t k = 0; k < count; k++) sum += p[k];
  return 128 * sum;
}
#else
constexpr int L = 4;
constexpr uint8_t kFlip = 0;
typedef int32x4_t Whole;
typedef float32x4_t Real;
INLINE Whole whole(int32_t x) { return vdupq_n_s32(x); }
INLINE Whole codes(const uint8_t* p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
INLINE Whole four(const int8_t* p) {
  int32_t bits;
  memcpy(&bits, p, 4);
  return vdupq_n_s32(bits);
}
// vdotq_s32, without flags for it: compilers do not agree on them.
INLINE Whole dot(Whole sum, Whole code, Whole byte) {
  __asm__(KNOWN "sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(code), "w"(byte));
  return sum;
}
INLINE Real real(Whole x) { return vcvtq_f32_s32(x); }
INLINE Real splat(float x) { return vdupq_n_f32(x); }
INLINE Real fused(Real a, Real b, Real c) { return vfmaq_f32(c, a, b); }
INLINE Real times(Real a, Real b) { return vmulq_f32(a, b); }
INLINE Real load(const float* p) { return vld1q_f32(p); }
INLINE void store(float* p, Real x) { vst1q_f32(p, x); }
INLINE Real code_of(Whole code, int input) {
  return vcvtq_f32_s32(vshrq_n_s32(vshlq_s32(code, vdupq_n_s32(24 - 8 * input)), 24));
}
INLINE int32_t largest(const float* x, int64_t count) {
  uint32x4_t most = vdupq_n_u32(0);
  int64_t k = 0;
  for (; k + L <= count; k += L) most = vmaxq_u32(most, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + k)), vdupq_n_u32(0x7fffffff)));
  uint32_t all = vmaxvq_u32(most), bits;
  for (; k < count; k++) {
    memcpy(&bits, x + k, 4);
    bits &= 0x7fffffff;
    if (bits > all) all = bits;
  }
  return static_cast<int32_t>(all);
}
INLINE void split(const float* x, int64_t count, float scale, int8_t* to, int64_t plane) {
  float some[L] = {};
  if (count < L) memcpy(some, x, count * sizeof(float)), x = some;
  int32x4_t q = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), scale)), flip = vdupq_n_s32(0x808080);
  static const uint8_t kEach[16] = {2, 6, 10, 14, 1, 5, 9, 13, 0, 4, 8, 12, 255, 255, 255, 255};
  uint8_t all[16];
  vst1q_u8(all, vqtbl1q_u8(vreinterpretq_u8_s32(veorq_s32(vaddq_s32(q, flip), flip)), vld1q_u8(kEach)));
  for (int p = 0; p < 3; p++) memcpy(to + p * plane, all + p * L, count < L ? count : L);
}
INLINE int32_t added(const int8_t*, int64_t) { return 0; }
#endif

void encode(DotRow* row, int8_t* bytes) {
  int64_t plane = 4 * Dot::groups(row->lead + row->count), end = row->lead + row->count;
  int32_t most = largest(row->values, row->count);
  constexpr int32_t kLarge = (127 + 8) << 23, kSmall = (127 - 100) << 23;  // 256, 2^-100
  row->unit = 0;
  if (most >= kLarge || (most != 0 && most < kSmall)) return;
  // The largest number comes to 2^21 at least, and below 2^22.
  int32_t exponent = most == 0 ? 0 : (most >> 23) - 127, scale_bits = (127 + 21 - exponent) << 23, unit_bits = (127 - 21 + exponent) << 23;
  float scale;
  memcpy(&scale, &scale_bits, 4);
  memcpy(&row->unit, &unit_bits, 4);
  for (int p = 0; p < 3; p++) {
    for (int64_t k = 0; k < row->lead; k++) bytes[p * plane + k] = 0;
    for (int64_t k = end; k < plane; k++) bytes[p * plane + k] = 0;
  }
  for (int64_t k = 0; k < row->count; k += L) split(row->values + k, row->count - k, scale, bytes + row->lead + k, plane);
  for (int p = 0; p < 3; p++) row->less[p] = -added(bytes + p * plane, plane);
  row->bytes = bytes;
}

// Of R rows and U panels at once.
template <int G, int R, int U>
INLINE void by_bytes(const DotRow* row, const uint8_t* all, int64_t next, bool add, float* sums, int64_t to_row) {
  Whole a[R][U][G], b[R][U][G], c[R][U][G];  // one for each byte of the numbers
  int64_t groups = Dot::groups(row->lead + row->count);
  const int8_t* bytes[R];
  for (int r = 0; r < R; r++) {
    bytes[r] = row[r].bytes;
    for (int u = 0; u < U; u++)
      for (int g = 0; g < G; g++)
        a[r][u][g] = whole(row[r].less[0]), b[r][u][g] = whole(row[r].less[1]), c[r][u][g] = whole(row[r].less[2]);
  }
  for (int64_t k = 0; k < groups; k++) {
    Whole of_a[R], of_b[R], of_c[R];
    for (int r = 0; r < R; r++) {
      const int8_t* from = bytes[r] + 4 * k;
      of_a[r] = four(from), of_b[r] = four(from + 4 * groups), of_c[r] = four(from + 8 * groups);
    }
    for (int u = 0; u < U; u++)
      for (int g = 0; g < G; g++) {
        Whole code = codes(all + u * next + (k * G + g) * 4 * L);
        for (int r = 0; r < R; r++) {
          a[r][u][g] = dot(a[r][u][g], code, of_a[r]);
          b[r][u][g] = dot(b[r][u][g], code, of_b[r]);
          c[r][u][g] = dot(c[r][u][g], code, of_c[r]);
        }
      }
  }
  for (int r = 0; r < R; r++)
    for (int u = 0; u < U; u++)
      for (int g = 0; g < G; g++) {
        float* to = sums + r * to_row + (u * G + g) * L;
        Real q = fused(real(a[r][u][g]), splat(65536), fused(real(b[r][u][g]), splat(256), real(c[r][u][g])));
        Real found = times(q, splat(row[r].unit));  // exact: a power of two
        if (add) found = fused(q, splat(row[r].unit), load(to));
        store(to, found);
      }
}

template <int G>
INLINE void in_float(const DotRow& row, const uint8_t* all, bool add, float* sums) {
  Real sum[G];
  for (int g = 0; g < G; g++) sum[g] = add ? load(sums + g * L) : splat(0);
  for (int64_t k = 0; k < row.count; k++) {
    Real value = splat(row.values[k]);
    int64_t at = row.lead + k;
    for (int g = 0; g < G; g++) sum[g] = fused(code_of(codes(all + (at / 4 * G + g) * 4 * L), at % 4), value, sum[g]);
  }
  for (int g = 0; g < G; g++) store(sums + g * L, sum[g]);
}

template <int G>
void sums_of(const DotRow* row, int rows, const uint8_t* all, int64_t next, int panels, bool add, float* sums) {
  int64_t to_row = int64_t{1} * panels * G * L;
  for (int r = 0; r < rows;) {
    float* to = sums + r * to_row;
    if (row[r].unit == 0) {
      for (int u = 0; u < panels; u++) in_float<G>(row[r], all + u * next, add, to + u * G * L);
      r++;
      continue;
    }
    bool two = r + 1 < rows && row[r + 1].unit != 0;
    if (two && panels == 1) {
      by_bytes<G, 2, 1>(row + r, all, next, add, to, to_row);
      r += 2;
      continue;
    }
    int u = 0;
    if constexpr (G == 1) {
      for (; u + 8 <= panels; u += 8) by_bytes<G, 1, 8>(row + r, all + u * next, next, add, to + u * G * L, to_row);
      for (; u + 4 <= panels; u += 4) by_bytes<G, 1, 4>(row + r, all + u * next, next, add, to + u * G * L, to_row);
    }
    for (; u + 2 <= panels; u += 2) by_bytes<G, 1, 2>(row + r, all + u * next, next, add, to + u * G * L, to_row);
    for (; u < panels; u++) by_bytes<G, 1, 1>(row + r, all + u * next, next, add, to + u * G * L, to_row);
    r++;
  }
}

void sums(const DotRow* row, int rows, const uint8_t* all, int64_t next, int panels, int gates, bool add, float* to) {
  if (gates == 4) {
    sums_of<4>(row, rows, all, next, panels, add, to);
  } else if (gates == 3) {
    sums_of<3>(row, rows, all, next, panels, add, to);
  } else if (gates == 2) {
    sums_of<2>(row, rows, all, next, panels, add, to);
  } else {
    sums_of<1>(row, rows, all, next, panels, add, to);
  }
}

}  // namespace

#if defined(__AVX512VNNI__)
extern const Dot kDotVnni = {"avx512vnni", L, kFlip, encode, sums};
#elif defined(DOT_VEX)
extern const Dot kDotVex = {"avx2vnni", L, kFlip, encode, sums};
#else
extern const Dot kDotNeon = {"neondot", L, kFlip, encode, sums};
#endif

}  // namespace edgelstm
#if defined(__aarch64__) && defined(__clang__)
#pragma clang attribute pop
#endif
#endif
