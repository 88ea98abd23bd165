// What one set of instructions offers: the same functions, compiled once for each (kernels.cpp).
//
// Weights come packed: units (elements of h) are grouped in panels of `lanes`; a panel is [inputs][gates][lanes], so that a
// step reads it once, in order. Units beyond the last are padded with zeros.
#pragma once

#include <cstdint>

#include "dot.h"

namespace edgelstm {

// Which equations: the fields of edgelstm.graph.gates.GateVariant. cell_clip 0: none.
struct Variant {
  bool hard_sigmoid = false;
  float alpha = 0.2f, beta = 0.5f;
  bool candidate_relu = false, output_relu = false;
  float cell_clip = 0;
  bool coupled = false;
  __attribute__((always_inline)) int gates() const { return coupled ? 3 : 4; }
};

// What weights are stored as. Sums are float32 whatever it is. kInt8: codes, worth code * scale of their row.
enum class Weights { kFloat, kInt8, kBfloat16 };

// One step of an LSTM. x [rows, inputs], h [rows, width], c [rows, units]; c_out and h_out [rows, units] overlap none of them.
struct LstmStep {
  Variant variant;
  Weights weights;
  const void* panels;              // [panel][inputs + width][gates][lanes]
  const float *scale, *bias;       // [panel][gates][lanes]; scale: of int8 alone, else null
  const float *p_i, *p_f, *p_o;    // [panel][lanes], or null without peepholes
  int64_t inputs, width, units, rows;
  const float *x, *h, *c;
  const Dot* dot;                  // of int8: who multiplies x_rows and h_rows (its lead: inputs % 4) in place of x and h; or null
  const DotRow *x_rows, *h_rows;
  const float* z;                  // [rows, gates * units], added to the sums; or null
  float *h_out, *c_out;
};

// One step of a GRU, gates z, r, n. after: the reset gate works on the product (linear_before_reset).
struct GruStep {
  Variant variant;
  Weights weights;
  const void *x_panels;            // [panel][inputs][3][lanes]
  const void *h_panels;            // after: [panel][units][3][lanes], else [panel][units][2][lanes]
  const void *n_panels;            // not after: [panel][units][1][lanes], over r * h
  const float *x_scale, *h_scale, *n_scale;  // of int8 alone: [panel][gates][lanes], the gates of the panels; else null
  const float *bias;               // [panel][4][lanes]: z, r, n of x, n of h
  bool after;
  int64_t inputs, units, rows;
  const float *x, *h;
  const Dot* dot;                  // as above
  const DotRow *x_rows, *h_rows, *n_rows;  // n_rows: of reset_h
  float *h_out;
  float *z, *reset_h, *n;          // not after: scratch, [rows, units] each
};

// What pre-activations come as: numbers, or codes worth (z - zero) * scale.
enum class Codes { kNone, kInt8, kUint8 };

// How far apart a constant's values lie, from channel to channel and from place to place: its value for both is at channel * channel's
// step + place * place's, which is 0 or 1.
struct Steps {
  int64_t channel, place;
};

// Where what is written is looked at: *bad becomes 1 for NaN and numbers out of low..high, which are finite. bad null: it is not.
struct Bounds {
  float low = 0, high = 0;
  unsigned char* bad = nullptr;
};

// FusedGates over [rows, gates * channels, size] pre-activations.
struct GatesStep {
  Variant variant;
  const float *p_i, *p_f, *p_o;
  Steps p_steps[3];
  int64_t rows, channels, size;
  Codes codes;
  float scale[4], zero[4];  // by gate
  const void* z;
  const float* c;
  float *h_out, *c_out;  // h_out may be null where codes are made of h
  // QuantizeLinear(h * h_factor), as bytes. h_factor null: of h.
  Codes made;
  const float *h_factor, *h_scale, *h_zero;
  Steps factor_steps, code_steps;
  void* codes_out;
};

// Of x [maps, size]: y = x * factor as codes, and (x - (codes - zero) * worth * worth_factor) * factor as further ones. A factor that
// is null is 1. Scales and zero are one number.
struct TwoCodesStep {
  const float *x, *factor, *worth_factor;
  Steps factor_steps, worth_steps;
  int64_t channels, size;  // a map's channel is its number modulo channels
  Codes made;
  float scale, worth, rest_scale, zero;
  void *codes, *rest;
};

// y = activation(W x + b) * factor: a dense layer. activation: 0 none, 1 sigmoid, 2 tanh, 3 relu.
struct DenseStep {
  const float *panels, *bias;      // [panel][inputs][lanes], [panel][lanes]
  int64_t inputs, units, rows;
  const float *x, *factor;         // [rows, inputs]; [rows, units] or null
  float* y;                        // [rows, units]
  int activation;
};

// (x - mean) / sqrt(variance + epsilon) * gain + bias over the last axis of [rows, size].
struct NormStep {
  const float *x, *gain, *bias;
  float* y;
  int64_t rows, size;
  float epsilon;
};

struct Kernels {
  const char* name;
  int lanes;
  void (*lstm)(const LstmStep&, int64_t first_panel, int64_t last_panel);
  void (*gru)(const GruStep&, int64_t first_panel, int64_t last_panel);
  void (*gru_candidate)(const GruStep&, int64_t first_panel, int64_t last_panel);  // second half where not `after`
  void (*gates)(const GatesStep&, int64_t first, int64_t last);  // of rows * channels
  void (*two_codes)(const TwoCodesStep&, int64_t first, int64_t last);  // of maps
  void (*dense)(const DenseStep&, int64_t first_panel, int64_t last_panel);
  void (*norm)(const NormStep&);
  void (*conv_input)(const struct ConvStep&, int64_t first, int64_t last);  // winograd.h
  void (*conv_lstm)(const struct ConvStep&, int64_t first, int64_t last, float* scratch);
  void (*conv_gru)(const struct ConvGruStep&, int64_t first, int64_t last, float* scratch);
  void (*conv_candidate)(const struct ConvGruStep&, int64_t first, int64_t last, float* scratch);  // second half where not `after`
  bool (*within)(const float* values, int64_t count, float low, float high);  // whether all are; these are finite, and NaN lies nowhere
  void (*activate)(int kind, const float* x, float* y, int64_t count);  // 0: sigmoid, 1: tanh; for the tests
  const Dot* dot;  // for int8 weights, where the processor has it; else null
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvx512;
#endif

}  // namespace edgelstm
