// Where kernels write the rows of a lookup's keys: one after another, or side by side with what else
// a sample has.
#ifndef HPSBENCH_HPS_NATIVE_GPU_PLACES_CUH_
#define HPSBENCH_HPS_NATIVE_GPU_PLACES_CUH_

#include <cuda_fp16.h>

#include <cstdint>

#include "gpu_table.h"

namespace hps::gpu {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

__device__ inline int lane_number() { return threadIdx.x % kWarp; }

// All rows one after another. Known at compile time: then a warp writes its rows without asking
// where each of them begins.
template <class OutType>
struct Dense {
  using Out = OutType;
  using FromFirst = Dense;
  Out* data;

  Dense from_first() const { return *this; }
  __device__ Out* at(uint64_t key, uint32_t dim) const { return data + key * dim; }

  // The words of the rows of a warp's keys.
  template <class Word>
  struct Words {
    Word* first;
    __device__ Word* at(uint32_t i, uint32_t, uint32_t) const { return first + i; }
  };
  template <class Word>
  __device__ Words<Word> of_warp(uint64_t first_key, uint32_t dim) const {
    return {reinterpret_cast<Word*>(at(first_key, dim))};
  }
};

// The rows of each sample's keys one after another; as described by an Output.
template <class OutType>
struct Strided {
  using Out = OutType;
  // Where the first key is the first of a sample. It is smaller: a launch takes more of them.
  struct FromFirst {
    Out* data;
    uint32_t keys_per_sample;
    uint32_t skipped;
    __device__ operator Strided() const { return {data, keys_per_sample, skipped, 0}; }
  };
  Out* data;
  uint32_t keys_per_sample;
  uint32_t skipped;
  uint32_t first_key;

  FromFirst from_first() const { return {data, keys_per_sample, skipped}; }

  __device__ Out* at(uint64_t key, uint32_t dim) const {
    const uint32_t sample = (first_key + static_cast<uint32_t>(key)) / keys_per_sample;
    return data + key * dim + uint64_t{sample} * skipped;
  }

  template <class Word>
  struct Words {
    Word* mine;  // where the row of this lane's key begins
    // For all lanes of a warp together.
    __device__ Word* at(uint32_t, uint32_t key, uint32_t word_of_row) const {
      return reinterpret_cast<Word*>(__shfl_sync(
                 kAllLanes, reinterpret_cast<unsigned long long>(mine), key % kWarp)) +
             word_of_row;
    }
  };
  template <class Word>
  __device__ Words<Word> of_warp(uint64_t first_of_warp, uint32_t dim) const {
    return {reinterpret_cast<Word*>(at(first_of_warp + lane_number(), dim))};
  }
};

// Calls `run` with the places of an output, of the type of its values.
template <class Run>
void with_places(const Output& out, const Run& run) {
  if (!out.is_dense()) {
    run(Strided<float>{static_cast<float*>(out.data), out.keys_per_sample, out.skipped,
                       out.first_key});
  } else if (out.type == HPS_FLOAT16) {
    run(Dense<__half>{static_cast<__half*>(out.data)});
  } else {
    run(Dense<float>{static_cast<float*>(out.data)});
  }
}

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_PLACES_CUH_
