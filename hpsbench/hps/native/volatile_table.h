// Rows copied into host memory, which come and go: the volatile tier, and the rows that were updated.
#ifndef HPSBENCH_HPS_NATIVE_VOLATILE_TABLE_H_
#define HPSBENCH_HPS_NATIVE_VOLATILE_TABLE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "core.h"

namespace hps {

// Partitions, each a hash map under a lock of its own, so that threads meet only where they ask for
// the same partition at the same time, and readers not even then. A row is written and copied under
// its partition's lock: nobody sees half of one.
class VolatileTable {
 public:
  // What the partitions had been told when somebody looked below this tier for what it lacks.
  using Versions = std::vector<uint64_t>;

  VolatileTable(uint64_t embedding_dim, const hps_volatile_options& options);
  ~VolatileTable();
  VolatileTable(const VolatileTable&) = delete;
  VolatileTable& operator=(const VolatileTable&) = delete;

  // Copies row i, where there is one, to out + i * embedding_dim, and sets found[i]. Returns how
  // many were found.
  uint64_t lookup(const int64_t* keys, uint64_t num_keys, float* out, uint8_t* found);

  // Writes rows, whether their keys are there or not; the last of a repeated key counts.
  void upsert(const int64_t* keys, uint64_t num_keys, const float* rows);
  Versions versions() const;
  // Writes the rows with found[i] whose keys are not there, but none into a partition that was
  // upserted since `seen`: what lies below may be older than that.
  void insert_missed(const int64_t* keys, uint64_t num_keys, const float* rows,
                     const uint8_t* found, const Versions& seen);
  // The other way round: rewrites only what is there.
  void replace(const int64_t* keys, uint64_t num_keys, const float* rows, const uint8_t* found,
               const Versions& seen);
  std::vector<int64_t> keys(uint32_t partition) const;

  uint32_t num_partitions() const { return static_cast<uint32_t>(partitions_.size()); }
  uint64_t size() const;
  uint64_t num_bytes() const;  // of rows and maps
  uint64_t inserted() const { return inserted_.load(std::memory_order_relaxed); }
  uint64_t evicted() const { return evicted_.load(std::memory_order_relaxed); }

 private:
  struct Row;
  class Partition;
  struct Order;

  const Order& order(const int64_t* keys, uint64_t num_keys) const;
  template <class Write>
  void write(const int64_t* keys, uint64_t num_keys, const Write& write);

  const uint64_t embedding_dim_;
  const hps_volatile_options options_;
  std::vector<std::unique_ptr<Partition>> partitions_;
  std::atomic<uint32_t> now_{0};  // counts lookups and writes
  std::atomic<uint64_t> inserted_{0};
  std::atomic<uint64_t> evicted_{0};
};

}  // namespace hps

#endif  // HPSBENCH_HPS_NATIVE_VOLATILE_TABLE_H_
