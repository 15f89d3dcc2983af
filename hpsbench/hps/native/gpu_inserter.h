// The thread that inserts rows in the background, while lookups go on.
#ifndef HPSBENCH_HPS_NATIVE_GPU_INSERTER_H_
#define HPSBENCH_HPS_NATIVE_GPU_INSERTER_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include "gpu_memory.h"
#include "gpu_workspace.h"

namespace hps::gpu {

class Inserter {
 public:
  // Inserts rows by way of the staging memory, in the order of the stream.
  using Job = std::function<void(Staging&, cudaStream_t)>;

  Inserter(int device, uint64_t largest_dim) : device_(device), largest_dim_(largest_dim) {}
  ~Inserter() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
  }
  Inserter(const Inserter&) = delete;
  Inserter& operator=(const Inserter&) = delete;

  // Has the job done later, or never, where lookups miss faster than rows can be inserted: a cache
  // may forget, and the keys that matter are missed again.
  void offer(Job job) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (jobs_.size() >= kMaxJobs) return;
      if (!thread_.joinable()) thread_ = std::thread([this] { serve(); });
      jobs_.push_back(std::move(job));
    }
    changed_.notify_all();
  }

  // Does the job now, on the calling thread: before any lookup.
  void run(const Job& job) {
    if (!staging_) staging_.emplace(largest_dim_);
    job(*staging_, stream_.get());
    stream_.wait();
  }

  void settle() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return jobs_.empty() && !busy_; });
  }

 private:
  static constexpr size_t kMaxJobs = 16;

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
      if (stopping_) return;
      const Job job = std::move(jobs_.front());
      jobs_.pop_front();
      busy_ = true;
      lock.unlock();
      try {
        const DeviceScope scope(device_);
        run(job);
      } catch (...) {  // nothing may leave a thread; rows that are not inserted are missed again
      }
      lock.lock();
      busy_ = false;
      changed_.notify_all();
    }
  }

  const int device_;
  const uint64_t largest_dim_;
  std::optional<Staging> staging_;
  Stream stream_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  bool busy_ = false;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_INSERTER_H_
