// Memory for one slab lookup at a time, and the pool that hands it out.
#ifndef HPSBENCH_HPS_NATIVE_GPU_WORKSPACE_H_
#define HPSBENCH_HPS_NATIVE_GPU_WORKSPACE_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "gpu_memory.h"

namespace hps::gpu {

// What a slab lookup counts, all zero before. Hits are spread over places that do not contend with
// each other.
struct LookupCounts {
  static constexpr int kHitCounters = 32;
  unsigned int missing_keys;    // unique ones
  unsigned int duplicates;      // of missing keys
  unsigned int finished_blocks;
  unsigned int padding[5];
  struct {
    unsigned int unique_hits;
    unsigned int padding[7];
  } hits[kHitCounters];
};

// What a lookup counted, in page-locked memory. It is there once `number` is the lookup's.
struct CountsOnHost {
  unsigned int missing_keys;
  unsigned int duplicates;
  unsigned int unique_hits;
  unsigned int number;
};

// The state in which a lookup finds its missing keys, each once. An entry of `seen` belongs to the
// lookup whose number it carries, so none of it is ever cleared, and a lookup of n keys uses 2n
// entries whatever the size for which memory was taken.
struct MissLists {
  unsigned long long* seen;  // lookup number << 32 | position of the key
  uint32_t seen_mask;
  uint32_t number;
  int64_t* host_keys;    // the missing keys, in page-locked memory
  int64_t* keys;         // and on the GPU
  uint32_t* positions;   // in the batch, of the missing keys
  uint32_t* duplicates;  // positions of keys that are missing keys again
  uint32_t* originals;   // and of the missing key that each of them equals
  LookupCounts* counts;
  volatile CountsOnHost* counts_on_host;
};

// Rows on their way to the GPU: page-locked memory that the host fills, and GPU memory that it is
// copied to. There are two halves, so that one is filled while the other is copied and used.
class Staging {
 public:
  static constexpr uint64_t kBytes = 16 << 20;
  static constexpr uint64_t kMaxRows = 1 << 16;
  static constexpr uint64_t kMinRows = 1 << 13;

  class Half {
   public:
    HostBuffer<float> rows;
    HostBuffer<uint8_t> found;
    HostBuffer<int64_t> keys;  // for kernels that insert what is not on the GPU yet
    DeviceBuffer<float> device_rows;
    DeviceBuffer<uint8_t> device_found;
    Event used;  // by the GPU, in this half

    void send(uint64_t num_rows, uint64_t dim, cudaStream_t stream) const {
      check(cudaMemcpyAsync(device_rows.get(), rows.get(), num_rows * dim * sizeof(float),
                            cudaMemcpyHostToDevice, stream),
            "copy rows to the GPU");
      check(cudaMemcpyAsync(device_found.get(), found.get(), num_rows, cudaMemcpyHostToDevice,
                            stream),
            "copy rows to the GPU");
    }
  };

  explicit Staging(uint64_t largest_dim)
      : num_floats_(std::max<uint64_t>(kBytes / sizeof(float), largest_dim)) {
    for (Half& half : halves_) {
      half.device_rows = DeviceBuffer<float>(num_floats_);
      half.device_found = DeviceBuffer<uint8_t>(kMaxRows);
      half.rows = HostBuffer<float>(num_floats_);
      half.found = HostBuffer<uint8_t>(kMaxRows);
      half.keys = HostBuffer<int64_t>(kMaxRows);
    }
  }

  // Calls `run(begin, count, half)` for pieces of `num_rows` rows, with halves that are free. The
  // work that it gives to the stream is done with the half.
  template <class Run>
  void in_pieces(uint64_t num_rows, uint64_t dim, cudaStream_t stream, const Run& run) {
    // Several pieces even of few rows: the host then works while the GPU does.
    const uint64_t piece = std::min({kMaxRows, std::max<uint64_t>(1, num_floats_ / dim),
                                     std::max(kMinRows, (num_rows + 3) / 4)});
    for (uint64_t begin = 0; begin < num_rows; begin += piece) {
      Half& half = halves_[turn_ ^= 1];
      half.used.wait();
      run(begin, std::min(piece, num_rows - begin), half);
      half.used.record(stream);
    }
  }

 private:
  const uint64_t num_floats_;
  Half halves_[2];
  int turn_ = 0;
};

class Workspace {
 public:
  Workspace(uint64_t max_keys, uint64_t largest_dim)
      : seen_(places_for(max_keys)),
        keys_(max_keys),
        positions_(max_keys),
        duplicates_(max_keys),
        originals_(max_keys),
        counts_(1),
        host_keys_(max_keys),
        host_counts_(1),
        slots(max_keys),
        staging(largest_dim) {
    host_counts_[0] = {};
    check(cudaMemset(seen_.get(), 0, seen_.num_bytes()), "clear a workspace");
    check(cudaMemset(counts_.get(), 0, counts_.num_bytes()), "clear a workspace");
    check(cudaDeviceSynchronize(), "clear a workspace");
  }

