// Threads of the core, for callers that bring none: loading, and lookups from Python.
#ifndef HPSBENCH_HPS_NATIVE_THREAD_POOL_H_
#define HPSBENCH_HPS_NATIVE_THREAD_POOL_H_

#include <atomic>
#include <cstdint>

#include "claimed_ranges.h"

namespace hps {

// Shares one piece of work at a time out among its threads and the caller's.
//
// A caller that finds the pool busy does its work alone: concurrent lookups already use the cores,
// and none waits for another. The workers start with the first work worth sharing; in a child of a fork,
// with the first work there.
class ThreadPool {
 public:
  using Work = ClaimedRanges::Work;

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
  struct Crew;
  Crew& crew();

  const unsigned num_threads_;
  std::atomic<Crew*> crew_;
};

// How often this process is a child of a fork, counted from the process that loaded the library. A
// child has its parent's memory and not its threads: what they hold locked stays locked, and a
// pthread_t of theirs may come to name a thread of its own. So whoever keeps threads remembers the
// number, and where it has changed, leaves them and their locks alone for ever.
unsigned num_forks();

}  // namespace hps

#endif  // HPSBENCH_HPS_NATIVE_THREAD_POOL_H_
