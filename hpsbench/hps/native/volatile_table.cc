#include "volatile_table.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <shared_mutex>

namespace hps {

namespace {

constexpr uint64_t kFirstSlots = 64;
constexpr uint64_t kFirstRows = 64;

inline uint64_t mix(int64_t key) {
  // The finalizer of splitmix64: its high bits choose the partition, its low bits the slot.
  uint64_t h = static_cast<uint64_t>(key);
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
  h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
  return h ^ (h >> 31);
}

}  // namespace

// Followed by its values.
struct VolatileTable::Row {
  std::atomic<uint32_t> uses;
  std::atomic<uint32_t> last_use;
  float* values() { return reinterpret_cast<float*>(this + 1); }
};

// One partition: an open-addressing hash map without tombstones, and slabs of rows. Its functions
// are called under `mutex`, shared for those that are const.
class VolatileTable::Partition {
 public:
  explicit Partition(uint64_t embedding_dim, const hps_volatile_options& options, uint64_t seed)
      : options_(options),
        row_bytes_((sizeof(Row) + embedding_dim * sizeof(float) + 7) & ~uint64_t{7}),
        random_(seed * 2 + 1),
        slots_(kFirstSlots) {}

  mutable std::shared_mutex mutex;
  std::atomic<uint64_t> version{0};
  std::atomic<uint64_t> size{0};
  std::atomic<uint64_t> num_bytes{kFirstSlots * sizeof(Slot)};

  void prefetch(uint64_t hash) const { __builtin_prefetch(&slots_[hash & (slots_.size() - 1)]); }

  Row* find(int64_t key, uint64_t hash) const {
    for (uint64_t i = hash & (slots_.size() - 1);; i = (i + 1) & (slots_.size() - 1)) {
      if (slots_[i].row == nullptr || slots_[i].key == key) return slots_[i].row;
    }
  }

  // The row of a key that is not there yet.
  Row* add(int64_t key, uint64_t hash) {
    if (4 * (count_ + 1) > 3 * slots_.size()) grow();
    Row* const row = take_row();
    place({key, row}, hash);
    size.store(++count_, std::memory_order_relaxed);
    return row;
  }

  // Evicts what is too much; returns how many rows that were.
  uint64_t resolve_overflow(uint32_t now) {
    if (count_ <= options_.overflow_margin) return 0;
    const auto target = static_cast<uint64_t>(options_.overflow_resolution_target *
                                              static_cast<double>(options_.overflow_margin));
    struct Candidate {
      uint64_t rank;  // the lowest go first
      Slot slot;
    };
    std::vector<Candidate> candidates;
    candidates.reserve(count_);
    for (const Slot& slot : slots_) {
      if (slot.row != nullptr) candidates.push_back({rank(*slot.row, now), slot});
    }
    const uint64_t excess = count_ - target;
    std::nth_element(candidates.begin(), candidates.begin() + (excess - 1), candidates.end(),
                     [](const Candidate& a, const Candidate& b) { return a.rank < b.rank; });
    for (uint64_t i = 0; i < candidates.size(); ++i) {
      if (i < excess) {
        erase(candidates[i].slot.key);
      } else {  // uses of long ago count less
        std::atomic<uint32_t>& uses = candidates[i].slot.row->uses;
        uses.store(uses.load(std::memory_order_relaxed) / 2, std::memory_order_relaxed);
      }
    }
    return excess;
  }

  std::vector<int64_t> keys() const {
    std::vector<int64_t> keys;
    keys.reserve(count_);
    for (const Slot& slot : slots_) {
      if (slot.row != nullptr) keys.push_back(slot.key);
    }
    return keys;
  }

 private:
  struct Slot {
    int64_t key = 0;
    Row* row = nullptr;  // null: free
  };

  uint64_t rank(const Row& row, uint32_t now) {
    switch (options_.overflow_policy) {
      case HPS_EVICT_LEAST_USED: return row.uses.load(std::memory_order_relaxed);
      case HPS_EVICT_OLDEST:  // the difference, so that the counter may wrap around
        return UINT32_MAX - (now - row.last_use.load(std::memory_order_relaxed));
      default:
        random_ ^= random_ << 13;
        random_ ^= random_ >> 7;
        random_ ^= random_ << 17;
        return random_;
    }
  }

  void place(const Slot& slot, uint64_t hash) {
    uint64_t i = hash & (slots_.size() - 1);
    while (slots_[i].row != nullptr) i = (i + 1) & (slots_.size() - 1);
    slots_[i] = slot;
  }

