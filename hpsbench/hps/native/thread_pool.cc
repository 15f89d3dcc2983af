#include "thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <system_error>

namespace hps {

// Ranges are claimed, not assigned: whoever comes first takes the next one. So a worker that never
// comes (busy elsewhere, or lost in a fork) delays nobody.
struct ThreadPool::Job {
  const Work* work;
  uint64_t total;
  uint64_t step;
  uint64_t num_ranges;
  std::atomic<uint64_t> next{0};
  std::mutex mutex;
  std::condition_variable all_done;
  uint64_t done = 0;  // guarded by mutex

  void help() {
    uint64_t finished = 0;
    for (;;) {
      const uint64_t range = next.fetch_add(1);
      if (range >= num_ranges) break;
      const uint64_t begin = range * step;
      (*work)(begin, std::min(begin + step, total));
      ++finished;
    }
    if (finished == 0) return;
    const std::lock_guard<std::mutex> lock(mutex);
    done += finished;
    if (done == num_ranges) all_done.notify_one();
  }
};

ThreadPool::ThreadPool(unsigned num_threads)
    : num_threads_(num_threads != 0 ? num_threads
                                    : std::max(1u, std::thread::hardware_concurrency())) {}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) {
    if (getpid() == owner_pid_) {
      worker.join();
    } else {
      worker.detach();
    }
  }
}

// Under mutex_. Where the system refuses a thread, those that there are do the work.
void ThreadPool::start_workers() {
  if (!workers_.empty()) return;
  owner_pid_ = getpid();
  try {
    while (workers_.size() + 1 < num_threads_) workers_.emplace_back([this] { serve(); });
  } catch (const std::system_error&) {
  }
}

void ThreadPool::run(uint64_t total, uint64_t grain, const Work& work) {
  if (total == 0) return;
  grain = std::max<uint64_t>(1, grain);
  std::unique_lock<std::mutex> busy(busy_, std::defer_lock);
  if (num_threads_ == 1 || total < 2 * grain || !busy.try_lock()) {
    work(0, total);
    return;
  }
  const auto job = std::make_shared<Job>();
  job->work = &work;
  job->total = total;
  // A few ranges per thread, so that a thread that starts late or slowly leaves the rest to others.
  job->step = std::max(grain, (total + 4 * num_threads_ - 1) / (4 * num_threads_));
  job->num_ranges = (total + job->step - 1) / job->step;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    start_workers();
    job_ = job;
  }
  wake_.notify_all();
  job->help();
  {
    std::unique_lock<std::mutex> lock(job->mutex);
    job->all_done.wait(lock, [&] { return job->done == job->num_ranges; });
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  job_.reset();
}

void ThreadPool::serve() {
  std::shared_ptr<Job> last;
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || (job_ && job_ != last); });
      if (stopping_) return;
      last = job_;
    }
    last->help();
  }
}

}  // namespace hps
