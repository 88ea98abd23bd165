// A whole LSTM or GRU cell on the GPU in one launch: the products with x and h, the gates, the state, for one frame or a window.
//
// Each block owns some units of the hidden state. In a window its weights stay in shared memory where they fit; of one
// frame they are read once, as they come. The work is in small_cell_run.h; here is the launch.
//
// While a program runs (edgelstm.kernels) the compiler is told EDGELSTM_CELL_TYPE, _KIND, _TILE and _HELD and makes one kernel,
// whose launch is the caller's: edgelstm/kernels/small_cell/launch.py.
#include "edgelstm/small_cell_run.h"

namespace edgelstm {

#if defined(EDGELSTM_CELL_TILE)

static_assert(sizeof(SmallCellPlan) == EDGELSTM_PLAN_BYTES, "the caller's plan is another one");

extern "C" __global__ void __launch_bounds__(kCellThreads, 1)
    edgelstm_small_cell(EDGELSTM_GRID_CONSTANT SmallCellPlan const plan) {
    extern __shared__ uint4 sharedMemory[];
    constexpr DataType kType = static_cast<DataType>(EDGELSTM_CELL_TYPE);
    constexpr CellKind kKind = static_cast<CellKind>(EDGELSTM_CELL_KIND);
    SmallCellBlock<kType, kKind, EDGELSTM_CELL_TILE, EDGELSTM_CELL_HELD != 0>(plan, reinterpret_cast<char*>(sharedMemory))
        .run();
}

#else

namespace {

template <DataType kType, CellKind kKind, int kTile, bool kHeld>
__global__ void __launch_bounds__(kCellThreads, 1) smallCellKernel(EDGELSTM_GRID_CONSTANT SmallCellPlan const plan) {
    extern __shared__ uint4 sharedMemory[];
    SmallCellBlock<kType, kKind, kTile, kHeld>(plan, reinterpret_cast<char*>(sharedMemory)).run();
}

template <DataType kType, CellKind kKind, int kTile, bool kHeld>
cudaError_t start(SmallCellPlan const& plan, cudaStream_t stream) {
    void const* const kernel = reinterpret_cast<void const*>(&smallCellKernel<kType, kKind, kTile, kHeld>);
    if (plan.sharedBytes > 48 * 1024) {
        cudaError_t const allowed =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.sharedBytes);
        if (allowed != cudaSuccess) {
            return allowed;
        }
    }
    SmallCellPlan copy = plan;
    void* arguments[] = {&copy};
    dim3 const blocks(static_cast<unsigned>(plan.blocks)), threads(kCellThreads);
    // All blocks at once: they wait for each other.
    return cudaLaunchCooperativeKernel(kernel, blocks, threads, arguments, static_cast<size_t>(plan.sharedBytes), stream);
}

template <DataType kType, CellKind kKind, int kTile>
cudaError_t startHeld(SmallCellPlan const& plan, cudaStream_t stream) {
    return plan.held ? start<kType, kKind, kTile, true>(plan, stream) : start<kType, kKind, kTile, false>(plan, stream);
}

template <DataType kType, CellKind kKind>
cudaError_t startTile(SmallCellPlan const& plan, cudaStream_t stream) {
    switch (plan.tile) {
        case 1: return startHeld<kType, kKind, 1>(plan, stream);
        case 2: return startHeld<kType, kKind, 2>(plan, stream);
        case 4: return startHeld<kType, kKind, 4>(plan, stream);
        default: return startHeld<kType, kKind, 8>(plan, stream);
    }
}

template <DataType kType>
cudaError_t startKind(SmallCellPlan const& plan, cudaStream_t stream) {
    switch (plan.params.kind) {
        case CellKind::kLstm: return startTile<kType, CellKind::kLstm>(plan, stream);
        case CellKind::kGru: return startTile<kType, CellKind::kGru>(plan, stream);
        default: return startTile<kType, CellKind::kCoupledLstm>(plan, stream);
    }
}

}  // namespace

// Queues the cell on the stream. Returns cudaErrorInvalidValue, with nothing queued, where refusal() has an answer or the
// GPU's shared memory is too small; else what the launch returned. May be captured into a CUDA graph.
cudaError_t smallCell(SmallCellParams const& params, cudaStream_t stream) {
    if (refusal(params) != nullptr) {
        return cudaErrorInvalidValue;
    }
    if (params.streams == 0) {
        return cudaSuccess;
    }
    int device = 0, processors = 0, shared = 0;
    cudaError_t known = cudaGetDevice(&device);
    if (known == cudaSuccess) {
        known = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    }
    if (known == cudaSuccess) {
        known = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    }
    if (known != cudaSuccess) {
        return known;
    }
    SmallCellPlan const plan = planOf(params, processors, shared);
    if (plan.sharedBytes > shared) {
        return cudaErrorInvalidValue;
    }
    return params.type == DataType::kFloat ? startKind<DataType::kFloat>(plan, stream)
                                           : startKind<DataType::kHalf>(plan, stream);
}

#endif

}  // namespace edgelstm