  void grow() {
    std::vector<Slot> outgrown(2 * slots_.size());
    outgrown.swap(slots_);
    for (const Slot& slot : outgrown) {
      if (slot.row != nullptr) place(slot, mix(slot.key));
    }
    num_bytes.fetch_add(outgrown.size() * sizeof(Slot), std::memory_order_relaxed);
  }

  void erase(int64_t key) {
    const uint64_t mask = slots_.size() - 1;
    uint64_t hole = mix(key) & mask;
    while (slots_[hole].key != key || slots_[hole].row == nullptr) hole = (hole + 1) & mask;
    free_rows_.push_back(slots_[hole].row);
    // Slots after the hole move into it, unless they would come before their home.
    for (uint64_t i = (hole + 1) & mask; slots_[i].row != nullptr; i = (i + 1) & mask) {
      const uint64_t home = mix(slots_[i].key) & mask;
      if (((i - home) & mask) < ((i - hole) & mask)) continue;
      slots_[hole] = slots_[i];
      hole = i;
    }
    slots_[hole].row = nullptr;
    size.store(--count_, std::memory_order_relaxed);
  }

  Row* take_row() {
    if (free_rows_.empty()) {
      const uint64_t most = std::max<uint64_t>(1, options_.allocation_rate / row_bytes_);
      const uint64_t rows = std::min(most, std::max(kFirstRows, num_rows_));
      slabs_.push_back(std::make_unique<uint64_t[]>(rows * row_bytes_ / sizeof(uint64_t)));
      char* const slab = reinterpret_cast<char*>(slabs_.back().get());
      free_rows_.reserve(num_rows_ + rows);
      for (uint64_t i = rows; i-- > 0;) {
        free_rows_.push_back(reinterpret_cast<Row*>(slab + i * row_bytes_));
      }
      num_rows_ += rows;
      num_bytes.fetch_add(rows * row_bytes_, std::memory_order_relaxed);
    }
    Row* const row = free_rows_.back();
    free_rows_.pop_back();
    return row;
  }

