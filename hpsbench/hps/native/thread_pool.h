// Threads of the core, for callers that bring none: loading, and lookups from Python.
#ifndef HPSBENCH_HPS_NATIVE_THREAD_POOL_H_
#define HPSBENCH_HPS_NATIVE_THREAD_POOL_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace hps {

// Shares one piece of work at a time out among its threads and the caller's.
//
// A caller that finds the pool busy does its work alone: concurrent lookups already use the cores,
// and none waits for another. The workers start with the first work worth sharing.
class ThreadPool {
 public:
  using Work = std::function<void(uint64_t begin, uint64_t end)>;

  // `num_threads` counts the caller's; 0 means one per core.
  explicit ThreadPool(unsigned num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  unsigned num_threads() const { return num_threads_; }

  // Calls `work` for ranges that cover [0, total), each at least `grain` long where possible, and
  // returns when all are done. `work` must not throw.
  void run(uint64_t total, uint64_t grain, const Work& work);

 private:
  struct Job;
  void start_workers();
  void serve();

  const unsigned num_threads_;
  std::mutex busy_;   // held by the caller whose work is shared out
  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::shared_ptr<Job> job_;
  bool stopping_ = false;
  std::vector<std::thread> workers_;
  int owner_pid_ = 0;  // a forked child inherits the list of workers, not the workers
};

}  // namespace hps

#endif  // HPSBENCH_HPS_NATIVE_THREAD_POOL_H_
