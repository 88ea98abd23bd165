// A ConvLSTM's step by Winograd's algorithm: a convolution of 3x3, stride 1, padded with zeros to the size it had, over x and h,
// and the gates. F(4x4, 3x3) of Lavin & Gray 2015 (arXiv:1509.09308): a tile of 4x4 places is made of 6x6 of the input, with 36
// multiplications where the direct form takes 144.
#pragma once

#include <cstdint>

#include "packed.h"

namespace edgelstm {

// The points are 0, +-a, +-b and infinity. With these a step's error is a third of what 1 and 2 give, which are usual; their powers
// are exact in float32.
constexpr double kPointA = 0.625, kPointB = 1.5;
constexpr int kTile = 4, kPatch = 6, kPoints = 36, kTaps = 9;

// The transform mixes the 36 numbers of a patch, and rounds by the largest of them: beside a fill value of 1e20 nothing would be left of
// its neighbours, and NaN would spread to all of the tile. So a tile is computed by the definition where one number of its patch alone
// could move a gate by more than this; and where numbers are larger than that, whatever their weights.
constexpr float kReach = 64, kLargest = 1e30f;
// Weights that multiply codes are smaller: no sum of theirs is infinite.
constexpr float kLargestOfCodes = 1e24f;

// A cell's weights as the kernels read them. w [gates * units, channels, 3, 3], b [gates * units] or null. coded: it multiplies codes, of
// which none is large or no number, so no tile needs the definition.
struct ConvWeights {
  ConvWeights(const float* w, const float* b, int64_t units, int64_t gates, int64_t channels, int lanes, bool coded = false);
  int64_t panels;
  Floats transformed;  // [panel][point][channel][gate][lane]
  Floats direct;       // [panel][channel][tap][gate][lane]
  Floats bias;         // [panel][gate][lane]
  Floats limit;        // [channel], then a vector of zeros: magnitudes above are not transformed
};

// Codes that gates read in place of a pre-activation z: worth (round(z) - zero) * scale, z clipped to low..high.
struct GateCodes {
  float scale[4], zero[4], low, high;
};

// What a step reads and writes, x [rows, inputs, height, width], h [rows, hidden, height, width], the others [rows, units, height,
// width]; and the part of it that is being worked on: `lines` rows of tiles from `first_line` on, counted through all streams.
struct ConvStep {
  Variant variant;
  const float *transformed, *direct, *bias, *limit;  // as ConvWeights has them; channels: those of x, then of h
  const float* peephole[3];      // i, f, o; null without
  int64_t p_channel[3], p_place[3];  // as GatesStep has them
  int64_t inputs, hidden, units, rows, height, width;
  const void *x, *h;             // of that type, codes worth code - zero
  Codes read;
  float zero;
  const GateCodes* gate_codes;   // null: gates read pre-activations as they are
  const float* c;
  float *h_out, *c_out;          // h_out may be null where codes are made of h
  Codes made;                    // QuantizeLinear(h * factor), of that type
  const float* coding;           // [panel][factor, scale, zero][lanes]
  void* codes_out;
  Bounds h_bounds, c_bounds;

  int64_t across, down;          // tiles in a row, rows of tiles in a map
  int64_t first_line, lines;
  int64_t block, stride;         // tiles whose products are made together; floats from one of their vectors to the next
  float* patches;                // [block][point][tile][stride], what the input transform gives
  unsigned char* direct_tiles;   // by tile: not 0 where it is to be computed by the definition
};

// One step of a ConvGRU, gates z, r, n: h' = (1 - z) n + z h. Its second half, where the reset gate works on h itself, is a convolution of its
// own over r * h. Not read of maps: transformed, direct, bias, peephole, c, c_out.
struct ConvGruStep {
  ConvStep maps;                 // hidden: units. In the second half inputs is 0, and h is r * h
  bool after;                    // the reset gate works on the product
  const float *x_transformed, *x_direct, *x_bias;  // as ConvWeights has them, of z, r, n over x
  const float *h_transformed, *h_direct, *h_bias;  // of z, r, and after n, over h
  const float *n_transformed, *n_direct, *n_bias;  // not after: of n over r * h; its panels are n_width together, one behind another as gates
  int64_t n_width;
  const float* old;              // h as it came
  float *z, *reset_h;            // not after: what the first half leaves, like h; n's part of x stands in h_out
};

}  // namespace edgelstm
