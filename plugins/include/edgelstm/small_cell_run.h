// What a block of the small-cell kernel does. CUDA code; the tests run it on the host, every thread a coroutine
// (tests/kernels/emulator.h).
#pragma once

#include "edgelstm/fused_gates_run.h"
#include "edgelstm/small_cell_params.h"

// A thread that waits for another block lets others go on: on the host only.
#ifndef EDGELSTM_YIELD
#define EDGELSTM_YIELD() ((void)0)
#endif

namespace edgelstm {

// ---- All blocks wait for each other (the scheme of cooperative groups): each adds 1, block 0 what flips the top bit when
// all have come. So the counter is right for the next launch whatever its number of blocks.

__device__ __forceinline__ uint32_t arriveAtBarrier(uint32_t* barrier) {
    __syncthreads();
    uint32_t before = 0;
    if (threadIdx.x == 0 && gridDim.x > 1) {
        __threadfence();
        before = atomicAdd(barrier, blockIdx.x == 0 ? 0x80000000U - (gridDim.x - 1U) : 1U);
    }
    return before;
}

__device__ __forceinline__ void waitAtBarrier(uint32_t* barrier, uint32_t before) {
    if (threadIdx.x == 0 && gridDim.x > 1) {
        while (((before ^ *static_cast<uint32_t volatile*>(barrier)) & 0x80000000U) == 0) {
            EDGELSTM_YIELD();
        }
        __threadfence();
    }
    __syncthreads();
}

// ---- One block

template <DataType kType, CellKind kKind, int kTile, bool kHeld>
struct SmallCellBlock {
    static constexpr int kWidth = sizeOf(kType);
    static constexpr int kInChunk = 16 / kWidth;
    static constexpr int kRows = kKind == CellKind::kLstm ? 4 : 3;
    static constexpr int kSums = 4 * kTile;

    SmallCellPlan const& plan;
    SmallCellParams const& p;
    char* shared;
    int32_t thread, firstUnit, units, rowLength;

    __device__ __forceinline__ SmallCellBlock(SmallCellPlan const& plan_, char* shared_)
        : plan(plan_), p(plan_.params), shared(shared_), thread(static_cast<int32_t>(threadIdx.x)),
          firstUnit(static_cast<int32_t>(blockIdx.x) * plan_.units),
          units(plan_.units < plan_.params.hidden - static_cast<int32_t>(blockIdx.x) * plan_.units
                    ? plan_.units
                    : plan_.params.hidden - static_cast<int32_t>(blockIdx.x) * plan_.units),
          rowLength(plan_.inputsPadded + plan_.hiddenPadded) {}

    __device__ __forceinline__ float* partial() const { return reinterpret_cast<float*>(shared + plan.partial); }
    __device__ __forceinline__ float* fresh() const { return reinterpret_cast<float*>(shared + plan.fresh); }
    __device__ __forceinline__ float* cells() const { return reinterpret_cast<float*>(shared + plan.cells); }

    // The pool's row of a stream, -1 where it is idle.
    __device__ __forceinline__ int32_t rowOf(int32_t stream) const {
        int32_t const row = p.rows == nullptr ? stream : p.rows[stream];
        return row < p.poolRows ? row : -1;
    }

    __device__ __forceinline__ char* side(int32_t step) const {
        int64_t const bytes = int64_t{p.streams} * plan.hiddenPadded * kWidth;
        return static_cast<char*>(p.workspace) + 16 + (step & 1) * bytes;
    }

    __device__ __forceinline__ char const* weightsInMemory() const {
        return static_cast<char const*>(p.weights) + int64_t{firstUnit} * kRows * rowLength * kWidth;
    }

    __device__ __forceinline__ void holdWeights() const {
        int32_t const chunks = units * kRows * rowLength / kInChunk;
        for (int32_t k = thread; k < chunks; k += kCellThreads) {
            uint32_t words[4];
            readBytes<16>(weightsInMemory() + int64_t{k} * 16, words);
            writeBytes<16>(shared + k * 16, words);
        }
    }

