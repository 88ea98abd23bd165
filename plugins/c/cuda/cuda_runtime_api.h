/* What TensorRT's headers need of CUDA's, for machines without its toolkit: two opaque handles. CUDA's own header comes first. */
#pragma once
typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
