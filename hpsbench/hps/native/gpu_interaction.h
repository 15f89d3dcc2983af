// The C interface of DLRM's dot interaction on a GPU.
//
// Threads and errors are as in core.h.
#ifndef HPSBENCH_HPS_NATIVE_GPU_INTERACTION_H_
#define HPSBENCH_HPS_NATIVE_GPU_INTERACTION_H_

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

// All memory is of the GPU, and begins at a multiple of 16 bytes. So do the rows of `dense` and of
// `vectors`: `dim` and `dense_stride` are multiples of 8 values (float16) or 4 (float32).
typedef struct {
  hps_row_type type;      // of all values
  const void* dense;      // one row of `dim` values per sample,
  uint64_t dense_stride;  // each as many values after the last
  const void* vectors;    // [num_samples, slots, dim]
  void* out;              // [num_samples, out_width]
  uint64_t num_samples;   // with 0, only what is asked for is checked
  int32_t slots;          // 1 to 63
  int32_t dim;
  int32_t out_width;  // a row of it has 12,288 bytes at most
} hps_gpu_interaction;

// Writes, per sample, the dense vector, then the products of every pair of vectors, then zeros up to
// `out_width`. The dense vector is number 0; pairs come as (1, 0), (2, 0), (2, 1), (3, 0) and so on.
// They are added up in float32 and rounded once; those of float32 values are three products of
// TensorFloat-32 each, which keeps about float32's precision.
//
// Works in the order of `stream`, and returns before it is done. It takes no memory and waits for
// nothing, so that it can be captured in a CUDA graph once a first call has loaded the kernel.
// HPS_FAILED_PRECONDITION where the GPU has no such tensor cores (compute capability below 8.0).
hps_status hps_gpu_interact(int32_t device, const hps_gpu_interaction* interaction, void* stream,
                            hps_error* error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif  // HPSBENCH_HPS_NATIVE_GPU_INTERACTION_H_
