// float16 and bfloat16, rounded to the nearest, ties to even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace edgelstm_gst {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Of a finite number; infinity where it is too large.
inline uint16_t to_half(float value) {
  uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000;
  float size = std::fabs(value);
  if (size >= 65520.0f) return uint16_t(sign | 0x7c00);
  if (size < 6.103515625e-05f) return uint16_t(sign | uint32_t(std::rint(size * 16777216.0f)));  // subnormal: steps of 2^-24
  uint32_t rest = bits_of(size) + 0xfff + (bits >> 13 & 1);
  return uint16_t(sign | ((rest >> 13) - (112u << 10)));
}

inline float from_half(uint16_t half) {
  uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
  if (exponent == 0) return (sign != 0 ? -1.0f : 1.0f) * float(fraction) / 16777216.0f;
  return float_of(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13);
}

inline uint16_t to_bfloat(float value) {
  uint32_t bits = bits_of(value);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_bfloat(uint16_t bits) { return float_of(uint32_t(bits) << 16); }

}  // namespace edgelstm_gst
