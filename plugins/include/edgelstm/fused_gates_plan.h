// Which forms there are kernels for, and where everything lies: what each thread of a launch works on.
//
// Host code makes a Plan from the parameters; locate() tells a thread of any block its run of elements. The launcher
// and the host loop use the same Plan.
#pragma once

#include "edgelstm/fused_gates_math.h"

namespace edgelstm {

// ---- Supported forms: the one table, for the launcher, isSupported(), the plugin's adapters and the tests.

constexpr uint32_t setOf(DataType type) { return 1U << static_cast<int32_t>(type); }
constexpr uint32_t kFloatOrHalf = setOf(DataType::kFloat) | setOf(DataType::kHalf);
constexpr uint32_t kHalves = setOf(DataType::kHalf) | setOf(DataType::kBf16);
constexpr uint32_t kFloats = kFloatOrHalf | setOf(DataType::kBf16);
constexpr uint32_t kCodes = setOf(DataType::kInt8);

struct FormsRow {
    Layout z, c, h;
    uint32_t zTypes, cTypes, hTypes;  // any of these together
};

constexpr FormsRow kSupported[] = {
    // z               c                h                z types       c types       h types
    {Layout::kLinear, Layout::kLinear, Layout::kLinear, kFloats, kFloatOrHalf, kFloats | kCodes},
    {Layout::kLinear, Layout::kLinear, Layout::kHwc8, kFloats, kFloatOrHalf, kHalves},
    {Layout::kLinear, Layout::kLinear, Layout::kChw32, kFloats, kFloatOrHalf, kCodes},
    {Layout::kHwc8, Layout::kLinear, Layout::kLinear, kHalves, kFloatOrHalf, kFloats | kCodes},
    {Layout::kHwc8, Layout::kLinear, Layout::kHwc8, kHalves, kFloatOrHalf, kHalves},
    {Layout::kHwc8, Layout::kLinear, Layout::kChw32, kHalves, kFloatOrHalf, kCodes},
    {Layout::kChw32, Layout::kLinear, Layout::kLinear, kFloatOrHalf, kFloatOrHalf, kFloats | kCodes},
    {Layout::kChw32, Layout::kLinear, Layout::kChw32, kFloatOrHalf, kFloatOrHalf, kCodes},
};

constexpr bool fits(TensorForm form, Layout layout, uint32_t types) {
    return (form.layout == Layout::kAny || form.layout == layout) &&
           (form.type == DataType::kAny || (types & setOf(form.type)) != 0);
}

inline bool formsSupported(FusedGatesForms const& forms) {
    for (FormsRow const& row : kSupported) {
        if (fits(forms.z, row.z, row.zTypes) && fits(forms.c, row.c, row.cTypes) && fits(forms.h, row.h, row.hTypes)) {
            return true;
        }
    }
    return false;
}

// ---- Index arithmetic

// n / divisor for n below 2^31, without dividing: Granlund & Montgomery 1994, section 4.
struct FastDivisor {
    uint32_t divisor{1};
    uint32_t multiplier{1};
    uint32_t shift{0};

    FastDivisor() = default;
    explicit FastDivisor(uint32_t d) : divisor{d} {
        while ((uint64_t{1} << shift) < d) {
            ++shift;
        }
        multiplier = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - d)) / d + 1);
    }

    EDGELSTM_HD uint32_t quotient(uint32_t n) const {
#if defined(__CUDA_ARCH__)
        return (__umulhi(n, multiplier) + n) >> shift;
#else
        return (static_cast<uint32_t>((uint64_t{n} * multiplier) >> 32) + n) >> shift;
#endif
    }
};

// Where channel k at place s of a stream lies, in elements: rows of up to 2^blockLog channels.
//   linear: (k) * S + s       HWC8: s * (K rounded up to 8) + k      CHW32: (k / 32) * 32 S + s * 32 + k % 32
struct Rows {
    int32_t blockLog{0};
    int32_t blockStride{0};
    int32_t placeStride{0};
    int64_t stream{0};  // elements of a stream, padding included

    EDGELSTM_HD int32_t offset(int32_t k, int32_t s) const {
        int32_t const mask = static_cast<int32_t>((1U << blockLog) - 1U);
        return (k >> blockLog) * blockStride + s * placeStride + (k & mask);
    }
};

constexpr int64_t roundedUp(int64_t k, int64_t to) { return (k + to - 1) / to * to; }

constexpr int32_t channelMultiple(Layout layout) {
    return layout == Layout::kChw32 ? 32 : layout == Layout::kHwc8 ? 8 : 1;
}

inline Rows rowsOf(Layout layout, int64_t channels, int64_t spatial) {
    int64_t const padded = roundedUp(channels, channelMultiple(layout));
    auto const small = [](int64_t value) { return static_cast<int32_t>(value); };
    switch (layout) {
        case Layout::kChw32: return {5, small(32 * spatial), 32, padded * spatial};
        case Layout::kHwc8: return {31, 0, small(padded), padded * spatial};
        default: return {0, small(spatial), 1, padded * spatial};
    }
}