    __device__ __forceinline__ void loadCells() const {
        for (int32_t k = thread; k < units * p.streams; k += kCellThreads) {
            int32_t const row = rowOf(k / units);
            if (row >= 0) {
                float value;
                loadAs<DataType::kFloat, 1, true>(p.c, int64_t{row} * p.hidden + firstUnit + k % units, 0, &value);
                cells()[k] = value;
            }
        }
    }

    // 16 bytes of a row of `length` values from value `first` on; zeros past its end, and where there is no row.
    __device__ __forceinline__ void chunk(
        char const* row, int32_t first, int32_t length, bool wide, uint32_t* words) const {
        words[0] = words[1] = words[2] = words[3] = 0;
        if (row == nullptr) {
            return;
        }
        if (wide && first + kInChunk <= length) {
            readBytes<16>(row + int64_t{first} * kWidth, words);
            return;
        }
EDGELSTM_UNROLL
        for (int i = 0; i < kInChunk; ++i) {
            if (first + i < length) {
                uint32_t word;
                readBytes<kWidth>(row + int64_t{first + i} * kWidth, &word);
                words[i * kWidth / 4] |= kWidth == 4 ? word : word << (16 * (i & 1));
            }
        }
    }

    // x and h of up to kTile streams into shared memory.
    __device__ __forceinline__ void loadFrames(int32_t step, int32_t firstStream) const {
        int32_t const inputChunks = plan.inputsPadded / kInChunk;
        int32_t const chunks = rowLength / kInChunk;
        for (int32_t k = thread; k < kTile * chunks; k += kCellThreads) {
            int32_t const stream = firstStream + k / chunks;
            int32_t const at = k % chunks;
            int32_t const row = stream < p.streams ? rowOf(stream) : -1;
            uint32_t words[4];
            if (at < inputChunks) {
                char const* const from = static_cast<char const*>(p.x) +
                                         (int64_t{step} * p.streams + stream) * p.inputs * kWidth;
                chunk(row < 0 ? nullptr : from, at * kInChunk, p.inputs, plan.xWide, words);
            } else if (step == 0) {
                char const* const from = static_cast<char const*>(p.h) + int64_t{row} * p.hidden * kWidth;
                chunk(row < 0 ? nullptr : from, (at - inputChunks) * kInChunk, p.hidden, plan.hWide, words);
            } else {
                char const* const from = side(step) + int64_t{stream} * plan.hiddenPadded * kWidth;
                chunk(row < 0 ? nullptr : from, (at - inputChunks) * kInChunk, p.hidden, true, words);
            }
            writeBytes<16>(shared + plan.frames + k * 16, words);
        }
    }

    __device__ __forceinline__ static void unpackChunk(uint32_t const* words, float* values) {
EDGELSTM_UNROLL
        for (int i = 0; i < 4; ++i) {
            unpack<kType>(words[i], values + i * (4 / kWidth));
        }
    }

    // Products of one unit's weights from chunk `begin` up to `end` with the frames. Row kLast of the weights belongs to
    // sum kLastSum: of a GRU, n's products with x and with h are kept apart.
    template <int kLastSum>
    __device__ __forceinline__ void products(
        char const* weights, int32_t begin, int32_t end, int32_t stride, float (&sums)[kSums]) const {
        for (int32_t k = begin; k < end; k += stride) {
            float frames[kTile][kInChunk];
EDGELSTM_UNROLL
            for (int n = 0; n < kTile; ++n) {
                uint32_t words[4];
                readBytes<16>(shared + plan.frames + (int64_t{n} * rowLength / kInChunk + k) * 16, words);
                unpackChunk(words, frames[n]);
            }
EDGELSTM_UNROLL
            for (int g = 0; g < kRows; ++g) {
                constexpr int kLast = kRows - 1;
                int const sum = g == kLast ? kLastSum : g;
                uint32_t words[4];
                float row[kInChunk];
                readBytes<16>(weights + (int64_t{g} * rowLength / kInChunk + k) * 16, words);
                unpackChunk(words, row);
EDGELSTM_UNROLL
                for (int n = 0; n < kTile; ++n) {
EDGELSTM_UNROLL
                    for (int i = 0; i < kInChunk; ++i) {
                        sums[sum * kTile + n] = fmaf(row[i], frames[n][i], sums[sum * kTile + n]);
                    }
                }
            }
        }
    }

