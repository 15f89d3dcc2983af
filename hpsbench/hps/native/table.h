// Tables over memory-mapped rows, and the models that they make up.
#ifndef HPSBENCH_HPS_NATIVE_TABLE_H_
#define HPSBENCH_HPS_NATIVE_TABLE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core.h"
#include "index.h"
#include "thread_pool.h"
#include "tiers.h"

namespace hps {

// What load functions throw; the C interface turns it into a status and a text.
struct Error {
  hps_status status;
  std::string text;
};

// A file's bytes, read-only, for as long as this lives.
class MappedFile {
 public:
  // Throws Error unless the file can be mapped and has `num_bytes`.
  MappedFile(const std::string& path, uint64_t num_bytes);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const void* data() const { return data_; }
  uint64_t num_bytes() const { return num_bytes_; }

 private:
  void* data_;
  uint64_t num_bytes_;
};

class Table {
 public:
  // The index comes with `use_direct_index` or `use_hash_index`.
  explicit Table(const hps_table_spec& spec);

  const std::string& name() const { return name_; }
  uint64_t num_keys() const { return num_keys_; }
  uint64_t embedding_dim() const { return embedding_dim_; }
  const MappedFile& rows() const { return rows_file_; }
  hps_table_facts facts() const;

  void use_direct_index(int64_t first_key) { first_key_ = first_key; }
  // Rows of this table are numbered from `first_row` in `index`.
  void use_hash_index(std::shared_ptr<const HashIndex> index, uint32_t first_row);

  const float* default_row() const { return default_row_.data(); }

  template <class Key>
  void lookup(const Key* keys, uint64_t num_keys, const hps_destination& out, bool continued);
  // The rows for a cache: says which keys are there, and does not count them as asked.
  void fetch(const int64_t* keys, uint64_t num_keys, float* out, uint8_t* found);
  // The same of the mapped rows alone; `found` may be null. Returns how many keys have one.
  template <class Key>
  uint64_t lookup_mapped(const Key* keys, uint64_t num_keys, float* out, uint8_t* found) const;

  // Null as long as nothing but the mapped rows answers. Set once, and then never again.
  TableTiers* tiers() const { return tiers_.load(std::memory_order_acquire); }
  void use_tiers(std::unique_ptr<TableTiers> tiers);
  hps_tier_facts tier_facts(hps_tier tier) const;

 private:
  template <class Key>
  uint64_t lookup_mapped(const Key* keys, uint64_t num_keys, const hps_destination& out,
                         uint8_t* found) const;
  template <class Key>
  uint64_t lookup_tiers(TableTiers& tiers, const Key* keys, uint64_t num_keys,
                        const hps_destination& out) const;
  template <class Key, class Index, class Row>
  void copy(const Index& index, const Key* keys, uint64_t n, const hps_destination& out,
            const Row& row) const;
  template <class Use>
  void with_index(const Use& use) const;

  struct DirectIndex;
  struct SharedHashIndex;

  const std::string name_;
  const uint64_t num_keys_;
  const uint64_t embedding_dim_;
  const MappedFile rows_file_;
  const float* const rows_;
  const std::vector<float> default_row_;
  int64_t first_key_ = 0;
  std::shared_ptr<const HashIndex> hash_index_;  // null: direct
  uint32_t first_row_ = 0;
  std::unique_ptr<TableTiers> kept_tiers_;
  std::atomic<TableTiers*> tiers_{nullptr};

  // On a cache line of their own: they change while all else is only read.
  alignas(64) std::atomic<uint64_t> lookups_{0};
  std::atomic<uint64_t> keys_{0};
  std::atomic<uint64_t> missing_keys_{0};
  TierCounters mapped_;  // as long as there are no tiers
};

class Model {
 public:
  Model(const hps_table_spec* specs, int32_t num_tables, int32_t num_threads);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  int32_t num_tables() const { return static_cast<int32_t>(tables_.size()); }
  Table& table(int32_t number) { return *tables_[number]; }
  const Table& table(int32_t number) const { return *tables_[number]; }

  template <class Key>
  void lookup_flat(const Key* keys, const uint64_t* num_keys, float* out);
  void fetch(int32_t table, const int64_t* keys, uint64_t num_keys, float* out, uint8_t* found);
  // The table's tiers, made with `options` where it has none; null options: those of mapped rows.
  TableTiers& tiers(int32_t table, const hps_tier_options* options);

  std::atomic<int64_t> references{1};
  Databases databases;

 private:
  void index_group(const std::vector<int32_t>& members, const hps_table_spec* specs);
  void touch_rows();

  ThreadPool pool_;
  std::vector<std::unique_ptr<Table>> tables_;
  std::mutex tiers_mutex_;  // guards their creation
  std::atomic<bool> stopping_{false};
  std::thread toucher_;
  const unsigned forks_;
};

}  // namespace hps

#endif  // HPSBENCH_HPS_NATIVE_TABLE_H_
