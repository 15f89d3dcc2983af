// The hot path: keys in, rows out, on one thread.
//
// A lookup waits for memory three times: for the bucket, for the row, for the output. So keys go
// through a pipeline: while one row is copied, rows further ahead are on their way to the cache,
// and buckets still further ahead.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "table.h"

namespace hps {

namespace {

constexpr uint64_t kRowsAhead = 8;
constexpr uint64_t kBucketsAhead = 16;  // beyond the rows
constexpr uint64_t kRing = 32;          // a power of two above both, together
constexpr uint64_t kFloatsPerLine = 16;

inline void prefetch_row(const float* row, uint64_t dim) {
  for (uint64_t i = 0; i < dim; i += kFloatsPerLine) __builtin_prefetch(row + i);
}

// Copies `dim` floats; `kDim` is `dim` where known at compile time, else 0.
template <uint64_t kDim>
inline void copy_row(float* __restrict__ out, const float* __restrict__ row, uint64_t dim) {
  if constexpr (kDim != 0) {
    for (uint64_t i = 0; i < kDim; ++i) out[i] = row[i];  // vector instructions, no call
  } else {
    std::memcpy(out, row, dim * sizeof(float));
  }
}

template <uint64_t kDim, class Key, class Index, class Row>
void pipeline(const Index& index, const Key* keys, uint64_t n, float* out, uint64_t dim,
              const Row& row) {
  uint64_t buckets[kRing];
  const float* rows[kRing];
  constexpr uint64_t kLead = kRowsAhead + kBucketsAhead;
  const auto locate = [&](uint64_t i) { buckets[i % kRing] = index.locate(keys[i]); };
  const auto find = [&](uint64_t i) {
    rows[i % kRing] = row(index.find(buckets[i % kRing], keys[i]));
    prefetch_row(rows[i % kRing], kDim != 0 ? kDim : dim);
  };
  const auto copy = [&](uint64_t i) { copy_row<kDim>(out + i * dim, rows[i % kRing], dim); };
  for (uint64_t i = 0; i < std::min(n, kLead); ++i) locate(i);
  for (uint64_t i = 0; i < std::min(n, kRowsAhead); ++i) find(i);
  uint64_t i = 0;
  for (; i + kLead < n; ++i) {
    locate(i + kLead);
    find(i + kRowsAhead);
    copy(i);
  }
  for (; i < n; ++i) {
    if (i + kRowsAhead < n) find(i + kRowsAhead);
    copy(i);
  }
}

}  // namespace

struct Table::DirectIndex {
  uint64_t first_key;
  uint64_t locate(int64_t) const { return 0; }
  uint64_t find(uint64_t, int64_t key) const { return static_cast<uint64_t>(key) - first_key; }
};

struct Table::SharedHashIndex {
  const HashIndex& hash;
  uint32_t first_row;
  uint64_t locate(int64_t key) const { return hash.locate(key); }
  // Rows of sibling tables, and kMissing, come out beyond the rows of this table.
  uint64_t find(uint64_t bucket, int64_t key) const { return hash.find(bucket, key) - first_row; }
};

template <class Key, class Index, class Row>
void Table::copy(const Index& index, const Key* keys, uint64_t n, float* out,
                 const Row& row) const {
  const uint64_t dim = embedding_dim_;
  const auto run = [&](auto known_dim) {
    pipeline<decltype(known_dim)::value>(index, keys, n, out, dim, row);
  };
  switch (dim) {
    case 16: run(std::integral_constant<uint64_t, 16>()); break;
    case 32: run(std::integral_constant<uint64_t, 32>()); break;
    case 64: run(std::integral_constant<uint64_t, 64>()); break;
    case 128: run(std::integral_constant<uint64_t, 128>()); break;
    default: run(std::integral_constant<uint64_t, 0>()); break;
  }
}

template <class Use>
void Table::with_index(const Use& use) const {
  if (hash_index_) {
    use(SharedHashIndex{*hash_index_, first_row_});
  } else {
    use(DirectIndex{static_cast<uint64_t>(first_key_)});
  }
}

template <class Key>
uint64_t Table::lookup_mapped(const Key* keys, uint64_t num_keys, float* out,
                              uint8_t* found) const {
  uint64_t missing = 0;
  const float* const default_row = default_row_.data();
  const auto row = [&](uint64_t number) {
    const bool is_there = number < num_keys_;
    missing += !is_there;
    return is_there ? rows_ + number * embedding_dim_ : default_row;
  };
  if (found == nullptr) {
    with_index([&](const auto& index) { copy(index, keys, num_keys, out, row); });
  } else {
    // Rows are asked for in the order of the keys.
    const auto noted_row = [&](uint64_t number) {
      *found++ = number < num_keys_;
      return row(number);
    };
    with_index([&](const auto& index) { copy(index, keys, num_keys, out, noted_row); });
  }
  return num_keys - missing;
}

template <class Key>
void Table::lookup(const Key* keys, uint64_t num_keys, float* out, bool continued) {
  uint64_t hits;
  if (TableTiers* const tiers = tiers_.load(std::memory_order_acquire)) {
    hits = tiers->lookup(keys, num_keys, out, nullptr);
  } else {
    const uint64_t started = now_ns();
    hits = lookup_mapped(keys, num_keys, out, nullptr);
    mapped_.count(num_keys, hits, now_ns() - started);
  }
  if (!continued) lookups_.fetch_add(1, std::memory_order_relaxed);
  keys_.fetch_add(num_keys, std::memory_order_relaxed);
  if (hits != num_keys) missing_keys_.fetch_add(num_keys - hits, std::memory_order_relaxed);
}

void Table::fetch(const int64_t* keys, uint64_t num_keys, float* out, uint8_t* found) {
  if (TableTiers* const tiers = tiers_.load(std::memory_order_acquire)) {
    tiers->lookup(keys, num_keys, out, found);
  } else {
    const uint64_t started = now_ns();
    const uint64_t hits = lookup_mapped(keys, num_keys, out, found);
    mapped_.count(num_keys, hits, now_ns() - started);
  }
}

template void Table::lookup(const int64_t*, uint64_t, float*, bool);
template void Table::lookup(const int32_t*, uint64_t, float*, bool);
template uint64_t Table::lookup_mapped(const int64_t*, uint64_t, float*, uint8_t*) const;
template uint64_t Table::lookup_mapped(const int32_t*, uint64_t, float*, uint8_t*) const;

}  // namespace hps
