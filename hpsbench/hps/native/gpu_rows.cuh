// Device code that all kernels share: hashing keys, and warps that copy rows.
#ifndef HPSBENCH_HPS_NATIVE_GPU_ROWS_CUH_
#define HPSBENCH_HPS_NATIVE_GPU_ROWS_CUH_

#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "gpu_places.cuh"
#include "gpu_table.h"

namespace hps::gpu {

constexpr int kThreads = 128;  // per block
constexpr int kWarpsPerBlock = kThreads / kWarp;

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

// What the float32 values of a Vec are as values of an output: as many of them, in one word.
__device__ inline float as_output(float value, const float*) { return value; }
__device__ inline float4 as_output(float4 values, const float*) { return values; }
__device__ inline __half as_output(float value, const __half*) { return __float2half_rn(value); }
__device__ inline uint2 as_output(float4 values, const __half*) {
  const __half2 low = __floats2half2_rn(values.x, values.y);
  const __half2 high = __floats2half2_rn(values.z, values.w);
  return {reinterpret_cast<const unsigned&>(low), reinterpret_cast<const unsigned&>(high)};
}

// Rows of float32 in one place, in the lanes of their keys: a Vec after another.
template <class VecType>
struct Float32Row {
  using Vec = VecType;
  const Vec* values;

  __device__ Float32Row in_lane(int lane) const {
    return {reinterpret_cast<const Vec*>(
        __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(values), lane))};
  }
  __device__ Vec load(uint32_t i) const { return __ldg(values + i); }
};

// Copies the rows of a warp's keys, `row` in the lanes of the keys, to the places of keys from number
// `first_key` on. A row is `dim` float32, and kVecs of Vec where known at compile time. Reads are
// independent of each other, so many are under way at a time; writes are streamed, since nobody here
// reads them.
template <int kVecs, int kKeys, class Row, class Places>
__device__ inline void copy_rows(const Row& row, const Places& out, uint64_t first_key,
                                 uint32_t dim, uint32_t num_keys) {
  using Vec = typename Row::Vec;
  using Word = decltype(as_output(Vec(), out.data));
  const auto words = out.template of_warp<Word>(first_key, dim);
  const uint32_t vecs = kVecs != 0 ? kVecs : dim * sizeof(float) / sizeof(Vec);
  const uint32_t total = num_keys * vecs;
  constexpr int kUnroll = kVecs != 0 ? (kKeys * kVecs / kWarp < 4 ? kKeys * kVecs / kWarp : 4) : 4;
  for (uint32_t begin = 0; begin < total; begin += kWarp * kUnroll) {
    Vec values[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint32_t i = begin + u * kWarp + lane_number();
      const uint32_t key = i / vecs;
      const Row source = row.in_lane(static_cast<int>(key % kWarp));
      if (i < total) values[u] = source.load(i - key * vecs);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint32_t i = begin + u * kWarp + lane_number();
      const uint32_t key = i / vecs;
      Word* const to = words.at(i, key, i - key * vecs);
      if (i < total) __stcs(to, as_output(values[u], out.data));
    }
  }
}

// Copies one row, by a warp.
template <class Vec, class Out>
__device__ inline void copy_row(const float* from, Out* to, uint32_t dim) {
  using Word = decltype(as_output(Vec(), to));
  const uint32_t num_vecs = dim * sizeof(float) / sizeof(Vec);
  for (uint32_t i = lane_number(); i < num_vecs; i += kWarp) {
    reinterpret_cast<Word*>(to)[i] = as_output(reinterpret_cast<const Vec*>(from)[i], to);
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

// Calls `run` with a float4 where rows of `dim` can be copied as such, else with a float.
template <class Run>
void with_vec(uint64_t dim, bool aligned, const Run& run) {
  if (dim % 4 == 0 && aligned) {
    run(float4());
  } else {
    run(float());
  }
}

// Calls `run(shape, keys, places)`, of the types of the keys and of the output.
template <class Run>
void with_types(const Keys& keys, const Output& out, uint64_t dim, bool aligned, const Run& run) {
  with_row_shape(dim, aligned, [&](auto shape) {
    with_key_type(keys, [&](auto* data) {
      with_places(out, [&](auto places) { run(shape, data, places); });
    });
  });
}

inline unsigned num_blocks(uint64_t num_warps) {
  return static_cast<unsigned>((num_warps + kWarpsPerBlock - 1) / kWarpsPerBlock);
}

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_ROWS_CUH_
