// GPU memory for the rows of lookups, which outlives them, and is kept for the next ones.
#ifndef HPSBENCH_HPS_NATIVE_GPU_ARRAYS_H_
#define HPSBENCH_HPS_NATIVE_GPU_ARRAYS_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "gpu_memory.h"

namespace hps::gpu {

// Memory of an array. Whoever used it last may still do so on the GPU, until `uses` have come.
struct Block {
  DeviceBuffer<char> memory;
  std::vector<std::unique_ptr<Event>> uses;
};

// Plain memory of the GPU (not of CUDA's own pools, whose memory no other process can open).
class BlockPool {
 public:
  // A block of `num_bytes` or more, of which `stream` may make use.
  Block take(uint64_t num_bytes, cudaStream_t stream) {
    if (num_bytes == 0) return {};
    Block block;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      auto best = free_.end();
      for (auto it = free_.begin(); it != free_.end(); ++it) {
        const uint64_t size = it->memory.num_bytes();
        if (size < num_bytes || size > kMostWaste * num_bytes + kGrain) continue;
        if (best == free_.end() || size < best->memory.num_bytes()) best = it;
      }
      if (best != free_.end()) {
        block = std::move(*best);
        free_.erase(best);
      }
    }
    if (block.memory.get() == nullptr) block.memory = make(num_bytes);
    for (const auto& use : block.uses) use->hold(stream);
    return block;
  }

  void give_back(Block block) {
    if (block.memory.get() == nullptr) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(block));
  }

 private:
  static constexpr uint64_t kGrain = 1 << 20;
  static constexpr uint64_t kMostWaste = 2;

  DeviceBuffer<char> make(uint64_t num_bytes) {
    const uint64_t grain = num_bytes < kGrain ? kGrain / 16 : kGrain;
    const uint64_t rounded = (num_bytes + grain - 1) / grain * grain;
    try {
      return DeviceBuffer<char>(rounded);
    } catch (const Error&) {  // memory is short: do without what lies about
      std::vector<Block> unused;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        unused.swap(free_);
      }
      if (unused.empty()) throw;
    }
    return DeviceBuffer<char>(rounded);
  }

  std::mutex mutex_;  // guards what follows
  std::vector<Block> free_;
};

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_ARRAYS_H_