// ---- Plan

// How a thread's run of elements lies.
enum class Walk : int32_t {
    kFlat,      // everything is linear: a run goes along the elements of a stream, whatever their channel
    kVectors,   // a run is of channels at one place, side by side in z
    kChannels,  // a run is of channels at one place, S elements apart in z
};

constexpr int32_t kThreads = 256;  // of a block

// Elements of a thread: 16 bytes of the widest tensor that holds them side by side, so that neighbouring threads leave
// no gap in any access.
inline int32_t runLength(FusedGatesForms const& forms, Walk walk) {
    bool const floats = forms.z.type == DataType::kFloat ||
                        (walk == Walk::kFlat && (forms.c.type == DataType::kFloat || forms.h.type == DataType::kFloat));
    return floats ? 4 : 8;
}

struct Plan {
    FusedGatesParams params;
    Walk walk{Walk::kFlat};
    int32_t run{1};  // elements of a thread: runLength(), or 1 where sizes or addresses do not allow wide accesses
    Rows z, h;
    int32_t elements{0};      // C * S
    int32_t hChannels{0};     // C and its padding in h
    bool hVectors{false};     // h has its channels side by side
    float hInverse{0.0F};     // 1 / hScale
    float hOverflow{0.0F};    // overflowOf() the types of h and c
    float cOverflow{0.0F};
    FastDivisor spatial;      // S
    // kFlat: runs of a stream. Otherwise: tiles of a stream along the channels, and along the places.
    FastDivisor runs, channelTiles, placeTiles;
    int32_t tileLog{0};  // runs in a tile, as a power of two; the tile has kThreads runs in all
    int32_t laneLog{0};  // how many of those bits lie in the low bits of the lane
    uint32_t blocks{0};
};

// A thread's run of elements.
struct Run {
    bool any;      // false: nothing is left for this thread
    bool padding;  // only h's padding, to be zeroed
    int32_t stream;
    int32_t first;    // its first element: channel * S + place
    int32_t channel;  // kFlat: not set
    int32_t place;    // kFlat: not set
};

// A tile is up to 8 runs of channels wide and as many places long as makes kThreads. A warp takes a part of it that reads
// whole 32-byte sectors of every tensor: 4 runs at 8 places where all that is linear is float32, else 2 runs at 16 places.
template <Walk kWalk>
EDGELSTM_HD Run locate(Plan const& plan, int32_t run, uint32_t block, uint32_t thread) {
    if constexpr (kWalk == Walk::kFlat) {
        uint32_t const index = block * kThreads + thread;
        uint32_t const stream = plan.runs.quotient(index);
        int32_t const first = static_cast<int32_t>(index - stream * plan.runs.divisor) * run;
        bool const any = stream < static_cast<uint32_t>(plan.params.streams);
        return {any, false, static_cast<int32_t>(stream), first, 0, 0};
    } else {
        uint32_t const rest = plan.channelTiles.quotient(block);
        uint32_t const channelTile = block - rest * plan.channelTiles.divisor;
        uint32_t const stream = plan.placeTiles.quotient(rest);
        uint32_t const placeTile = rest - stream * plan.placeTiles.divisor;

        uint32_t const lane = thread & 31U;
        uint32_t const warp = thread >> 5;
        int32_t const warpLog = plan.tileLog - plan.laneLog;
        uint32_t const runInTile =
            (lane & ((1U << plan.laneLog) - 1U)) | (warp & ((1U << warpLog) - 1U)) << plan.laneLog;
        uint32_t const placeInTile = (lane >> plan.laneLog) | (warp >> warpLog) << (5 - plan.laneLog);

        int32_t const channel = static_cast<int32_t>((channelTile << plan.tileLog) + runInTile) * run;
        int32_t const place = static_cast<int32_t>((placeTile << (8 - plan.tileLog)) + placeInTile);
        bool const inside = place < static_cast<int32_t>(plan.spatial.divisor);
        return {inside && channel < plan.hChannels,
                channel >= plan.params.channels,
                static_cast<int32_t>(stream),
                channel * static_cast<int32_t>(plan.spatial.divisor) + place,
                channel,
                place};
    }
}

#if !defined(__CUDACC_RTC__)

