// How long the stages of lookups take: of one lookup in many, so that the others pay nothing.
#ifndef HPSBENCH_HPS_NATIVE_GPU_STAGES_H_
#define HPSBENCH_HPS_NATIVE_GPU_STAGES_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "gpu_memory.h"

namespace hps::gpu {

enum Stage { kProbe, kFetch, kMerge, kInsert, kNumStages };

// A stretch of a stream's work.
class Span {
 public:
  explicit Span(cudaStream_t stream) {
    for (auto& event : events_) check(cudaEventCreate(&event), "make an event");
    check(cudaEventRecord(events_[0], stream), "record an event");
  }
  ~Span() {
    for (const auto event : events_) cudaEventDestroy(event);
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

  void end(cudaStream_t stream) { check(cudaEventRecord(events_[1], stream), "record an event"); }
  bool is_over() const { return cudaEventQuery(events_[1]) == cudaSuccess; }
  double ns() const {
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, events_[0], events_[1]);
    return 1e6 * milliseconds;
  }

 private:
  cudaEvent_t events_[2] = {};
};

// The stage times of one table.
class StageClock {
 public:
  // Whether the lookup that asks is one to be timed; if so, it is counted.
  bool samples() {
    if (lookups_.fetch_add(1, std::memory_order_relaxed) % kPeriod != 0) return false;
    count();
    return true;
  }
  void count() { sampled_.fetch_add(1, std::memory_order_relaxed); }

  // `share` of a span that may not be over yet.
  void add(Stage stage, std::shared_ptr<const Span> span, double share = 1) {
    const std::lock_guard<std::mutex> lock(mutex_);
    collect();
    pending_.push_back({stage, std::move(span), share});
  }
  void add(Stage stage, std::chrono::nanoseconds time) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ns_[stage] += static_cast<double>(time.count());
  }

  // Times what `launch` gives to `stream`, where `sampled`.
  template <class Launch>
  void time(bool sampled, Stage stage, cudaStream_t stream, const Launch& launch) {
    if (!sampled) return launch();
    const auto span = std::make_shared<Span>(stream);
    launch();
    span->end(stream);
    add(stage, span);
  }

  uint64_t sampled() const { return sampled_.load(std::memory_order_relaxed); }
  uint64_t ns(Stage stage) {
    const std::lock_guard<std::mutex> lock(mutex_);
    collect();
    return static_cast<uint64_t>(ns_[stage]);
  }

 private:
  static constexpr uint64_t kPeriod = 64;

  struct Pending {
    Stage stage;
    std::shared_ptr<const Span> span;
    double share;
  };

  void collect() {
    const auto over = std::partition(pending_.begin(), pending_.end(),
                                     [](const Pending& p) { return !p.span->is_over(); });
    for (auto it = over; it != pending_.end(); ++it) ns_[it->stage] += it->share * it->span->ns();
    pending_.erase(over, pending_.end());
    cudaGetLastError();  // "not ready" is no failure, and must not be found as one
  }

  std::atomic<uint64_t> lookups_{0};
  std::atomic<uint64_t> sampled_{0};
  std::mutex mutex_;  // guards what follows
  double ns_[kNumStages] = {};
  std::vector<Pending> pending_;
};

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_STAGES_H_
