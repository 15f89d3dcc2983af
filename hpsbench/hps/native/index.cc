#include "index.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <new>

namespace hps {

namespace {

// Below this many keys, sharing the work out costs more than it saves.
constexpr uint64_t kKeysPerThread = 1 << 15;
constexpr uint64_t kKeysPerBucket = 3;

}  // namespace

bool is_contiguous(const KeySegment& segment, ThreadPool& pool) {
  const uint64_t first = static_cast<uint64_t>(segment.keys[0]);
  std::atomic<bool> contiguous{true};
  pool.run(segment.count, kKeysPerThread, [&](uint64_t begin, uint64_t end) {
    constexpr uint64_t kBlock = 4096;
    for (uint64_t block = begin; block < end; block += kBlock) {
      if (!contiguous.load(std::memory_order_relaxed)) return;
      uint64_t differences = 0;
      const uint64_t stop = std::min(block + kBlock, end);
      for (uint64_t i = block; i < stop; ++i) {
        differences |= static_cast<uint64_t>(segment.keys[i]) ^ (first + i);
      }
      if (differences != 0) contiguous.store(false, std::memory_order_relaxed);
    }
  });
  return contiguous.load();
}

// The buckets [begin, end), which one thread fills, and the entries that found no place in them.
struct HashIndex::Shard {
  uint64_t begin;
  uint64_t end;
  std::vector<Entry> spilled;
  std::optional<Overlap> overlap;
};

HashIndex::HashIndex(const std::vector<KeySegment>& segments, ThreadPool& pool) {
  uint64_t num_keys = 0;
  for (const KeySegment& segment : segments) num_keys += segment.count;
  num_buckets_ = (num_keys + kKeysPerBucket - 1) / kKeysPerBucket;
  // Zeroed by the kernel, and in huge pages where it has them: one TLB miss less per lookup.
  void* memory = mmap(nullptr, num_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                      -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  madvise(memory, num_bytes(), MADV_HUGEPAGE);
  buckets_ = static_cast<Bucket*>(memory);

  // Each thread reads all keys and takes those whose home lies in its part of the buckets: no
  // locks, and the order of the keys is kept, by which the last duplicate wins.
  const uint64_t num_shards =
      std::max<uint64_t>(1, std::min<uint64_t>(pool.num_threads(), num_keys / kKeysPerThread));
  std::vector<Shard> shards(num_shards);
  for (uint64_t i = 0; i < num_shards; ++i) {
    shards[i].begin = num_buckets_ * i / num_shards;
    shards[i].end = num_buckets_ * (i + 1) / num_shards;
  }
  pool.run(num_shards, 1, [&](uint64_t begin, uint64_t end) {
    for (uint64_t i = begin; i < end; ++i) fill(shards[i], segments);
  });
  for (Shard& shard : shards) {
    if (shard.overlap && !overlap_) overlap_ = shard.overlap;
    for (const Entry& entry : shard.spilled) insert(entry, UINT64_MAX, overlap_);
  }
}

HashIndex::~HashIndex() { munmap(buckets_, num_bytes()); }

void HashIndex::fill(Shard& shard, const std::vector<KeySegment>& segments) {
  constexpr unsigned kAhead = 32;
  Entry waiting[kAhead];
  unsigned count = 0;
  const auto flush = [&] {
    for (unsigned i = 0; i < count; ++i) {
      if (!insert(waiting[i], shard.end, shard.overlap)) shard.spilled.push_back(waiting[i]);
    }
    count = 0;
  };
  for (const KeySegment& segment : segments) {
    for (uint64_t i = 0; i < segment.count; ++i) {
      const uint64_t bucket = home(segment.keys[i]);
      if (bucket < shard.begin || bucket >= shard.end) continue;
      __builtin_prefetch(&buckets_[bucket], 1);
      waiting[count++] = {bucket, segment.keys[i],
                          static_cast<uint32_t>(segment.first_row + i), segment.first_row};
      if (count == kAhead) flush();
    }
  }
  flush();
}

// Returns false where the chain of buckets would leave [.., end); UINT64_MAX: it wraps instead.
bool HashIndex::insert(const Entry& entry, uint64_t end, std::optional<Overlap>& overlap) {
  for (uint64_t bucket = entry.bucket;;) {
    Bucket& b = buckets_[bucket];
    for (unsigned i = 0; i < b.count; ++i) {
      if (b.keys[i] != entry.key) continue;
      if (b.rows[i] < entry.first_row && !overlap) overlap = {entry.key, b.rows[i], entry.row};
      b.rows[i] = entry.row;
      return true;
    }
    if (b.count < kEntries) {
      b.keys[b.count] = entry.key;
      b.rows[b.count] = entry.row;
      ++b.count;
      return true;
    }
    b.overflowed = 1;
    ++bucket;
    if (bucket == end) return false;
    if (bucket == num_buckets_) bucket = 0;
  }
}

}  // namespace hps