inline bool aligned(void const* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

// Null, or what is wrong with the parameters.
inline char const* refusal(FusedGatesParams const& p) {
    FusedGatesForms const& f = p.forms;
    for (TensorForm const form : {f.z, f.c, f.h}) {
        if (form.type == DataType::kAny || form.layout == Layout::kAny) {
            return "a type or layout is not set";
        }
    }
    if (!formsSupported(f)) {
        return "there is no kernel for these types and layouts";
    }
    if (p.streams < 0 || p.channels < 1 || p.spatial < 1) {
        return "streams must be 0 or more, channels and spatial 1 or more";
    }
    FusedGatesVariant const& v = p.variant;
    int64_t const widest = roundedUp(int64_t{v.gates()} * p.channels, 32);
    if (p.spatial > INT32_MAX || widest * p.spatial > INT32_MAX) {
        return "a stream of z has 2^31 elements or more";
    }
    // A launch has at most a thread for each element, and numbers them with 31 bits.
    if (roundedUp(p.channels, 32) * p.spatial > (INT32_MAX - kThreads) / (p.streams + int64_t{1})) {
        return "all streams together have 2^31 elements or more";
    }
    if (!(v.cellClip >= 0.0F && v.cellClip < INFINITY && std::isfinite(v.alpha) && std::isfinite(v.beta))) {
        return "alpha and beta must be finite, cellClip finite and 0 or more";
    }
    if (f.h.type == DataType::kInt8 && !(p.hScale >= 0x1p-126F && p.hScale < INFINITY)) {
        return "int8 h needs an hScale above 0 that is a normal float";
    }
    if (p.streams == 0) {
        return nullptr;
    }
    if (p.z == nullptr || p.c == nullptr || p.h == nullptr || p.cOut == nullptr) {
        return "z, c, h or cOut is null";
    }
    if (v.peephole && (p.pI.data == nullptr || p.pO.data == nullptr || (!v.coupled && p.pF.data == nullptr))) {
        return "a peephole is null";
    }
    if (p.active != nullptr && p.hOld == nullptr) {
        return "active without hOld";
    }
    return nullptr;
}

// The plan for parameters without a refusal().
inline Plan planOf(FusedGatesParams const& p) {
    FusedGatesForms const& f = p.forms;
    int32_t const spatial = static_cast<int32_t>(p.spatial);
    Plan plan;
    plan.params = p;
    plan.z = rowsOf(f.z.layout, int64_t{p.variant.gates()} * p.channels, spatial);
    plan.h = rowsOf(f.h.layout, p.channels, spatial);
    plan.elements = p.channels * spatial;
    plan.hVectors = f.h.layout != Layout::kLinear;
    plan.hChannels = static_cast<int32_t>(roundedUp(p.channels, channelMultiple(f.h.layout)));
    plan.hOverflow = overflowOf(f.h.type);
    plan.cOverflow = overflowOf(f.c.type);
    plan.hInverse = f.h.type == DataType::kInt8 ? 1.0F / p.hScale : 0.0F;
    plan.spatial = FastDivisor(static_cast<uint32_t>(spatial));
    plan.walk = f.z.layout != Layout::kLinear ? Walk::kVectors : plan.hVectors ? Walk::kChannels : Walk::kFlat;

    int32_t const run = runLength(f, plan.walk);
    bool const whole = (plan.walk == Walk::kFlat ? plan.elements : p.channels) % run == 0;
    bool const wide = aligned(p.z) && aligned(p.c) && aligned(p.h) && aligned(p.cOut) && aligned(p.hOld) &&
                      (!p.variant.peephole || (aligned(p.pI.data) && aligned(p.pF.data) && aligned(p.pO.data)));
    plan.run = whole && wide ? run : 1;

    uint32_t const streams = static_cast<uint32_t>(p.streams);
    if (plan.walk == Walk::kFlat) {
        uint32_t const runs = static_cast<uint32_t>(plan.elements / plan.run);
        plan.runs = FastDivisor(runs);
        plan.blocks = (streams * runs + kThreads - 1) / kThreads;
        return plan;
    }
    int32_t const runs = static_cast<int32_t>(roundedUp(plan.hChannels, plan.run)) / plan.run;
    // Up to 8 runs of channels; more only where there are too few places to fill the tile.
    while (plan.tileLog < 8 && (1 << plan.tileLog) < runs &&
           (plan.tileLog < 3 || (kThreads >> plan.tileLog) >= 2 * spatial)) {
        ++plan.tileLog;
    }
    bool const narrow = f.c.type == DataType::kHalf || (plan.walk == Walk::kChannels && f.z.type != DataType::kFloat) ||
                        (!plan.hVectors && f.h.type != DataType::kFloat);
    int32_t const wanted = plan.run == 1 ? 3 : narrow ? 1 : 2;
    int32_t const least = plan.tileLog > 3 ? plan.tileLog - 3 : 0;  // a lane has 5 bits, the tile's places 8 - tileLog
    plan.laneLog = plan.tileLog < wanted ? plan.tileLog : least > wanted ? least : wanted;
    uint32_t const channelTiles = static_cast<uint32_t>((runs + (1 << plan.tileLog) - 1) >> plan.tileLog);
    int32_t const places = kThreads >> plan.tileLog;
    uint32_t const placeTiles = static_cast<uint32_t>((int64_t{spatial} + places - 1) / places);
    plan.channelTiles = FastDivisor(channelTiles);
    plan.placeTiles = FastDivisor(placeTiles);
    plan.blocks = streams * channelTiles * placeTiles;
    return plan;
}

#endif

}  // namespace edgelstm