    // Sums over a warp: halves of the sums go to halves of the lanes, so kSums values take kSums - 1 exchanges and a few.
    // Lane l ends with sum l * kSums / 32.
    __device__ __forceinline__ static float overWarp(float (&sums)[kSums], uint32_t lane) {
        int left = kSums;
        int distance = 16;
EDGELSTM_UNROLL
        for (int halving = 0; halving < 5; ++halving, distance /= 2) {
            if (left > 1) {
                left /= 2;
                bool const upper = (lane & static_cast<uint32_t>(distance)) != 0;
EDGELSTM_UNROLL
                for (int i = 0; i < kSums / 2; ++i) {
                    if (i < left) {
                        float const given = upper ? sums[i] : sums[i + left];
                        float const kept = upper ? sums[i + left] : sums[i];
                        sums[i] = kept + __shfl_xor_sync(0xFFFFFFFFU, given, distance);
                    }
                }
            } else {
                sums[0] += __shfl_xor_sync(0xFFFFFFFFU, sums[0], distance);
            }
        }
        return sums[0];
    }

    // All gates of the block's units for the streams in shared memory, a warp a unit or a slice of one.
    __device__ __forceinline__ void multiply() const {
        int32_t const warp = thread / 32;
        uint32_t const lane = static_cast<uint32_t>(thread) % 32U;
        int32_t const slice = warp % plan.slices;
        int32_t const inputChunks = plan.inputsPadded / kInChunk;
        int32_t const chunks = rowLength / kInChunk;
        int32_t const stride = 32 * plan.slices;
        int32_t const begin = slice * 32 + static_cast<int32_t>(lane);
        for (int32_t unit = warp / plan.slices; unit < units; unit += kCellWarps / plan.slices) {
            int64_t const offset = int64_t{unit} * kRows * rowLength * kWidth;
            char const* const weights = kHeld ? shared + offset : weightsInMemory() + offset;
            float sums[kSums] = {};
            if constexpr (kKind == CellKind::kGru) {
                products<2>(weights, begin, inputChunks, stride, sums);
                int32_t const skipped = begin < inputChunks ? (inputChunks - begin + stride - 1) / stride * stride : 0;
                products<3>(weights, begin + skipped, chunks, stride, sums);
            } else {
                products<kRows - 1>(weights, begin, chunks, stride, sums);
            }
            float const sum = overWarp(sums, lane);
            constexpr uint32_t kLanes = 32 / kSums;
            if (lane % kLanes == 0) {
                partial()[(unit * plan.slices + slice) * kSums + static_cast<int32_t>(lane / kLanes)] = sum;
            }
        }
    }

