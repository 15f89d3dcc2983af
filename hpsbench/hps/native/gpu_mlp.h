// The C interface of what a multilayer perceptron needs on a GPU beside products of matrices: its
// features in the type and width that tensor cores take, and its last unit's probability.
//
// Threads and errors are as in core.h. All memory is of the GPU. Both work in the order of `stream`
// and return before they are done. They take no memory and wait for nothing, so that they can be
// captured in a CUDA graph once a first call has loaded the kernels.
#ifndef HPSBENCH_HPS_NATIVE_GPU_MLP_H_
#define HPSBENCH_HPS_NATIVE_GPU_MLP_H_

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef struct {
  hps_row_type type;      // of `out`
  const float* features;  // [num_samples, num_features]
  void* out;              // [num_samples, out_width]
  uint64_t num_samples;
  int32_t num_features;
  int32_t out_width;  // as many as there are features, or more
} hps_gpu_widening;

// Writes each sample's features, rounded to `type`, then zeros.
hps_status hps_gpu_widen(int32_t device, const hps_gpu_widening* widening, void* stream,
                         hps_error* error);

typedef struct {
  hps_row_type type;  // of `hidden` and `kernel`
  const void* hidden;  // [num_samples, width]
  const void* kernel;  // [width]
  float bias;
  float* out;  // [num_samples]
  uint64_t num_samples;
  int32_t width;
} hps_gpu_last_unit;

// Writes 1 / (1 + exp(-(hidden * kernel + bias))), added up in float32.
hps_status hps_gpu_logistic(int32_t device, const hps_gpu_last_unit* unit, void* stream,
                            hps_error* error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif  // HPSBENCH_HPS_NATIVE_GPU_MLP_H_
