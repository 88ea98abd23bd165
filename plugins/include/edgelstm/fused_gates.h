// The launcher of FusedGates on the GPU. Parameters: fused_gates_params.h.
#pragma once

#include <cuda_runtime_api.h>

#include "edgelstm/fused_gates_params.h"

namespace edgelstm {

// Whether there is a kernel for tensors of these forms. DataType::kAny and Layout::kAny stand for what is not known
// yet, so the answer for a prefix of the tensors says whether any choice for the rest can work.
bool isSupported(FusedGatesForms const& forms);

// Null if fusedGates() takes these parameters, else what is wrong with them, in words that live for ever.
// Looks at the numbers and at which pointers are null, never behind a pointer.
char const* whyRefused(FusedGatesParams const& params);

// Queues FusedGates on the stream. Returns cudaErrorInvalidValue, with nothing queued, where whyRefused() has an answer;
// else what the launch returned. Never exits, allocates, synchronises or throws; may be captured into a CUDA graph.
cudaError_t fusedGates(FusedGatesParams const& params, cudaStream_t stream);

}  // namespace edgelstm
