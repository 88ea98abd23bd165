// What FusedGates computes and on which tensors: plain structs. No TensorRT, no CUDA.
//
// The equations are those of edgelstm/graph/gates.py. z holds the pre-activations of the gates in the order i, f, g, o
// (coupled: i, g, o, with f = 1 - i); arithmetic is in float32 whatever the tensors hold.
#pragma once

#include "edgelstm/standard.h"

namespace edgelstm {

// Element types. The values are those of nvinfer1::DataType.
enum class DataType : int32_t {
    kAny = -1,  // not known yet: only in questions to isSupported()
    kFloat = 0,
    kHalf = 1,
    kInt8 = 2,
    kBf16 = 7,
};

// How a tensor of K channels and S places (the product of the spatial sizes) lies in memory, stream by stream.
// The values are those of nvinfer1::TensorFormat; kDHWC8 and kCDHW32 lie as kHwc8 and kChw32 do.
// Channels past K are padding: never read, and written as zeros in h.
enum class Layout : int32_t {
    kAny = -1,    // not known yet: only in questions to isSupported()
    kLinear = 0,  // [K, S]
    kHwc8 = 2,    // [S, K rounded up to 8]
    kChw32 = 5,   // [K rounded up to 32, / 32, S, 32]
};

struct TensorForm {
    DataType type{DataType::kAny};
    Layout layout{Layout::kAny};
};

// h_old has the form of h, c_out that of c; peepholes are linear, in the type of c.
struct FusedGatesForms {
    TensorForm z;  // K = gates * channels: gate g of channel k is channel g * channels + k
    TensorForm c;  // K = channels
    TensorForm h;  // K = channels
};

// The variant: GateVariant.plugin_fields() of edgelstm/graph/gates.py.
struct FusedGatesVariant {
    bool peephole{false};       // i and f see the old c, o the new one
    bool hardSigmoid{false};    // clip(alpha * x + beta, 0, 1) in place of the sigmoid
    float alpha{0.2F};
    float beta{0.5F};
    bool candidateRelu{false};  // relu in place of tanh for g
    bool outputRelu{false};     // relu in place of tanh for c_out on its way to h
    float cellClip{0.0F};       // c_out is clipped to [-cellClip, cellClip] before o and h see it; 0: it is not
    bool coupled{false};        // f = 1 - i, and z has no f

    constexpr int32_t gates() const { return coupled ? 3 : 4; }
};

// One peephole: a weight for each channel [C], or for each channel and place [C, S].
struct Peephole {
    void const* data{nullptr};
    bool map{false};
};

// All pointers are device memory. c_out may be c itself and h h_old (in place); no other output may overlap anything.
// Pointers aligned to 16 bytes make wide accesses possible; others are right too, but slower.
struct FusedGatesParams {
    FusedGatesVariant variant;
    FusedGatesForms forms;
    float hScale{0.0F};  // int8 h only: the code is saturate(round half to even(h / hScale)); NaN gives 0

    int32_t streams{0};   // N; 0 is nothing to do
    int32_t channels{0};  // C
    int64_t spatial{1};   // S

    void const* z{nullptr};               // [N, gates * C, S]
    void const* c{nullptr};               // [N, C, S]
    Peephole pI, pF, pO;                  // variant.peephole only (pF: not when coupled)
    void const* hOld{nullptr};            // as h; needed if active is given
    int32_t const* active{nullptr};       // [N] or null: a stream with 0 is idle, h = h_old and c_out = c
    void* h{nullptr};                     // [N, C, S]
    void* cOut{nullptr};                  // [N, C, S]
    int32_t* nonFinite{nullptr};          // [N] or null: how many values of the stream's h and c_out are NaN or infinite,
                                          // as stored (int8 h: before it becomes a code; none when idle)
};

}  // namespace edgelstm
