// What one thread does, which kernel a plan takes, and a loop that runs the same on the host.
#pragma once

#include "edgelstm/fused_gates_plan.h"

namespace edgelstm {

EDGELSTM_HD void addTo(int32_t* counter, int32_t count) {
#if defined(__CUDA_ARCH__)
    atomicAdd(counter, count);
#else
    *counter += count;
#endif
}

// kRun values from element `first` on: side by side, or `step` elements apart.
template <DataType kType, int kRun, bool kTogether>
EDGELSTM_HD void loadAs(void const* tensor, int64_t first, int32_t step, float* values) {
    constexpr int kBytes = sizeOf(kType);
    char const* const from = static_cast<char const*>(tensor) + first * kBytes;
    constexpr int kInWord = 4 / kBytes;
    if constexpr (kTogether && kRun > 1) {
        uint32_t words[kRun / kInWord];
        readBytes<kRun * kBytes>(from, words);
EDGELSTM_UNROLL
        for (int i = 0; i < kRun / kInWord; ++i) {
            unpack<kType>(words[i], values + i * kInWord);
        }
    } else {
EDGELSTM_UNROLL
        for (int i = 0; i < kRun; ++i) {
            uint32_t word;
            float some[kInWord];
            readBytes<kBytes>(from + int64_t{i} * step * kBytes, &word);
            unpack<kType>(word, some);
            values[i] = some[0];
        }
    }
}

template <DataType kType, int kRun, bool kTogether>
EDGELSTM_HD void storeAs(void* tensor, int64_t first, int32_t step, float const* values) {
    constexpr int kBytes = sizeOf(kType);
    char* const to = static_cast<char*>(tensor) + first * kBytes;
    constexpr int kInWord = 4 / kBytes;
    if constexpr (kTogether && kRun > 1) {
        uint32_t words[kRun / kInWord];
EDGELSTM_UNROLL
        for (int i = 0; i < kRun / kInWord; ++i) {
            words[i] = pack<kType>(values + i * kInWord);
        }
        writeBytes<kRun * kBytes>(to, words);
    } else {
EDGELSTM_UNROLL
        for (int i = 0; i < kRun; ++i) {
            float const some[4] = {values[i], 0.0F, 0.0F, 0.0F};
            uint32_t const word = pack<kType>(some);
            writeBytes<kBytes>(to + int64_t{i} * step * kBytes, &word);
        }
    }
}

// c and peepholes: float or half, the same for the whole launch, so the branch costs next to nothing.
template <int kRun, bool kTogether>
EDGELSTM_HD void loadC(DataType type, void const* tensor, int64_t first, int32_t step, float* values) {
    if (type == DataType::kFloat) {
        loadAs<DataType::kFloat, kRun, kTogether>(tensor, first, step, values);
    } else {
        loadAs<DataType::kHalf, kRun, kTogether>(tensor, first, step, values);
    }
}

template <int kRun, bool kTogether>
EDGELSTM_HD void storeC(DataType type, void* tensor, int64_t first, int32_t step, float const* values) {
    if (type == DataType::kFloat) {
        storeAs<DataType::kFloat, kRun, kTogether>(tensor, first, step, values);
    } else {
        storeAs<DataType::kHalf, kRun, kTogether>(tensor, first, step, values);
    }
}

template <int kRun, bool kTogether>
EDGELSTM_HD void loadH(DataType type, void const* tensor, int64_t first, int32_t step, float* values) {
    switch (type) {
        case DataType::kFloat: return loadAs<DataType::kFloat, kRun, kTogether>(tensor, first, step, values);
        case DataType::kHalf: return loadAs<DataType::kHalf, kRun, kTogether>(tensor, first, step, values);
        case DataType::kBf16: return loadAs<DataType::kBf16, kRun, kTogether>(tensor, first, step, values);
        default: return loadAs<DataType::kInt8, kRun, kTogether>(tensor, first, step, values);
    }
}

template <int kRun, bool kTogether>
EDGELSTM_HD void storeH(DataType type, void* tensor, int64_t first, int32_t step, float const* values) {
    switch (type) {
        case DataType::kFloat: return storeAs<DataType::kFloat, kRun, kTogether>(tensor, first, step, values);
        case DataType::kHalf: return storeAs<DataType::kHalf, kRun, kTogether>(tensor, first, step, values);
        case DataType::kBf16: return storeAs<DataType::kBf16, kRun, kTogether>(tensor, first, step, values);
        default: return storeAs<DataType::kInt8, kRun, kTogether>(tensor, first, step, values);
    }
}

// The weights of a run, for a map or for a weight a channel.
template <int kRun, Walk kWalk>
EDGELSTM_HD void loadPeephole(Plan const& plan, Peephole const& p, Run const& at, float* weights) {
    DataType const type = plan.params.forms.c.type;
    int32_t const spatial = static_cast<int32_t>(plan.spatial.divisor);
    if (p.map) {
        loadC<kRun, kWalk == Walk::kFlat>(type, p.data, at.first, spatial, weights);
    } else if constexpr (kWalk == Walk::kFlat) {
EDGELSTM_UNROLL
        for (int i = 0; i < kRun; ++i) {
            uint32_t const channel = plan.spatial.quotient(static_cast<uint32_t>(at.first + i));
            loadC<1, true>(type, p.data, channel, 0, weights + i);
        }
    } else {
        loadC<kRun, true>(type, p.data, at.channel, 0, weights);
    }
}

// One thread's work. kRun is plan.run, kWalk plan.walk, kZ the type of z; variant is plan.params.variant, or a
// StandardVariant that equals it.
template <DataType kZ, int kRun, Walk kWalk, class Variant>
EDGELSTM_HD void computeRun(Plan const& plan, Variant const& v, uint32_t block, uint32_t thread) {
    // A float32 z is worth exact exponents; what 16 bits round off is more than they are worth.
    constexpr bool kExact = kZ == DataType::kFloat;
    constexpr bool kFlat = kWalk == Walk::kFlat;
    constexpr bool kZTogether = kWalk != Walk::kChannels;
    FusedGatesParams const& p = plan.params;
    Run const at = locate<kWalk>(plan, kRun, block, thread);
    if (!at.any) {
        return;
    }
    int32_t const spatial = static_cast<int32_t>(plan.spatial.divisor);
    DataType const cType = p.forms.c.type;
    DataType const hType = p.forms.h.type;
    int64_t const inC = int64_t{at.stream} * plan.elements + at.first;
    int64_t const inH =
        kFlat ? inC : int64_t{at.stream} * plan.h.stream + plan.h.offset(at.channel, at.place);

    float c[kRun];
    float h[kRun];
    bool const idle = p.active != nullptr && p.active[at.stream] == 0;
    if (at.padding) {
EDGELSTM_UNROLL
        for (int i = 0; i < kRun; ++i) {
            h[i] = 0.0F;
            c[i] = 0.0F;
        }
    } else if (idle) {
        loadC<kRun, kFlat>(cType, p.c, inC, spatial, c);
        if (kFlat || plan.hVectors) {
            loadH<kRun, true>(hType, p.hOld, inH, 0, h);
        } else {
            loadH<kRun, false>(hType, p.hOld, inH, spatial, h);
        }
    } else {
        constexpr int kGates = 4;
        float z[kGates][kRun] = {};
        int64_t const zStream = int64_t{at.stream} * plan.z.stream;
EDGELSTM_UNROLL
        for (int g = 0; g < kGates; ++g) {
            // Coupled: i, g, o lie at 0, 1, 2, and there is no f.
            int32_t const part = v.coupled && g > 0 ? g - 1 : g;
            if (!v.coupled || g != 1) {
                int32_t const in = kFlat ? part * plan.elements + at.first
                                         : plan.z.offset(part * p.channels + at.channel, at.place);
                loadAs<kZ, kRun, kZTogether>(p.z, zStream + in, spatial, z[g]);
            }
        }
        loadC<kRun, kFlat>(cType, p.c, inC, spatial, c);
        float pI[kRun] = {}, pF[kRun] = {}, pO[kRun] = {};
        if (v.peephole) {
            loadPeephole<kRun, kWalk>(plan, p.pI, at, pI);
            if (!v.coupled) {
                loadPeephole<kRun, kWalk>(plan, p.pF, at, pF);
            }
            loadPeephole<kRun, kWalk>(plan, p.pO, at, pO);
        }
EDGELSTM_UNROLL
        for (int i = 0; i < kRun; ++i) {
            GateInputs const inputs{z[0][i], z[1][i], z[2][i], z[3][i], pI[i], pF[i], pO[i]};
            CellOutputs const out = cell<kExact>(v, inputs, c[i]);
            h[i] = out.h;
            c[i] = out.c;
        }
    }

    if (p.nonFinite != nullptr) {
        int32_t count = 0;
EDGELSTM_UNROLL
        for (int i = 0; i < kRun; ++i) {
            count += (fabsf(h[i]) < plan.hOverflow ? 0 : 1) + (fabsf(c[i]) < plan.cOverflow ? 0 : 1);
        }
        if (count != 0) {
            addTo(p.nonFinite + at.stream, count);
        }
    }
    if (hType == DataType::kInt8 && !idle) {
EDGELSTM_UNROLL
        for (int i = 0; i < kRun; ++i) {
            h[i] = codeOf(h[i], p.hScale, plan.hInverse);
        }
    }
    if (kFlat || plan.hVectors) {
        storeH<kRun, true>(hType, p.h, inH, 0, h);
    } else {
        storeH<kRun, false>(hType, p.h, inH, spatial, h);
    }
    if (!at.padding && !(idle && p.c == p.cOut)) {
        storeC<kRun, kFlat>(cType, p.cOut, inC, spatial, c);
    }
}

#if !defined(__CUDACC_RTC__)

// ---- Which kernel

template <DataType kZ, int kRun, Walk kWalk, class Variant>
struct Kernel {
    static constexpr DataType z = kZ;
    static constexpr int run = kRun;
    static constexpr Walk walk = kWalk;
    using VariantType = Variant;
};

template <DataType kZ, int kRun, Walk kWalk, class Launch>
auto dispatchVariant(Plan const& plan, Launch const& launch) {
    FusedGatesVariant const& v = plan.params.variant;
    if constexpr (kRun > 1) {
        if (isStandard(v) && v.peephole) {
            return launch(Kernel<kZ, kRun, kWalk, StandardVariant<true>>{}, StandardVariant<true>{});
        }
        if (isStandard(v)) {
            return launch(Kernel<kZ, kRun, kWalk, StandardVariant<false>>{}, StandardVariant<false>{});
        }
    }
    return launch(Kernel<kZ, kRun, kWalk, FusedGatesVariant>{}, v);
}

template <DataType kZ, Walk kWalk, class Launch>
auto dispatchRun(Plan const& plan, Launch const& launch) {
    if constexpr (kZ != DataType::kFloat) {
        if (plan.run == 8) {
            return dispatchVariant<kZ, 8, kWalk>(plan, launch);
        }
    }
    if constexpr (kZ == DataType::kFloat || kWalk == Walk::kFlat) {
        if (plan.run == 4) {
            return dispatchVariant<kZ, 4, kWalk>(plan, launch);
        }
    }
    return dispatchVariant<kZ, 1, kWalk>(plan, launch);
}

template <DataType kZ, class Launch>
auto dispatchWalk(Plan const& plan, Launch const& launch) {
    switch (plan.walk) {
        case Walk::kVectors: return dispatchRun<kZ, Walk::kVectors>(plan, launch);
        case Walk::kChannels: return dispatchRun<kZ, Walk::kChannels>(plan, launch);
        default: return dispatchRun<kZ, Walk::kFlat>(plan, launch);
    }
}

// launch(Kernel<...>{}, variant) for the kernel that the plan takes.
template <class Launch>
auto dispatch(Plan const& plan, Launch const& launch) {
    switch (plan.params.forms.z.type) {
        case DataType::kFloat: return dispatchWalk<DataType::kFloat>(plan, launch);
        case DataType::kHalf: return dispatchWalk<DataType::kHalf>(plan, launch);
        default: return dispatchWalk<DataType::kBf16>(plan, launch);
    }
}

// FusedGates on the host, thread by thread: the reference for the kernel, not a fast one. Returns refusal().
inline char const* fusedGatesOnHost(FusedGatesParams const& params) {
    char const* const refused = refusal(params);
    if (refused != nullptr || params.streams == 0) {
        return refused;
    }
    if (params.nonFinite != nullptr) {
        std::memset(params.nonFinite, 0, sizeof(int32_t) * static_cast<size_t>(params.streams));
    }
    Plan const plan = planOf(params);
    dispatch(plan, [&plan](auto kernel, auto const& variant) {
        using K = decltype(kernel);
        for (uint32_t block = 0; block < plan.blocks; ++block) {
            for (uint32_t thread = 0; thread < kThreads; ++thread) {
                computeRun<K::z, K::run, K::walk>(plan, variant, block, thread);
            }
        }
    });
    return nullptr;
}

#endif

}  // namespace edgelstm
