// The way of a lookup's keys from host memory to the GPU.
#ifndef HPSBENCH_HPS_NATIVE_GPU_LANES_H_
#define HPSBENCH_HPS_NATIVE_GPU_LANES_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <iterator>
#include <memory>
#include <mutex>
#include <vector>

#include "gpu_memory.h"
#include "gpu_table.h"
#include "thread_pool.h"

namespace hps::gpu {

// Memory for the keys of one lookup at a time, and streams. They go by way of page-locked memory,
// on several threads and in pieces, so that the GPU looks one piece up while the next is on its way;
// keys that are few are read where they are there.
class Lane {
 public:
  explicit Lane(ThreadPool& copiers) : copiers_(copiers) {}

  // Takes the keys of all requests over from host memory. Those of several requests are sent now;
  // those of one when its table asks for them, by `send`.
  void take_keys(std::vector<Request>& requests) {
    uint64_t num_bytes = 0;
    for (const Request& request : requests) num_bytes += request.keys.num_bytes();
    take_memory(num_bytes);
    in_place_ = num_bytes <= kReadInPlace;
    char* next = in_place_ ? host_keys_.get() : device_keys_.get();
    for (Request& request : requests) {
      request.keys = {next, request.keys.key_bytes, request.keys.count,
                      static_cast<const char*>(request.keys.data), this};
      next += request.keys.num_bytes();
    }
    if (requests.size() == 1) return;
    char* to = host_keys_.get();
    for (Request& request : requests) {
      copy(to, request.keys.on_host, request.keys.num_bytes());
      to += request.keys.num_bytes();
      request.keys.on_host = nullptr;
    }
    transfer(0, num_bytes);
  }

  // Sends keys from number `begin` on, and returns the number of the first that is not sent yet.
  // They are on the GPU in the order of `sending`.
  uint64_t send(const Keys& keys, uint64_t begin) {
    if (keys.on_host == nullptr) return keys.count;
    const uint64_t end = std::min(keys.count, begin + kPiece / keys.key_bytes);
    const uint64_t num_bytes = (end - begin) * keys.key_bytes;
    const char* const base = in_place_ ? host_keys_.get() : device_keys_.get();
    const uint64_t place =
        static_cast<const char*>(keys.data) - base + begin * keys.key_bytes;
    copy(host_keys_.get() + place, keys.on_host + begin * keys.key_bytes, num_bytes);
    transfer(place, num_bytes);
    return end;
  }

  // Whether keys that were sent are there in the order of every stream.
  bool is_in_place() const { return in_place_; }

  // `stream` goes on from what `sending` was given.
  void join(cudaStream_t stream) {
    sent_.record(sending.get());
    sent_.hold(stream);
  }

  // The stream goes on from what CUDA's default stream was given.
  void after_default_stream() {
    default_reached_.record(cudaStreamLegacy);
    default_reached_.hold(stream.get());
  }

  Stream stream;
  // Not behind the large kernels that others gave the GPU: the host may wait for its work.
  Stream sending{Stream::kUrgent};
  Event used;  // by what reads keys later than the lookup's caller waits for

 private:
  // Up to here a copy's start takes longer than the GPU's reads across the bus.
  static constexpr uint64_t kReadInPlace = 8 << 10;
  static constexpr uint64_t kPiece = 1 << 20;
  // Bytes that pay for handing them to another thread.
  static constexpr uint64_t kGrain = 128 << 10;

  void take_memory(uint64_t num_bytes) {
    if (host_keys_.count() >= num_bytes) return;
    const uint64_t count = std::max(num_bytes, 2 * host_keys_.count());
    host_keys_ = HostBuffer<char>(count);
    device_keys_ = DeviceBuffer<char>(count);
  }

  void copy(char* to, const char* from, uint64_t num_bytes) {
    copiers_.run(num_bytes, kGrain, [&](uint64_t begin, uint64_t end) {
      std::memcpy(to + begin, from + begin, end - begin);
    });
  }

  void transfer(uint64_t place, uint64_t num_bytes) {
    if (in_place_ || num_bytes == 0) return;
    check(cudaMemcpyAsync(device_keys_.get() + place, host_keys_.get() + place, num_bytes,
                          cudaMemcpyHostToDevice, sending.get()),
          "copy keys to the GPU");
  }

  ThreadPool& copiers_;
  Event sent_;
  Event default_reached_;
  HostBuffer<char> host_keys_;
  DeviceBuffer<char> device_keys_;
  bool in_place_ = false;
};

// Calls `run(begin, end)` for pieces of the keys, which are there in the order of `stream`. With
// `whole`, for all of them at once.
template <class Run>
void in_order_of(cudaStream_t stream, const Keys& keys, bool whole, const Run& run) {
  Lane* const lane = keys.lane;
  if (lane == nullptr) return run(uint64_t{0}, keys.count);
  uint64_t begin = 0;
  for (uint64_t end = 0; end < keys.count;) {
    end = lane->send(keys, end);
    if (whole && end < keys.count) continue;
    if (!lane->is_in_place()) lane->join(stream);
    run(begin, end);
    begin = end;
  }
}

// Hands out lanes that the GPU is done with.
class LanePool {
 public:
  explicit LanePool(ThreadPool& copiers) : copiers_(copiers) {}

  class Loan {
   public:
    explicit Loan(LanePool& pool) : pool_(pool), lane_(pool.take()) {}
    ~Loan() {
      if (std::uncaught_exceptions() > exceptions_) cudaDeviceSynchronize();
      const std::lock_guard<std::mutex> lock(pool_.mutex_);
      pool_.free_.push_back(std::move(lane_));
    }
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    Lane* operator->() const { return lane_.get(); }

   private:
    LanePool& pool_;
    std::unique_ptr<Lane> lane_;
    const int exceptions_ = std::uncaught_exceptions();
  };

 private:
  // Lanes that the GPU may be busy with; a caller that is further ahead waits.
  static constexpr size_t kMostAhead = 8;

  std::unique_ptr<Lane> take() {
    std::unique_ptr<Lane> lane;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = std::find_if(free_.rbegin(), free_.rend(),
                                      [](const auto& one) { return one->used.is_over(); });
      if (found != free_.rend()) {
        lane = std::move(*found);
        free_.erase(std::next(found).base());
        return lane;
      }
      if (free_.size() >= kMostAhead) {
        lane = std::move(free_.front());
        free_.erase(free_.begin());
      }
    }
    if (lane == nullptr) return std::make_unique<Lane>(copiers_);
    lane->used.wait();
    return lane;
  }

  ThreadPool& copiers_;
  std::mutex mutex_;  // guards what follows
  std::vector<std::unique_ptr<Lane>> free_;
};

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_LANES_H_
