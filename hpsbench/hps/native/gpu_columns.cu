#include "gpu_columns.h"

#include <algorithm>

#include "gpu_rows.cuh"

namespace hps::gpu {

namespace {

constexpr int kMaxColumns = 128;
constexpr uint64_t kMaxBlocks = 1 << 12;  // per tensor; a block goes on where others have not begun

// Columns that one kernel writes.
struct Columns {
  hps_gpu_columns of[kMaxColumns];
};
static_assert(sizeof(Columns) <= 4000, "what a kernel may take as parameters");

// By sample the columns are `width` Vecs, and rows of the matrix begin `stride` Vecs from each other.
template <class Vec>
__global__ void __launch_bounds__(kThreads)
    copy_columns_kernel(const __grid_constant__ Columns columns, uint64_t num_samples,
                        uint64_t stride) {
  constexpr uint64_t kFloats = sizeof(Vec) / sizeof(float);
  const hps_gpu_columns& mine = columns.of[blockIdx.y];
  const uint64_t width = mine.width / kFloats;
  const Vec* const values = reinterpret_cast<const Vec*>(mine.values);
  for (uint64_t i = blockIdx.x * uint64_t{kThreads} + threadIdx.x; i < num_samples * width;
       i += gridDim.x * uint64_t{kThreads}) {
    const uint64_t sample = i / width;
    reinterpret_cast<Vec*>(mine.out)[sample * stride + i - sample * width] = values[i];
  }
}

}  // namespace

void copy_columns(const hps_gpu_columns* columns, int32_t num_columns, uint64_t num_samples,
                  uint64_t stride, cudaStream_t stream) {
  bool aligned = stride % 4 == 0;
  for (int32_t i = 0; i < num_columns; ++i) {
    aligned = aligned && columns[i].width % 4 == 0 && is_aligned(columns[i].values) &&
              is_aligned(columns[i].out);
  }
  for (int32_t begin = 0; begin < num_columns; begin += kMaxColumns) {
    const int32_t count = std::min(kMaxColumns, num_columns - begin);
    Columns some;
    uint64_t widest = 0;
    for (int32_t i = 0; i < count; ++i) {
      some.of[i] = columns[begin + i];
      widest = std::max(widest, some.of[i].width);
    }
    const uint64_t words = num_samples * (aligned ? widest / 4 : widest);
    if (words == 0) continue;
    const dim3 blocks(static_cast<unsigned>(std::min(kMaxBlocks, (words + kThreads - 1) / kThreads)),
                      static_cast<unsigned>(count));
    if (aligned) {
      copy_columns_kernel<float4>
          <<<blocks, kThreads, 0, stream>>>(some, num_samples, stride / 4);
    } else {
      copy_columns_kernel<float><<<blocks, kThreads, 0, stream>>>(some, num_samples, stride);
    }
    check_launch("copy_columns");
  }
}

}  // namespace hps::gpu
