// Products of int8 codes with numbers in fixed point, by instructions that multiply bytes (dot.cpp).
//
// A row of numbers becomes three signed bytes each, q = 65536 a + 256 b + c, |q| <= 2^22, worth a power of two that its largest number
// decides: a rounding of 2^-22 of that power's own size at most, as float32 sums of such numbers have. The sums of bytes are whole
// numbers, exact, so they are the same in whatever order. What that would not do justice to (NaN, infinity, a number of 256 or
// more, whose rounding would be seen beside small ones; nothing but very small ones) is multiplied in float32.
#pragma once

#include <cstdint>

namespace edgelstm {

// Numbers [lead, lead + count) of groups of four; those before and behind them are zeros.
struct DotRow {
  const float* values;
  int64_t count, lead;
  const int8_t* bytes;   // [3][groups][4]
  int32_t less[3];       // what the sums begin with: it takes away what codes that are stored as code + 128 add
  float unit;            // what q = 1 is worth; 0: in float32
};

// One set of instructions. Codes lie as [panel][groups][gates][lanes][4 inputs].
struct Dot {
  const char* name;      // of the kernels with it
  int lanes;
  uint8_t flip;          // what stored codes are xored with
  // Fills in `row`, its bytes at `bytes` [3][groups(lead + count)][4].
  void (*encode)(DotRow* row, int8_t* bytes);
  // sums [rows][panels][gates][lanes], or added to them, of all of each row's numbers; codes: where the first group lies,
  // `next` bytes from panel to panel. panels 1 if rows > 1, unless gates is 1.
  void (*sums)(const DotRow* row, int rows, const uint8_t* codes, int64_t next, int panels, int gates, bool add, float* sums);

  static constexpr int64_t kMost = 32768;  // inputs: the sums of bytes stay below 2^31
  __attribute__((always_inline)) static int64_t groups(int64_t count) { return (count + 3) / 4; }
};

#if defined(__x86_64__)
extern const Dot kDotVnni;
extern const Dot kDotVex;  // lanes 0 where the compiler is too old for it
#elif defined(__aarch64__)
extern const Dot kDotNeon;
#endif

}  // namespace edgelstm