  const hps_volatile_options options_;
  const uint64_t row_bytes_;
  uint64_t random_;
  std::vector<Slot> slots_;
  uint64_t count_ = 0;
  std::vector<std::unique_ptr<uint64_t[]>> slabs_;
  uint64_t num_rows_ = 0;
  std::vector<Row*> free_rows_;
};

// The keys of a batch, those of one partition after those of another.
struct VolatileTable::Order {
  std::vector<uint64_t> hashes;      // of each key
  std::vector<uint32_t> partitions;  // of each key
  std::vector<uint32_t> positions;   // of the keys, ordered by partition
  std::vector<uint64_t> begins;      // of each partition in `positions`, and the end
};

VolatileTable::VolatileTable(uint64_t embedding_dim, const hps_volatile_options& options)
    : embedding_dim_(embedding_dim), options_(options) {
  for (uint32_t i = 0; i < std::max(1u, options.num_partitions); ++i) {
    partitions_.push_back(std::make_unique<Partition>(embedding_dim, options, i));
  }
}

VolatileTable::~VolatileTable() = default;

const VolatileTable::Order& VolatileTable::order(const int64_t* keys, uint64_t num_keys) const {
  thread_local Order order;
  order.hashes.resize(num_keys);
  order.partitions.resize(num_keys);
  order.positions.resize(num_keys);
  order.begins.assign(partitions_.size() + 1, 0);
  for (uint64_t i = 0; i < num_keys; ++i) {
    order.hashes[i] = mix(keys[i]);
    order.partitions[i] = static_cast<uint32_t>(
        (static_cast<unsigned __int128>(order.hashes[i]) * partitions_.size()) >> 64);
    ++order.begins[order.partitions[i] + 1];
  }
  for (size_t p = 1; p < order.begins.size(); ++p) order.begins[p] += order.begins[p - 1];
  thread_local std::vector<uint64_t> next;
  next.assign(order.begins.begin(), order.begins.end() - 1);
  for (uint64_t i = 0; i < num_keys; ++i) {
    order.positions[next[order.partitions[i]]++] = static_cast<uint32_t>(i);
  }
  return order;
}

uint64_t VolatileTable::lookup(const int64_t* keys, uint64_t num_keys, float* out,
                               uint8_t* found) {
  constexpr uint64_t kAhead = 8;
  const Order& order = this->order(keys, num_keys);
  const uint32_t now = now_.fetch_add(1, std::memory_order_relaxed) + 1;
  uint64_t hits = 0;
  for (size_t p = 0; p < partitions_.size(); ++p) {
    const uint64_t begin = order.begins[p], end = order.begins[p + 1];
    if (begin == end) continue;
    const Partition& partition = *partitions_[p];
    const std::shared_lock<std::shared_mutex> lock(partition.mutex);
    for (uint64_t i = begin; i < std::min(begin + kAhead, end); ++i) {
      partition.prefetch(order.hashes[order.positions[i]]);
    }
    for (uint64_t i = begin; i < end; ++i) {
      if (i + kAhead < end) partition.prefetch(order.hashes[order.positions[i + kAhead]]);
      const uint32_t position = order.positions[i];
      Row* const row = partition.find(keys[position], order.hashes[position]);
      found[position] = row != nullptr;
      if (row == nullptr) continue;
      ++hits;
      row->last_use.store(now, std::memory_order_relaxed);
      // A use that another thread counts at the same time may be lost: this is a statistic.
      row->uses.store(row->uses.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
      std::memcpy(out + position * embedding_dim_, row->values(), embedding_dim_ * sizeof(float));
    }
  }
  return hits;
}

// Calls `write(partition, number)` with each partition of the keys locked; it returns a predicate
// that says of a position, and of the row that is there or null, whether to write it.
template <class Write>
void VolatileTable::write(const int64_t* keys, uint64_t num_keys, const Write& write) {
  const Order& order = this->order(keys, num_keys);
  const uint32_t now = now_.fetch_add(1, std::memory_order_relaxed) + 1;
  for (size_t p = 0; p < partitions_.size(); ++p) {
    if (order.begins[p] == order.begins[p + 1]) continue;
    Partition& partition = *partitions_[p];
    const std::unique_lock<std::shared_mutex> lock(partition.mutex);
    const auto values_for = write(partition, p);
    uint64_t added = 0;
    for (uint64_t i = order.begins[p]; i < order.begins[p + 1]; ++i) {
      const uint32_t position = order.positions[i];
      Row* row = partition.find(keys[position], order.hashes[position]);
      const float* const values = values_for(position, row != nullptr);
      if (values == nullptr) continue;
      if (row == nullptr) {
        row = partition.add(keys[position], order.hashes[position]);
        row->uses.store(1, std::memory_order_relaxed);
        row->last_use.store(now, std::memory_order_relaxed);
        ++added;
      }
      std::memcpy(row->values(), values, embedding_dim_ * sizeof(float));
    }
    inserted_.fetch_add(added, std::memory_order_relaxed);
    evicted_.fetch_add(partition.resolve_overflow(now), std::memory_order_relaxed);
  }
}

void VolatileTable::upsert(const int64_t* keys, uint64_t num_keys, const float* rows) {
  write(keys, num_keys, [&](Partition& partition, size_t) {
    partition.version.fetch_add(1);
    return [&](uint32_t position, bool) { return rows + position * embedding_dim_; };
  });
}

VolatileTable::Versions VolatileTable::versions() const {
  Versions versions;
  versions.reserve(partitions_.size());
  for (const auto& partition : partitions_) versions.push_back(partition->version.load());
  return versions;
}

void VolatileTable::insert_missed(const int64_t* keys, uint64_t num_keys, const float* rows,
                                  const uint8_t* found, const Versions& seen) {
  write(keys, num_keys, [&](Partition& partition, size_t number) {
    const bool current = partition.version.load() == seen[number];
    return [&, current](uint32_t position, bool there) {
      return current && !there && found[position] ? rows + position * embedding_dim_ : nullptr;
    };
  });
}

void VolatileTable::replace(const int64_t* keys, uint64_t num_keys, const float* rows,
                            const uint8_t* found, const Versions& seen) {
  write(keys, num_keys, [&](Partition& partition, size_t number) {
    const bool current = partition.version.load() == seen[number];
    return [&, current](uint32_t position, bool there) {
      return current && there && found[position] ? rows + position * embedding_dim_ : nullptr;
    };
  });
}

std::vector<int64_t> VolatileTable::keys(uint32_t partition) const {
  const std::shared_lock<std::shared_mutex> lock(partitions_[partition]->mutex);
  return partitions_[partition]->keys();
}

uint64_t VolatileTable::size() const {
  uint64_t size = 0;
  for (const auto& partition : partitions_) size += partition->size.load();
  return size;
}

uint64_t VolatileTable::num_bytes() const {
  uint64_t bytes = 0;
  for (const auto& partition : partitions_) bytes += partition->num_bytes.load();
  return bytes;
}

}  // namespace hps
