// What lies above and below the mapped rows of a table: copies in host memory, updated rows, and
// databases outside the process.
//
// A key is asked of the volatile tier, Redis, the updated rows, RocksDB and the mapped rows, in this
// order, until one has it; with `mapped_first`, of the updated rows, the mapped rows and RocksDB. A
// default is the answer when all have been asked, and is stored in none.
#ifndef HPSBENCH_HPS_NATIVE_TIERS_H_
#define HPSBENCH_HPS_NATIVE_TIERS_H_

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "core.h"
#include "volatile_table.h"

namespace hps {

class Table;

// The databases outside the process, which the owner of the model may take away at any time.
class Databases {
 public:
  // Null takes them away; then this returns only after running calls have returned.
  void set(const hps_databases* functions);
  int32_t fetch(hps_tier tier, int32_t table, const int64_t* keys, uint64_t num_keys, float* out,
                uint8_t* found) const;
  void insert(hps_tier tier, int32_t table, const int64_t* keys, uint64_t num_keys,
              const float* rows) const;

 private:
  // No lock: a caller that comes after `set` sees the change and leaves, so `set` never waits long.
  mutable std::atomic<int64_t> running_{0};
  std::atomic<const hps_databases*> functions_{nullptr};
  std::unique_ptr<const hps_databases> kept_;
};

inline uint64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

struct TierCounters {
  alignas(64) std::atomic<uint64_t> keys{0};
  std::atomic<uint64_t> hits{0};
  std::atomic<uint64_t> ns{0};
  void count(uint64_t asked, uint64_t found, uint64_t duration_ns);
};

class TableTiers {
 public:
  TableTiers(Table& table, int32_t number, const Databases& databases,
             const hps_tier_options& options);

  // Writes the rows of `keys` to `out`; `found` may be null. Returns how many keys have a row.
  // Falls back to the mapped rows where there is no memory left for the rest.
  template <class Key>
  uint64_t lookup(const Key* keys, uint64_t num_keys, float* out, uint8_t* found);
  // The rows that are there without the tiers before `first`.
  uint64_t fetch_from(hps_tier first, const int64_t* keys, uint64_t num_keys, float* out,
                      uint8_t* found);

  // Into the updated rows and the volatile tier.
  void update(const int64_t* keys, uint64_t num_keys, const float* rows);
  // Has the volatile tier hold these keys, as far as there are rows for them below.
  void preload(const int64_t* keys, uint64_t num_keys);
  uint64_t keys(hps_tier tier, int64_t* keys, uint64_t capacity) const;
  // Rewrites the volatile tier from what lies below it.
  void refresh();
  void facts(hps_tier tier, hps_tier_facts* facts) const;

 private:
  struct Scratch;

  template <class Key>
  uint64_t lookup_piece(const Key* keys, uint64_t num_keys, float* out, uint8_t* found);
  template <class Key>
  uint64_t look_at_mapped(Scratch& scratch, const Key* keys, uint64_t num_keys, float* out);
  uint64_t look_below(hps_tier first, Scratch& scratch, uint64_t num_keys, float* out);
  uint64_t ask(hps_tier tier, const int64_t* keys, uint64_t num_keys, float* out, uint8_t* found,
               bool* wants_missing);
  VolatileTable& updated_rows();
  const VolatileTable* rows_of(hps_tier tier) const;

  Table& table_;
  const int32_t number_;
  const Databases& databases_;
  const hps_tier_options options_;
  const std::unique_ptr<VolatileTable> volatile_;
  std::mutex mutex_;  // guards the creation of what follows
  std::unique_ptr<VolatileTable> updated_kept_;
  std::atomic<VolatileTable*> updated_{nullptr};
  std::array<TierCounters, HPS_NUM_TIERS> counters_;
};

}  // namespace hps

#endif  // HPSBENCH_HPS_NATIVE_TIERS_H_
