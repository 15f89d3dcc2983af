#include "thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

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

// The workers, and how they are given work.
struct ThreadPool::Crew {
  explicit Crew(unsigned number) : num_workers(number), forks(num_forks()) {}

  ~Crew() {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      stopping = true;
    }
    wake.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

  void start(const std::shared_ptr<Job>& work) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      hire();
      job = work;
    }
    wake.notify_all();
  }

  void finish() {
    const std::lock_guard<std::mutex> lock(mutex);
    job.reset();
  }

  // Under `mutex`. Where the system refuses a thread, those that there are do the work.
  void hire() {
    if (!workers.empty()) return;
    try {
      while (workers.size() < num_workers) workers.emplace_back([this] { serve(); });
    } catch (const std::system_error&) {
    }
  }

  void serve() {
    std::shared_ptr<Job> last;
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [&] { return stopping || (job && job != last); });
        if (stopping) return;
        last = job;
      }
      last->help();
    }
  }

  const unsigned num_workers;
  const unsigned forks;
  std::mutex busy;   // held by the caller whose work is shared out
  std::mutex mutex;  // guards what follows
  std::condition_variable wake;
  std::shared_ptr<Job> job;
  bool stopping = false;
  std::vector<std::thread> workers;
};

ThreadPool::ThreadPool(unsigned num_threads)
    : num_threads_(num_threads != 0 ? num_threads
                                    : std::max(1u, std::thread::hardware_concurrency())),
      crew_(new Crew(num_threads_ - 1)) {}

ThreadPool::~ThreadPool() {
  Crew* const crew = crew_.load();
  if (crew->forks == num_forks()) delete crew;
}

ThreadPool::Crew& ThreadPool::crew() {
  Crew* found = crew_.load(std::memory_order_acquire);
  if (found->forks == num_forks()) return *found;
  Crew* const fresh = new Crew(num_threads_ - 1);
  if (crew_.compare_exchange_strong(found, fresh)) return *fresh;
  delete fresh;
  return *found;
}

void ThreadPool::run(uint64_t total, uint64_t grain, const Work& work) {
  if (total == 0) return;
  grain = std::max<uint64_t>(1, grain);
  if (num_threads_ == 1 || total < 2 * grain) {
    work(0, total);
    return;
  }
  Crew& crew = this->crew();
  const std::unique_lock<std::mutex> busy(crew.busy, std::try_to_lock);
  if (!busy) {
    work(0, total);
    return;
  }
  const auto job = std::make_shared<Job>();
  job->work = &work;
  job->total = total;
  // A few ranges per thread, so that a thread that starts late or slowly leaves the rest to others.
  job->step = std::max(grain, (total + 4 * num_threads_ - 1) / (4 * num_threads_));
  job->num_ranges = (total + job->step - 1) / job->step;
  crew.start(job);
  job->help();
  {
    std::unique_lock<std::mutex> lock(job->mutex);
    job->all_done.wait(lock, [&] { return job->done == job->num_ranges; });
  }
  crew.finish();
}

unsigned num_forks() {
  static std::atomic<unsigned> forks{0};
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
  static_cast<void>(registered);
  return forks.load(std::memory_order_relaxed);
}

}  // namespace hps
