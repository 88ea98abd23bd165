// The kernel's own code on the host, for ctypes: FusedGates thread by thread, its functions one by one, and a watch on
// every access that the loop makes.
#include <cstdint>
#include <cstring>
#include <vector>

namespace watch {

struct Access {
    uint64_t address;
    uint32_t bytes;
    uint32_t thread;  // block * 256 + thread
    uint32_t write;
    uint32_t order;  // how many accesses the thread made before
};

bool on = false;
uint32_t thread = 0;
uint32_t order = 0;
std::vector<Access> accesses;

inline void note(void const* address, uint32_t bytes, bool write) {
    if (on) {
        accesses.push_back({reinterpret_cast<uint64_t>(address), bytes, thread, write, order++});
    }
}

// 0: 2^x and 1/x as the host rounds them; -1, 1: as far off as the hardware's may be; 2: now one, now the other.
int error = 0;

inline float approximately(float value, int ulps) {
    if (error == 0 || !(value >= 0x1p-126F) || value == __builtin_inff()) {
        return value;
    }
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    int const direction = error == 2 ? ((bits * 2654435761U) >> 31 ? 1 : -1) : error;
    bits += static_cast<uint32_t>(direction * ulps);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace watch

#define EDGELSTM_ON_ACCESS(address, bytes, write) watch::note(address, bytes, write)
#define EDGELSTM_APPROXIMATELY(value, ulps) watch::approximately(value, ulps)
#include "edgelstm/fused_gates_run.h"

using namespace edgelstm;

extern "C" {

uint32_t size_of_params() { return sizeof(FusedGatesParams); }

void approximate(int error) { watch::error = error; }

char const* fused_gates(FusedGatesParams const* params) { return fusedGatesOnHost(*params); }

bool supported(FusedGatesForms const* forms) { return formsSupported(*forms); }

// The loop with the watch on; the accesses stay until the next call. Returns how many there were.
uint64_t fused_gates_watched(FusedGatesParams const* params, watch::Access const** accesses) {
    watch::accesses.clear();
    watch::on = true;
    Plan const plan = planOf(*params);
    dispatch(plan, [&plan](auto kernel, auto const& variant) {
        using K = decltype(kernel);
        for (uint32_t block = 0; block < plan.blocks; ++block) {
            for (uint32_t thread = 0; thread < kThreads; ++thread) {
                watch::thread = block * kThreads + thread;
                watch::order = 0;
                computeRun<K::z, K::run, K::walk>(plan, variant, block, thread);
            }
        }
    });
    watch::on = false;
    *accesses = watch::accesses.data();
    return watch::accesses.size();
}

uint32_t size_of_plan() { return sizeof(Plan); }

void plan_of(FusedGatesParams const* params, Plan* plan) { *plan = planOf(*params); }

// Elements a thread computes for these parameters.
int32_t run_length(FusedGatesParams const* params) { return planOf(*params).run; }

// which: 0 sigmoid, 1 sigmoid with exact exponents, 2 tanh
void activate(int which, float const* x, float* y, uint64_t n) {
    for (uint64_t i = 0; i < n; ++i) {
        y[i] = worth(which == 0 ? sigmoid<false>(x[i]) : which == 1 ? sigmoid<true>(x[i]) : edgelstm::tanh(x[i]));
    }
}

void codes(float const* h, float scale, float* codes, uint64_t n) {
    for (uint64_t i = 0; i < n; ++i) {
        codes[i] = codeOf(h[i], scale, 1.0F / scale);
    }
}

void to_half(float const* x, uint16_t* y, uint64_t n) {
    for (uint64_t i = 0; i < n; ++i) {
        y[i] = floatToHalf(x[i]);
    }
}

void from_half(uint16_t const* x, float* y, uint64_t n) {
    for (uint64_t i = 0; i < n; ++i) {
        y[i] = halfToFloat(x[i]);
    }
}

void to_bf16(float const* x, uint16_t* y, uint64_t n) {
    for (uint64_t i = 0; i < n; ++i) {
        y[i] = floatToBf16(x[i]);
    }
}

void quotients(uint32_t divisor, uint32_t const* n, uint32_t* quotients, uint64_t count) {
    FastDivisor const fast(divisor);
    for (uint64_t i = 0; i < count; ++i) {
        quotients[i] = fast.quotient(n[i]);
    }
}
}
