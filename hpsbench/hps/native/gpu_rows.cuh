// Device code that all kernels share: hashing keys, and warps that copy rows.
#ifndef HPSBENCH_HPS_NATIVE_GPU_ROWS_CUH_
#define HPSBENCH_HPS_NATIVE_GPU_ROWS_CUH_

#include <cstdint>
#include <type_traits>

namespace hps::gpu {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;
constexpr int kThreads = 128;  // per block
constexpr int kWarpsPerBlock = kThreads / kWarp;

__device__ inline int lane_number() { return threadIdx.x % kWarp; }
__device__ inline uint64_t warp_number() {
  return (blockIdx.x * uint64_t{kThreads} + threadIdx.x) / kWarp;
}

// Where of `count` places a key belongs: the finalizer of splitmix64, and its high bits.
__host__ __device__ inline uint64_t home_of(int64_t key, uint64_t count) {
  uint64_t h = static_cast<uint64_t>(key);
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
  h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
  h ^= h >> 31;
#ifdef __CUDA_ARCH__
  return __umul64hi(h, count);
#else
  return static_cast<uint64_t>((static_cast<unsigned __int128>(h) * count) >> 64);
#endif
}

// Copies the rows of a warp's keys, at `row` in the lanes of the keys, to consecutive rows of
// `out`. A row is `num_vecs` of Vec (kVecs, where known at compile time). Reads are independent of
// each other, so many are under way at a time; writes are streamed, since nobody here reads them.
template <class Vec, int kVecs, int kKeys>
__device__ inline void copy_rows(const Vec* row, Vec* out, uint32_t num_vecs, uint32_t num_keys) {
  const uint32_t vecs = kVecs != 0 ? kVecs : num_vecs;
  const uint32_t total = num_keys * vecs;
  constexpr int kUnroll = kVecs != 0 ? (kKeys * kVecs / kWarp < 4 ? kKeys * kVecs / kWarp : 4) : 4;
  for (uint32_t begin = 0; begin < total; begin += kWarp * kUnroll) {
    Vec values[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint32_t i = begin + u * kWarp + lane_number();
      const uint32_t key = i / vecs;
      const Vec* source = reinterpret_cast<const Vec*>(__shfl_sync(
          kAllLanes, reinterpret_cast<unsigned long long>(row), static_cast<int>(key % kWarp)));
      if (i < total) values[u] = __ldg(source + (i - key * vecs));
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint32_t i = begin + u * kWarp + lane_number();
      if (i < total) __stcs(out + i, values[u]);
    }
  }
}

// How a kernel copies rows of some size: kKeys per warp, of which each row is kVecs of Vec.
template <class VecType, int kVecsOfRow, int kKeysOfWarp>
struct RowShape {
  using Vec = VecType;
  static constexpr int kVecs = kVecsOfRow;
  static constexpr int kKeys = kKeysOfWarp;  // a multiple of 4
};

// Calls `run` with the shape for rows of `dim` float32 at addresses that are 16-byte aligned, or
// not. Few keys per warp give large rows many warps; many keys fill a warp with small rows.
template <class Run>
void with_row_shape(uint64_t dim, bool aligned, const Run& run) {
  if (!aligned || dim % 4 != 0) {
    return dim < 32 ? run(RowShape<float, 0, 32>()) : run(RowShape<float, 0, 4>());
  }
  switch (dim / 4) {
    case 4: return run(RowShape<float4, 4, 32>());
    case 8: return run(RowShape<float4, 8, 16>());
    case 16: return run(RowShape<float4, 16, 8>());
    case 32: return run(RowShape<float4, 32, 4>());
    default: return dim < 64 ? run(RowShape<float4, 0, 16>()) : run(RowShape<float4, 0, 4>());
  }
}

inline bool is_aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

inline unsigned num_blocks(uint64_t num_warps) {
  return static_cast<unsigned>((num_warps + kWarpsPerBlock - 1) / kWarpsPerBlock);
}

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_ROWS_CUH_
