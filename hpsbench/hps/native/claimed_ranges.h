// Work that several threads share.
#ifndef HPSBENCH_HPS_NATIVE_CLAIMED_RANGES_H_
#define HPSBENCH_HPS_NATIVE_CLAIMED_RANGES_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>

namespace hps {

// Ranges are claimed, not assigned: whoever comes first takes the next one. So a thread that never
// comes (busy elsewhere, or lost in a fork) delays nobody. Threads that may come after the end keep
// this alive, and do not touch the work.
class ClaimedRanges {
 public:
  using Work = std::function<void(uint64_t begin, uint64_t end)>;

  // Ranges of `step` that cover [0, total). `work` must not throw.
  ClaimedRanges(const Work& work, uint64_t total, uint64_t step)
      : work_(&work), total_(total), step_(step), num_ranges_((total + step - 1) / step) {}

  uint64_t num_ranges() const { return num_ranges_; }

  // Does what nobody has claimed yet.
  void help() {
    uint64_t finished = 0;
    for (;;) {
      const uint64_t range = next_.fetch_add(1);
      if (range >= num_ranges_) break;
      const uint64_t begin = range * step_;
      (*work_)(begin, std::min(begin + step_, total_));
      ++finished;
    }
    if (finished == 0) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    done_ += finished;
    if (done_ == num_ranges_) all_done_.notify_one();
  }

  // Helps, and returns when all is done.
  void finish() {
    help();
    std::unique_lock<std::mutex> lock(mutex_);
    all_done_.wait(lock, [&] { return done_ == num_ranges_; });
  }

 private:
  const Work* const work_;
  const uint64_t total_;
  const uint64_t step_;
  const uint64_t num_ranges_;
  std::atomic<uint64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable all_done_;
  uint64_t done_ = 0;  // guarded by mutex_
};

}  // namespace hps

#endif  // HPSBENCH_HPS_NATIVE_CLAIMED_RANGES_H_