    // h and c of the block's units for the streams in shared memory.
    __device__ __forceinline__ void update(int32_t step, int32_t firstStream) const {
        for (int32_t k = thread; k < units * kTile; k += kCellThreads) {
            int32_t const unit = k / kTile;
            int32_t const n = k % kTile;
            int32_t const stream = firstStream + n;
            if (stream >= p.streams || rowOf(stream) < 0) {
                continue;
            }
            int32_t const neuron = firstUnit + unit;
            float z[4];
EDGELSTM_UNROLL
            for (int g = 0; g < 4; ++g) {
                z[g] = g < kRows || kKind == CellKind::kGru ? p.bias[g * p.hidden + neuron] : 0.0F;
                for (int32_t slice = 0; slice < plan.slices; ++slice) {
                    z[g] += partial()[(unit * plan.slices + slice) * kSums + g * kTile + n];
                }
            }
            if (p.projected != nullptr) {
EDGELSTM_UNROLL
                for (int g = 0; g < kRows; ++g) {
                    float value;
                    int64_t const at = ((int64_t{step} * p.streams + stream) * kRows + g) * p.hidden + neuron;
                    loadAs<kType, 1, false>(p.projected, at, 0, &value);
                    z[g] += value;
                }
            }
            int32_t const at = stream * units + unit;
            if constexpr (kKind == CellKind::kGru) {
                float old;
                loadAs<kType, 1, false>(
                    shared + plan.frames, int64_t{n} * rowLength + plan.inputsPadded + neuron, 0, &old);
                float const reset = worth(sigmoid<true>(z[0]));
                float const kept = worth(sigmoid<true>(z[1]));
                float const taken = worth(sigmoid<true>(-z[1]));  // 1 - kept, which loses nothing when it is small
                float const candidate = worth(tanh(fmaf(reset, z[3], z[2])));
                fresh()[at] = fmaf(taken, candidate, kept * old);
            } else {
                GateInputs in{z[0], z[1], z[2], z[3], 0.0F, 0.0F, 0.0F};
                if constexpr (kKind == CellKind::kCoupledLstm) {
                    in.f = 0.0F, in.g = z[1], in.o = z[2];
                }
                if (p.variant.peephole) {
                    in.pI = p.peepholes[neuron];
                    in.pF = p.peepholes[p.hidden + neuron];
                    in.pO = p.peepholes[2 * p.hidden + neuron];
                }
                CellOutputs const out = cell<true>(p.variant, in, cells()[at]);
                fresh()[at] = out.h;
                cells()[at] = out.c;
            }
        }
    }

    // h of this step: for the others, or in the last step into the pool; and y.
    __device__ __forceinline__ void store(int32_t step) const {
        bool const last = step == p.steps - 1;
        for (int32_t k = thread; k < units * p.streams; k += kCellThreads) {
            int32_t const stream = k / units;
            int32_t const row = rowOf(stream);
            if (row < 0) {
                continue;
            }
            int32_t const neuron = firstUnit + k % units;
            float const value = fresh()[k];
            if (last) {
                storeAs<kType, 1, false>(p.h, int64_t{row} * p.hidden + neuron, 0, &value);
                if constexpr (kKind != CellKind::kGru) {
                    storeAs<DataType::kFloat, 1, false>(p.c, int64_t{row} * p.hidden + neuron, 0, cells() + k);
                }
            } else {
                storeAs<kType, 1, false>(side(step + 1), int64_t{stream} * plan.hiddenPadded + neuron, 0, &value);
            }
            if (p.y != nullptr) {
                int64_t const at = (int64_t{step} * p.streams + stream) * p.hidden + neuron;
                storeAs<kType, 1, false>(p.y, at, 0, &value);
            }
        }
    }

    __device__ __forceinline__ void run() const {
        uint32_t* const barrier = static_cast<uint32_t*>(p.workspace);
        if constexpr (kHeld) {
            holdWeights();
        }
        if constexpr (kKind != CellKind::kGru) {
            loadCells();
        }
        for (int32_t step = 0; step < p.steps; ++step) {
            uint32_t before = 0;
            for (int32_t first = 0; first < p.streams; first += kTile) {
                __syncthreads();  // the last tile's frames and sums are done with
                loadFrames(step, first);
                if (p.steps == 1 && first + kTile >= p.streams) {
                    // One step reads and writes the same rows: nobody writes before all have read.
                    before = arriveAtBarrier(barrier);
                } else {
                    __syncthreads();
                }
                multiply();
                __syncthreads();
                update(step, first);
            }
            if (p.steps == 1) {
                waitAtBarrier(barrier, before);
            } else {
                __syncthreads();
            }
            store(step);
            if (step + 1 < p.steps) {
                before = arriveAtBarrier(barrier);
                waitAtBarrier(barrier, before);
            }
        }
    }
};

}  // namespace edgelstm
