#include "gpu_columns.h"

#include <algorithm>

#include "gpu_rows.cuh"

namespace hps::gpu {

namespace {

constexpr int kMaxColumns = 128;
constexpr uint64_t kMaxBlocks = 64;  // per table; a block goes on where others have not begun

// Columns that one kernel writes.
struct Columns {
  struct {
    const float* rows;
    uint64_t width;
    uint64_t first;  // where they begin in the matrix
  } of[kMaxColumns];
};
static_assert(sizeof(Columns) <= 4000, "what a kernel may take as parameters");

template <class Vec>
__global__ void __launch_bounds__(kThreads)
    join(const __grid_constant__ Columns columns, uint64_t num_samples, uint64_t width,
         float* out) {
  constexpr uint64_t kFloats = sizeof(Vec) / sizeof(float);
  const auto& mine = columns.of[blockIdx.y];
  const uint64_t vecs = mine.width / kFloats;
  const Vec* const rows = reinterpret_cast<const Vec*>(mine.rows);
  for (uint64_t i = blockIdx.x * uint64_t{kThreads} + threadIdx.x; i < num_samples * vecs;
       i += gridDim.x * uint64_t{kThreads}) {
    const uint64_t sample = i / vecs;
    float* const to = out + sample * width + mine.first;
    reinterpret_cast<Vec*>(to)[i - sample * vecs] = rows[i];
  }
}

}  // namespace

void join_columns(const hps_gpu_columns* columns, int32_t num_columns, uint64_t num_samples,
                  float* out, cudaStream_t stream) {
  uint64_t width = 0;
  bool aligned = is_aligned(out);
  for (int32_t i = 0; i < num_columns; ++i) {
    width += columns[i].width;
    aligned = aligned && columns[i].width % 4 == 0 && is_aligned(columns[i].rows);
  }
  uint64_t first = 0;
  for (int32_t begin = 0; begin < num_columns; begin += kMaxColumns) {
    const int32_t count = std::min(kMaxColumns, num_columns - begin);
    Columns some;
    uint64_t widest = 0;
    for (int32_t i = 0; i < count; ++i) {
      const hps_gpu_columns& one = columns[begin + i];
      some.of[i] = {one.rows, one.width, first};
      first += one.width;
      widest = std::max(widest, one.width);
    }
    const uint64_t words = num_samples * (aligned ? widest / 4 : widest);
    const dim3 blocks(static_cast<unsigned>(std::min(kMaxBlocks, (words + kThreads - 1) / kThreads)),
                      static_cast<unsigned>(count));
    if (aligned) {
      join<float4><<<blocks, kThreads, 0, stream>>>(some, num_samples, width, out);
    } else {
      join<float><<<blocks, kThreads, 0, stream>>>(some, num_samples, width, out);
    }
    check_launch("join");
  }
}

}  // namespace hps::gpu
