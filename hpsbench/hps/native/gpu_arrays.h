// What lookups work with: GPU memory for rows, which outlives the lookup, and a stream with memory
// for keys that come from the host, which does not. Both are kept for the next lookup.
#ifndef HPSBENCH_HPS_NATIVE_GPU_ARRAYS_H_
#define HPSBENCH_HPS_NATIVE_GPU_ARRAYS_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "gpu_memory.h"
#include "gpu_table.h"

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

// A stream, and memory for the keys of one lookup at a time.
class Lane {
 public:
  // Copies keys from host memory, and returns where they are on the GPU, in the order of `on`.
  const void* send_keys(const void* keys, uint64_t num_bytes, cudaStream_t on) {
    take_memory(num_bytes, on);
    std::copy_n(static_cast<const char*>(keys), num_bytes, host_keys_.get());
    return send(num_bytes, on);
  }

  // Copies the keys of all requests from host memory, at once, and points the requests at them.
  void send_keys(std::vector<Request>& requests, cudaStream_t on) {
    uint64_t num_bytes = 0;
    for (const Request& request : requests) num_bytes += request.keys.num_bytes();
    if (num_bytes == 0) return;
    take_memory(num_bytes, on);
    char* next = host_keys_.get();
    for (const Request& request : requests) {
      next = std::copy_n(static_cast<const char*>(request.keys.data), request.keys.num_bytes(),
                         next);
    }
    const char* sent = static_cast<const char*>(send(num_bytes, on));
    for (Request& request : requests) {
      request.keys.data = sent;
      sent += request.keys.num_bytes();
    }
  }

  // The stream goes on from what CUDA's default stream was given.
  void after_default_stream() {
    default_reached_.record(cudaStreamLegacy);
    default_reached_.hold(stream.get());
  }

  Stream stream;
  Event used;  // by all work of the last lookup

 private:
  void take_memory(uint64_t num_bytes, cudaStream_t on) {
    copied_.wait();
    used.hold(on);
    if (host_keys_.count() >= num_bytes) return;
    const uint64_t count = std::max(num_bytes, 2 * host_keys_.count());
    host_keys_ = HostBuffer<char>(count);
    device_keys_ = DeviceBuffer<char>(count);
  }

  const void* send(uint64_t num_bytes, cudaStream_t on) {
    check(cudaMemcpyAsync(device_keys_.get(), host_keys_.get(), num_bytes, cudaMemcpyHostToDevice,
                          on),
          "copy keys to the GPU");
    copied_.record(on);
    return device_keys_.get();
  }

  Event copied_;
  Event default_reached_;
  HostBuffer<char> host_keys_;
  DeviceBuffer<char> device_keys_;
};

// Hands out lanes, and makes more when all are in use.
class LanePool {
 public:
  class Loan {
   public:
    explicit Loan(LanePool& pool) : pool_(pool), lane_(pool.take()) {}
    ~Loan() {
      const std::lock_guard<std::mutex> lock(pool_.mutex_);
      pool_.free_.push_back(std::move(lane_));
    }
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    Lane* operator->() const { return lane_.get(); }

   private:
    LanePool& pool_;
    std::unique_ptr<Lane> lane_;
  };

 private:
  std::unique_ptr<Lane> take() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        auto lane = std::move(free_.back());
        free_.pop_back();
        return lane;
      }
    }
    return std::make_unique<Lane>();
  }

  std::mutex mutex_;  // guards what follows
  std::vector<std::unique_ptr<Lane>> free_;
};

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_ARRAYS_H_
