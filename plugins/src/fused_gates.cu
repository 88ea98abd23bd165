// FusedGates on the GPU: h and c_out from the gates' pre-activations, in one pass over memory.
//
// A thread computes a run of elements whose z takes 16 bytes a gate. What it does is computeRun() of fused_gates_run.h,
// the code that fusedGatesOnHost() runs; here is only what needs a GPU. The types of c and h are looked at in the
// kernel, once a thread; the type of z, how runs lie, and the two usual variants make kernels of their own.
#include "edgelstm/fused_gates.h"

#include <type_traits>

#include "edgelstm/fused_gates_run.h"

// The plan stays where the launch put it, in constant memory; CUDA before 11.7 cannot be told so.
#if CUDART_VERSION >= 11070
#define EDGELSTM_IN_PLACE __grid_constant__
#else
#define EDGELSTM_IN_PLACE
#endif

// Blocks that are to fit on an SM at once. Left out, ptxas spreads a run's loads between its arithmetic, which costs several
// round trips to memory where few warps hide them; 4 pulls them forward. Which is faster, bench/ tells on a GPU.
#ifdef EDGELSTM_MIN_BLOCKS
#define EDGELSTM_BOUNDS __launch_bounds__(kThreads, EDGELSTM_MIN_BLOCKS)
#else
#define EDGELSTM_BOUNDS __launch_bounds__(kThreads)
#endif

namespace edgelstm {
namespace {

template <class K>
__global__ void EDGELSTM_BOUNDS fusedGatesKernel(EDGELSTM_IN_PLACE Plan const plan) {
    if constexpr (std::is_same_v<typename K::VariantType, FusedGatesVariant>) {
        computeRun<K::z, K::run, K::walk>(plan, plan.params.variant, blockIdx.x, threadIdx.x);
    } else {
        computeRun<K::z, K::run, K::walk>(plan, typename K::VariantType{}, blockIdx.x, threadIdx.x);
    }
}

}  // namespace

bool isSupported(FusedGatesForms const& forms) { return formsSupported(forms); }

char const* whyRefused(FusedGatesParams const& params) { return refusal(params); }

cudaError_t fusedGates(FusedGatesParams const& params, cudaStream_t stream) {
    if (refusal(params) != nullptr) {
        return cudaErrorInvalidValue;
    }
    if (params.streams == 0) {
        return cudaSuccess;
    }
    if (params.nonFinite != nullptr) {
        cudaError_t const cleared = cudaMemsetAsync(
            params.nonFinite, 0, sizeof(int32_t) * static_cast<size_t>(params.streams), stream);
        if (cleared != cudaSuccess) {
            return cleared;
        }
    }
    Plan const plan = planOf(params);
    return dispatch(plan, [&plan, stream](auto kernel, auto const&) {
        void* arguments[] = {const_cast<Plan*>(&plan)};
        cudaError_t const launched = cudaLaunchKernel(fusedGatesKernel<decltype(kernel)>, dim3(plan.blocks), dim3(kThreads),
                                                      arguments, 0, stream);
        if (launched != cudaSuccess) {
            // Else this thread's next call, ours or another library's, would find the error and take it for its own.
            (void)cudaGetLastError();
        }
        return launched;
    });
}

}  // namespace edgelstm
