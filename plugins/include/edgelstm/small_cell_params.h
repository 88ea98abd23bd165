// A whole LSTM or GRU cell in one launch, for one frame or a window of frames: what it computes, and how a launch is cut.
//
// Blocks share the units of the hidden state; each computes all gates of its units for all streams, and waits for the others
// where it needs their h. Gate order: LSTM i, f, g, o (coupled: i, g, o); GRU r, z, n, with the reset gate applied to the
// product (PyTorch's, cuDNN's, Keras's reset_after):
//   n = tanh(W x + b_x + r (R h + b_h))    h' = (1 - z) n + z h
#pragma once

#include "edgelstm/fused_gates_math.h"

namespace edgelstm {

enum class CellKind : int32_t { kLstm = 0, kGru = 1, kCoupledLstm = 2 };

// All pointers are device memory. Nothing may overlap.
struct SmallCellParams {
    FusedGatesVariant variant;  // LSTMs only
    CellKind kind{CellKind::kLstm};
    DataType type{DataType::kFloat};  // kFloat or kHalf: of weights, x, projected, h and y; everything else is float32
    int32_t inputs{0};                // I; 0: no x
    int32_t hidden{0};                // H
    int32_t streams{0};               // N
    int32_t steps{1};                 // T
    int32_t poolRows{0};              // R
    // [H, gates, Ip + Hp]: of each unit and gate the weights of x, then those of h, each padded with zeros to a multiple
    // of 8 (Ip, Hp). 16-byte aligned.
    void const* weights{nullptr};
    float const* bias{nullptr};       // [4, H]: a row a gate; GRU: r, z, n's b_x, n's b_h
    float const* peepholes{nullptr};  // [3, H] (p_i, p_f, p_o); variant.peephole only
    void const* x{nullptr};           // [T, N, I]
    void const* projected{nullptr};   // [T, N, gates, H] or null: added to the gates (GRU: to n's x part)
    int32_t const* rows{nullptr};     // [N] or null (0 to N - 1): the row of each stream's state in the pool. Outside 0 to
                                      // R - 1 the stream is idle: nothing of it is read or written. No row twice.
    void* h{nullptr};                 // [R, H]
    float* c{nullptr};                // [R, H]; LSTMs only
    void* y{nullptr};                 // [T, N, H] or null
    void* workspace{nullptr};         // workspaceBytes(), 16-byte aligned, zeros before the first launch; one launch at a time
};

constexpr int32_t kCellThreads = 256;
constexpr int32_t kCellWarps = kCellThreads / 32;
constexpr int32_t kMostHidden = 1024;
constexpr int32_t kMostTile = 8;  // streams that a pass over the weights serves

struct SmallCellPlan {
    SmallCellParams params;
    int32_t gates{4};       // rows of weights a unit
    int32_t inputsPadded{0};
    int32_t hiddenPadded{0};
    int32_t units{1};       // of a block; a power of two
    int32_t slices{1};      // warps that share a unit's products
    int32_t tile{1};        // streams of a pass: 1, 2, 4 or 8
    int32_t blocks{1};
    bool held{false};       // weights stay in shared memory
    bool xWide{false};      // rows of x, of the pool's h: read by 16 bytes
    bool hWide{false};
    // Byte offsets in shared memory.
    int32_t frames{0};      // [tile, Ip + Hp]: x and h
    int32_t partial{0};     // [units, slices, 4, tile] floats
    int32_t fresh{0};       // [units, N] floats: h
    int32_t cells{0};       // [units, N] floats: c
    int32_t sharedBytes{0};
};

constexpr int32_t gatesOf(CellKind kind) { return kind == CellKind::kLstm ? 4 : 3; }
constexpr int32_t toEight(int32_t k) { return (k + 7) / 8 * 8; }

#if !defined(__CUDACC_RTC__)

// A barrier, and two sides of h.
inline int64_t workspaceBytes(SmallCellParams const& p) {
    return 16 + int64_t{2} * p.streams * toEight(p.hidden) * sizeOf(p.type);
}

// Null, or what is wrong with the parameters. Looks at the numbers and at which pointers are null.
inline char const* refusal(SmallCellParams const& p) {
    if (p.type != DataType::kFloat && p.type != DataType::kHalf) {
        return "type must be float or half";
    }
    if (p.hidden < 1 || p.hidden > kMostHidden || p.inputs < 0 || p.inputs > 65536) {
        return "hidden must be 1 to 1024, inputs 0 to 65536";
    }
    if (p.streams < 0 || p.streams > 1024 || p.steps < 1 || p.poolRows < 0) {
        return "streams must be 0 to 1024, steps 1 or more, poolRows 0 or more";
    }
    if (p.rows == nullptr && p.streams > p.poolRows) {
        return "without rows the pool needs a row for each stream";
    }
    if (p.kind != CellKind::kGru && p.variant.coupled != (p.kind == CellKind::kCoupledLstm)) {
        return "kind and variant differ in coupled";
    }
    if (p.kind == CellKind::kGru ? p.c != nullptr : p.c == nullptr && p.streams > 0) {
        return "an LSTM has c, a GRU none";
    }
    if (p.streams > 0 && (p.weights == nullptr || p.bias == nullptr || p.h == nullptr || p.workspace == nullptr)) {
        return "weights, bias, h or workspace is null";
    }
    if ((p.x == nullptr) != (p.inputs == 0) || (p.kind != CellKind::kGru && p.variant.peephole && p.peepholes == nullptr)) {
        return "x or the peepholes are null";
    }
    return nullptr;
}

// The cut for a GPU with that many multiprocessors, whose blocks may have that many bytes of shared memory. units: of a
// block, a power of two; 0: chosen here. Blocks wait for each other, so there are no more than multiprocessors;
// sharedBytes above sharedMost says that there is no way.
inline SmallCellPlan planOf(SmallCellParams const& p, int32_t processors, int32_t sharedMost, int32_t units = 0) {
    SmallCellPlan plan;
    plan.params = p;
    plan.gates = gatesOf(p.kind);
    plan.inputsPadded = toEight(p.inputs);
    plan.hiddenPadded = toEight(p.hidden);
    int32_t const width = sizeOf(p.type);
    int32_t const row = (plan.inputsPadded + plan.hiddenPadded) * width;
    while (plan.tile < p.streams && plan.tile < kMostTile) {
        plan.tile *= 2;
    }
    // What one multiprocessor reads and multiplies in the time that blocks need to wait for each other stays in one block.
    int32_t const passes = (p.streams + plan.tile - 1) / plan.tile;
    int64_t const held = int64_t{p.hidden} * plan.gates * row;
    bool const alone = held <= 96 * 1024 && held / width * plan.tile * passes <= 200000;
    int32_t const most = alone ? 1 : processors;
    plan.units = units > 0 ? units : 1;
    while ((p.hidden + plan.units - 1) / plan.units > (units > 0 ? processors : most)) {
        plan.units *= 2;
    }
    plan.slices = plan.units < kCellWarps ? kCellWarps / plan.units : 1;
    plan.blocks = (p.hidden + plan.units - 1) / plan.units;
    int32_t const weights = plan.units * plan.gates * row;
    int32_t const frames = plan.tile * row;
    int32_t const partial = plan.units * plan.slices * 4 * plan.tile * 4;
    int32_t const state = plan.units * p.streams * 4;
    int32_t const rest = frames + partial + 2 * state;
    plan.held = int64_t{p.steps} * passes > 1 && int64_t{weights} + rest <= sharedMost;
    plan.frames = plan.held ? weights : 0;
    plan.partial = plan.frames + frames;
    plan.fresh = plan.partial + partial;
    plan.cells = plan.fresh + state;
    plan.sharedBytes = plan.cells + state;
    auto const wide = [width](void const* from, int32_t length) {
        return reinterpret_cast<uintptr_t>(from) % 16 == 0 && length * width % 16 == 0;
    };
    plan.xWide = wide(p.x, p.inputs);
    plan.hWide = wide(p.h, p.hidden);
    return plan;
}

#endif

}  // namespace edgelstm