  // The lists for the next lookup, of `num_keys` keys at most the maximum.
  MissLists lists(uint64_t num_keys, cudaStream_t stream) {
    if (++number_ == 0) {  // numbers begin anew: forget whose the entries were
      check(cudaMemsetAsync(seen_.get(), 0, seen_.num_bytes(), stream), "clear a workspace");
      number_ = 1;
    }
    if (counts_are_due_) {  // the last lookup broke off
      check(cudaMemsetAsync(counts_.get(), 0, counts_.num_bytes(), stream), "clear counters");
    }
    counts_are_due_ = true;
    return {seen_.get(), static_cast<uint32_t>(places_for(num_keys) - 1), number_,
            host_keys_.get(), keys_.get(), positions_.get(), duplicates_.get(), originals_.get(),
            counts_.get(), host_counts_.get()};
  }

  // Returns the counts of the last lookup when there are; `probed` was recorded after it.
  CountsOnHost wait_for_counts() {
    volatile CountsOnHost& counts = host_counts_[0];
    // The GPU tells some microseconds before CUDA does.
    const auto patience = std::chrono::steady_clock::now() + kPatience;
    while (counts.number != number_ && std::chrono::steady_clock::now() < patience) {
    }
    if (counts.number != number_) probed.wait();
    std::atomic_thread_fence(std::memory_order_acquire);
    counts_are_due_ = false;
    return {counts.missing_keys, counts.duplicates, counts.unique_hits, counts.number};
  }

  uint64_t num_device_bytes() const {
    return seen_.num_bytes() + keys_.num_bytes() + positions_.num_bytes() +
           duplicates_.num_bytes() + originals_.num_bytes() + slots.num_bytes();
  }

 private:
  static constexpr std::chrono::microseconds kPatience{100};

  // A power of two, at least half of them free.
  static uint64_t places_for(uint64_t num_keys) {
    uint64_t places = 2;
    while (places < 2 * num_keys) places *= 2;
    return places;
  }

  uint32_t number_ = 0;
  bool counts_are_due_ = false;
  DeviceBuffer<unsigned long long> seen_;
  DeviceBuffer<int64_t> keys_;
  DeviceBuffer<uint32_t> positions_;
  DeviceBuffer<uint32_t> duplicates_;
  DeviceBuffer<uint32_t> originals_;
  DeviceBuffer<LookupCounts> counts_;
  HostBuffer<int64_t> host_keys_;
  HostBuffer<CountsOnHost> host_counts_;

 public:
  DeviceBuffer<uint32_t> slots;  // of the keys, where they hit
  Staging staging;
  Event probed;
  Event used;  // by all work of the last lookup
};

// Hands out workspaces, and makes more when all are in use; where memory is short, callers wait.
class WorkspacePool {
 public:
  WorkspacePool(int32_t count, uint64_t max_keys, uint64_t largest_dim)
      : max_keys_(max_keys), largest_dim_(largest_dim) {
    for (int32_t i = 0; i < count; ++i) free_.push_back(make());
  }
  uint64_t max_keys() const { return max_keys_; }
  uint64_t num_device_bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return made_.empty() ? 0 : made_.size() * made_[0]->num_device_bytes();
  }

  class Loan {
   public:
    explicit Loan(WorkspacePool& pool) : pool_(pool), workspace_(pool.take()) {}
    ~Loan() { pool_.give_back(workspace_); }
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    Workspace* operator->() const { return workspace_; }
    Workspace& operator*() const { return *workspace_; }

   private:
    WorkspacePool& pool_;
    Workspace* const workspace_;
  };

 private:
  Workspace* make() {
    auto workspace = std::make_unique<Workspace>(max_keys_, largest_dim_);
    const std::lock_guard<std::mutex> lock(mutex_);
    made_.push_back(std::move(workspace));
    return made_.back().get();
  }

  Workspace* take() {
    std::unique_lock<std::mutex> lock(mutex_);
    if (free_.empty()) {
      const bool can_wait = !made_.empty();
      lock.unlock();
      try {
        return make();
      } catch (const Error&) {
        if (!can_wait) throw;
      }
      lock.lock();
      returned_.wait(lock, [&] { return !free_.empty(); });
    }
    Workspace* const workspace = free_.back();
    free_.pop_back();
    return workspace;
  }

  void give_back(Workspace* workspace) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      free_.push_back(workspace);
    }
    returned_.notify_one();
  }

  const uint64_t max_keys_;
  const uint64_t largest_dim_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable returned_;
  std::vector<std::unique_ptr<Workspace>> made_;
  std::vector<Workspace*> free_;
};

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_WORKSPACE_H_
