// The order, on the GPU, of what reads rows and what writes them.
#ifndef HPSBENCH_HPS_NATIVE_GPU_ORDER_H_
#define HPSBENCH_HPS_NATIVE_GPU_ORDER_H_

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>

#include "gpu_memory.h"

namespace hps::gpu {

// Readers run side by side on their streams; a writer runs alone: it waits for the readers given to
// the GPU before it, and those after it wait for it. The waiting is done by the GPU; on the host, a
// lock is held only while work is handed over.
class Order {
 public:
  // Calls `launch`, which gives `stream` work that reads.
  template <class Launch>
  void read(cudaStream_t stream, const Launch& launch) {
    read(stream, stream, launch);
  }

  // Calls `launch`, which gives work that reads to stream `first`, and to `last`, which goes on from
  // that.
  template <class Launch>
  void read(cudaStream_t first, cudaStream_t last, const Launch& launch) {
    const std::shared_lock<std::shared_mutex> lock(mutex_);
    if (was_written_) {
      if (written_.is_over()) {
        was_written_ = false;  // no reader need ask again
      } else {
        written_.hold(first);
      }
    }
    try {
      launch();
    } catch (...) {
      if (first != last) mark(first);
      mark(last);
      throw;
    }
    mark(last);
  }

  // Calls `launch`, which gives `stream` work that writes, or does something else that no reader
  // may see half done.
  template <class Launch>
  void write(cudaStream_t stream, const Launch& launch) {
    const std::unique_lock<std::shared_mutex> lock(mutex_);
    for (const auto& [reader, event] : marks_) {
      if (reader != stream) event->hold(stream);
    }
    if (was_written_) written_.hold(stream);
    launch();
    written_.record(stream);
    was_written_ = true;
  }

 private:
  void mark(cudaStream_t stream) {
    const std::lock_guard<std::mutex> lock(marks_mutex_);
    auto& event = marks_[stream];
    if (event == nullptr) event = std::make_unique<Event>();
    event->record(stream);
  }

  std::shared_mutex mutex_;
  std::atomic<bool> was_written_{false};  // and it may not be over
  Event written_;
  std::mutex marks_mutex_;
  std::map<cudaStream_t, std::unique_ptr<Event>> marks_;  // after the last reader of each stream
};

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_ORDER_H_
