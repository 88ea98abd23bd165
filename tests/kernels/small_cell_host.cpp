// The small-cell kernel on the host, for ctypes: every thread of every block, in an order that a seed draws.
#include "emulator.h"

namespace watch {
inline uint64_t outside = 0;
struct Span {
    uint64_t begin, end;
    int written;
};
inline std::vector<Span> spans;  // memory that may be read, and written where it says so
inline void note(void const* address, uint32_t bytes, bool write) {
    uint64_t const at = reinterpret_cast<uint64_t>(address);
    if (at % bytes != 0) {
        ++outside;
    }
    for (auto const& block : emulator::sharedMemory) {
        uint64_t const start = reinterpret_cast<uint64_t>(block.data());
        if (at >= start && at + bytes <= start + block.size()) {
            if (&block != &emulator::sharedMemory[emulator::current->block]) {
                ++outside;
            }
            return;
        }
    }
    for (Span const& span : spans) {
        if (at >= span.begin && at + bytes <= span.end && (!write || span.written)) {
            return;
        }
    }
    // A thread's own variables.
    auto const& stack = emulator::current->stack;
    uint64_t const start = reinterpret_cast<uint64_t>(stack.data());
    outside += !(at >= start && at + bytes <= start + stack.size());
}
}  // namespace watch

#define EDGELSTM_ON_ACCESS(address, bytes, write) watch::note(address, bytes, write)
#include "edgelstm/small_cell_run.h"

using namespace edgelstm;

namespace {

template <DataType kType, CellKind kKind, int kTile>
bool runTile(SmallCellPlan const& plan, uint32_t seed) {
    return emulator::run(static_cast<unsigned>(plan.blocks), kCellThreads, plan.sharedBytes, seed, [&plan] {
        if (plan.held) {
            SmallCellBlock<kType, kKind, kTile, true>(plan, emulator::shared()).run();
        } else {
            SmallCellBlock<kType, kKind, kTile, false>(plan, emulator::shared()).run();
        }
    });
}

template <DataType kType, CellKind kKind>
bool runKind(SmallCellPlan const& plan, uint32_t seed) {
    switch (plan.tile) {
        case 1: return runTile<kType, kKind, 1>(plan, seed);
        case 2: return runTile<kType, kKind, 2>(plan, seed);
        case 4: return runTile<kType, kKind, 4>(plan, seed);
        default: return runTile<kType, kKind, 8>(plan, seed);
    }
}

template <DataType kType>
bool runType(SmallCellPlan const& plan, uint32_t seed) {
    switch (plan.params.kind) {
        case CellKind::kLstm: return runKind<kType, CellKind::kLstm>(plan, seed);
        case CellKind::kGru: return runKind<kType, CellKind::kGru>(plan, seed);
        default: return runKind<kType, CellKind::kCoupledLstm>(plan, seed);
    }
}

}  // namespace

extern "C" {

uint32_t size_of_plan() { return sizeof(SmallCellPlan); }

char const* why_refused(SmallCellParams const* params) { return refusal(*params); }

int64_t workspace_bytes(SmallCellParams const* params) { return workspaceBytes(*params); }

void plan_of(SmallCellParams const* params, int32_t processors, int32_t shared, int32_t units, SmallCellPlan* plan) {
    *plan = planOf(*params, processors, shared, units);
}

// spans: (begin, end, may be written) of each tensor. Returns accesses outside them or unaligned; -1 for threads that wait for ever.
int64_t run_plan(SmallCellPlan const* plan, uint32_t seed, uint64_t const* spans, int32_t count) {
    watch::outside = 0;
    watch::spans.clear();
    for (int32_t k = 0; k < count; ++k) {
        watch::spans.push_back({spans[3 * k], spans[3 * k + 1], static_cast<int>(spans[3 * k + 2])});
    }
    bool const done =
        plan->params.type == DataType::kFloat ? runType<DataType::kFloat>(*plan, seed) : runType<DataType::kHalf>(*plan, seed);
    return done ? static_cast<int64_t>(watch::outside) : -1;
}
}
