// One FusedGates kernel by itself, compiled for what is asked of it while a program runs (edgelstm.kernels).
//
// The compiler is told: EDGELSTM_Z, the type of z; EDGELSTM_RUN and EDGELSTM_WALK, the plan's; EDGELSTM_VARIANT: 0 for any,
// 1 for the variant without options, 2 for the same with peepholes; EDGELSTM_PLAN_BYTES, how large the caller's plan is.
// The launch, with one block of kThreads threads for each of plan.blocks, is the caller's: edgelstm/kernels/gates/launch.py.
#include "edgelstm/fused_gates_run.h"

namespace edgelstm {

static_assert(sizeof(Plan) == EDGELSTM_PLAN_BYTES, "the caller's plan is another one");

extern "C" __global__ void __launch_bounds__(kThreads) edgelstm_fused_gates(EDGELSTM_GRID_CONSTANT Plan const plan) {
    constexpr DataType kZ = static_cast<DataType>(EDGELSTM_Z);
    constexpr Walk kWalk = static_cast<Walk>(EDGELSTM_WALK);
#if EDGELSTM_VARIANT == 0
    computeRun<kZ, EDGELSTM_RUN, kWalk>(plan, plan.params.variant, blockIdx.x, threadIdx.x);
#else
    computeRun<kZ, EDGELSTM_RUN, kWalk>(plan, StandardVariant<EDGELSTM_VARIANT == 2>{}, blockIdx.x, threadIdx.x);
#endif
}

}  // namespace edgelstm
