// Tensors that become columns of a matrix.
#ifndef HPSBENCH_HPS_NATIVE_GPU_COLUMNS_H_
#define HPSBENCH_HPS_NATIVE_GPU_COLUMNS_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "core.h"

namespace hps::gpu {

// Copies columns into a matrix whose rows begin `stride` values from each other, in the order of the
// stream.
void copy_columns(const hps_gpu_columns* columns, int32_t num_columns, uint64_t num_samples,
                  uint64_t stride, cudaStream_t stream);

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_COLUMNS_H_
