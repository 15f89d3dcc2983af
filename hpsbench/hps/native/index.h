// Finds the row of a key: the index of one table, or of several that share it.
#ifndef HPSBENCH_HPS_NATIVE_INDEX_H_
#define HPSBENCH_HPS_NATIVE_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "thread_pool.h"

namespace hps {

// The keys of one table, in the order of its rows, which are numbered from `first_row`.
struct KeySegment {
  const int64_t* keys;
  uint64_t count;
  uint32_t first_row;
};

// Asks for a line of memory that will be read after some more of them.
inline void prefetch_to_second_level(const void* address) { __builtin_prefetch(address, 0, 2); }

// True where keys[i] == keys[0] + i for all i (modulo 2^64): then key - keys[0] is the row.
bool is_contiguous(const KeySegment& segment, ThreadPool& pool);

// A hash table from int64 keys to uint32 rows, built once, then read by any number of threads.
//
// Buckets are cache lines of five entries, three of them used on average, so nearly every lookup
// reads one line, and a key costs 21.3 bytes. A key whose bucket is full lies in one of the
// following buckets, and every full bucket that it passed says so. There is no reserved key.
class HashIndex {
 public:
  static constexpr uint32_t kMissing = UINT32_MAX;

  // A key that two segments hold.
  struct Overlap {
    int64_t key;
    uint32_t one_row;
    uint32_t other_row;
  };

  // Indexes all segments; `first_row` ascends from segment to segment. Where a key occurs twice
  // in one segment, the last row counts; where two segments hold it, `overlap()` tells.
  HashIndex(const std::vector<KeySegment>& segments, ThreadPool& pool);
  ~HashIndex();
  HashIndex(const HashIndex&) = delete;
  HashIndex& operator=(const HashIndex&) = delete;

  const std::optional<Overlap>& overlap() const { return overlap_; }
  uint64_t num_bytes() const { return num_buckets_ * sizeof(Bucket); }

  // A lookup in two steps, so that a caller can do the first for many keys and hide the wait.
  uint64_t locate(int64_t key) const {
    const uint64_t bucket = home(key);
    prefetch_to_second_level(&buckets_[bucket]);
    return bucket;
  }
  uint32_t find(uint64_t bucket, int64_t key) const {
    for (;;) {
      const Bucket& b = buckets_[bucket];
      uint32_t hits = 0;
      for (unsigned i = 0; i < kEntries; ++i) hits |= uint32_t{b.keys[i] == key} << i;
      hits &= (1u << b.count) - 1;
      if (__builtin_expect(hits != 0, 1)) return b.rows[__builtin_ctz(hits)];
      if (!b.overflowed) return kMissing;
      if (++bucket == num_buckets_) bucket = 0;
    }
  }

 private:
  static constexpr unsigned kEntries = 5;
  struct alignas(64) Bucket {
    int64_t keys[kEntries];
    uint32_t rows[kEntries];
    uint8_t count;
    uint8_t overflowed;
  };
  static_assert(sizeof(Bucket) == 64, "a bucket is one cache line");

  struct Entry {
    uint64_t bucket;
    int64_t key;
    uint32_t row;
    uint32_t first_row;  // of the key's segment
  };
  struct Shard;

  uint64_t home(int64_t key) const {
    // The finalizer of splitmix64: bijective, and its high bits depend on all bits of the key.
    uint64_t h = static_cast<uint64_t>(key);
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
    h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
    h ^= h >> 31;
    return static_cast<uint64_t>((static_cast<unsigned __int128>(h) * num_buckets_) >> 64);
  }
  void fill(Shard& shard, const std::vector<KeySegment>& segments);
  bool insert(const Entry& entry, uint64_t end, std::optional<Overlap>& overlap);

  uint64_t num_buckets_;
  Bucket* buckets_;
  std::optional<Overlap> overlap_;
};

}  // namespace hps

#endif  // HPSBENCH_HPS_NATIVE_INDEX_H_
