// Matrices of several tables' rows, side by side.
#ifndef HPSBENCH_HPS_NATIVE_GPU_COLUMNS_H_
#define HPSBENCH_HPS_NATIVE_GPU_COLUMNS_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "core.h"

namespace hps::gpu {

// Writes columns side by side to `out`, float32[num_samples * sum of their widths], in the order of
// the stream.
void join_columns(const hps_gpu_columns* columns, int32_t num_columns, uint64_t num_samples,
                  float* out, cudaStream_t stream);

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_COLUMNS_H_
