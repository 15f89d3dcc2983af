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

#include "claimed_ranges.h"

namespace hps {

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

  void start(const std::shared_ptr<ClaimedRanges>& work) {
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
    std::shared_ptr<ClaimedRanges> last;
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
  std::shared_ptr<ClaimedRanges> job;
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
  // A few ranges per thread, so that a thread that starts late or slowly leaves the rest to others.
  const uint64_t step = std::max(grain, (total + 4 * num_threads_ - 1) / (4 * num_threads_));
  const auto job = std::make_shared<ClaimedRanges>(work, total, step);
  crew.start(job);
  job->finish();
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
