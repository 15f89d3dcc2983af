// The hot path: keys in, rows out, on one thread.
//
// A lookup waits for memory three times: for the bucket, for the row, for the output. So keys go
// through a pipeline: while one row is copied, rows further ahead are on their way to the cache,
// and buckets still further ahead. To the cache of the second level: a core has many more lines on
// their way to that one than to the first, and how many it has is what limits random reads.
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "table.h"

namespace hps {

namespace {

constexpr uint64_t kFloatsPerLine = 16;
constexpr uint64_t kLinesAhead = 128;
constexpr uint64_t kFewestRowsAhead = 8;
constexpr uint64_t kBucketsAhead = 64;  // beyond the rows
constexpr uint64_t kRing = 256;         // a power of two above both, together

constexpr uint64_t rows_ahead(uint64_t dim) {
  return std::max(kFewestRowsAhead, kLinesAhead * kFloatsPerLine / std::max(dim, kFloatsPerLine));
}
static_assert(rows_ahead(1) + kBucketsAhead <= kRing);

inline void prefetch_row(const float* row, uint64_t dim) {
  for (uint64_t i = 0; i < dim; i += kFloatsPerLine) prefetch_to_second_level(row + i);
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

// The same past the caches, which saves reading what is to be overwritten.
template <uint64_t kDim>
inline void stream_row(float* __restrict__ out, const float* __restrict__ row, uint64_t dim) {
#ifdef __AVX2__
  if constexpr (kDim % 8 == 0 && kDim != 0) {
    for (uint64_t i = 0; i < kDim; i += 8) _mm256_stream_ps(out + i, _mm256_loadu_ps(row + i));
  } else {
    for (uint64_t i = 0; i < dim; i += 4) _mm_stream_ps(out + i, _mm_loadu_ps(row + i));
  }
#else
  copy_row<kDim>(out, row, dim);
#endif
}

// Whether all rows of a destination begin and end where `stream_row` can begin and end.
bool can_be_streamed(const hps_destination& out, uint64_t dim) {
  const uint64_t floats = dim % 8 == 0 ? 8 : 4;
  return dim % floats == 0 && out.stride % floats == 0 &&
         reinterpret_cast<uintptr_t>(out.rows) % (floats * sizeof(float)) == 0;
}

// Where one row after another goes.
class Places {
 public:
  Places(const hps_destination& out, uint64_t dim)
      : keys_per_sample_(out.keys_per_sample),
        skipped_(out.stride - out.keys_per_sample * dim),
        left_(out.keys_per_sample),
        next_(out.rows) {}

  float* next(uint64_t dim) {
    if (left_ == 0) {
      left_ = keys_per_sample_;
      next_ += skipped_;
    }
    --left_;
    float* const place = next_;
    next_ += dim;
    return place;
  }

 private:
  const uint64_t keys_per_sample_;
  const uint64_t skipped_;  // floats from the end of a sample to the next
  uint64_t left_;           // of this sample
  float* next_;
};

// Called, not inlined, the steps make lookups in a hash index take half as long again.
#define HPS_INLINED __attribute__((always_inline))

template <uint64_t kDim, bool kStreamed, class Key, class Index, class Row>
void pipeline(const Index& index, const Key* keys, uint64_t n, const hps_destination& out,
              uint64_t dim, const Row& row) {
  uint64_t buckets[kRing];
  const float* rows[kRing];
  Places places(out, dim);
  const uint64_t lead_of_rows = rows_ahead(dim);
  const uint64_t lead = lead_of_rows + kBucketsAhead;
  const auto locate = [&](uint64_t i) HPS_INLINED {
    buckets[i % kRing] = index.locate(keys[i]);
  };
  const auto find = [&](uint64_t i) HPS_INLINED {
    rows[i % kRing] = row(index.find(buckets[i % kRing], keys[i]));
    prefetch_row(rows[i % kRing], dim);
  };
  const auto copy = [&](uint64_t i) HPS_INLINED {
    if constexpr (kStreamed) {
      stream_row<kDim>(places.next(dim), rows[i % kRing], dim);
    } else {
      copy_row<kDim>(places.next(dim), rows[i % kRing], dim);
    }
  };
  for (uint64_t i = 0; i < std::min(n, lead); ++i) locate(i);
  for (uint64_t i = 0; i < std::min(n, lead_of_rows); ++i) find(i);
  uint64_t i = 0;
  for (; i + lead < n; ++i) {
    locate(i + lead);
    find(i + lead_of_rows);
    copy(i);
  }
  for (; i < n; ++i) {
    if (i + lead_of_rows < n) find(i + lead_of_rows);
    copy(i);
  }
#ifdef __AVX2__
  if constexpr (kStreamed) _mm_sfence();
#endif
}

#undef HPS_INLINED

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
void Table::copy(const Index& index, const Key* keys, uint64_t n, const hps_destination& out,
                 const Row& row) const {
  const bool streamed = out.streamed != 0 && can_be_streamed(out, embedding_dim_);
  const auto run = [&](auto known_dim) {
    constexpr uint64_t kDim = decltype(known_dim)::value;
    const uint64_t dim = kDim != 0 ? kDim : embedding_dim_;
    if (streamed) {
      pipeline<kDim, true>(index, keys, n, out, dim, row);
    } else {
      pipeline<kDim, false>(index, keys, n, out, dim, row);
    }
  };
  switch (embedding_dim_) {
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
uint64_t Table::lookup_mapped(const Key* keys, uint64_t num_keys, const hps_destination& out,
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
uint64_t Table::lookup_mapped(const Key* keys, uint64_t num_keys, float* out,
                              uint8_t* found) const {
  return lookup_mapped(keys, num_keys, hps_destination{out, num_keys, 0, 0}, found);
}

template <class Key>
uint64_t Table::lookup_tiers(TableTiers& tiers, const Key* keys, uint64_t num_keys,
                             const hps_destination& out) const {
  if (num_keys <= out.keys_per_sample) return tiers.lookup(keys, num_keys, out.rows, nullptr);
  // Tiers write rows one after another: of as many samples at a time as there is place for here.
  constexpr uint64_t kScratchFloats = 1 << 14;
  float scratch[kScratchFloats];
  const uint64_t width = out.keys_per_sample * embedding_dim_;
  const uint64_t at_once = std::max<uint64_t>(1, kScratchFloats / width);
  uint64_t hits = 0;
  for (uint64_t first = 0; first * out.keys_per_sample < num_keys; first += at_once) {
    const uint64_t first_key = first * out.keys_per_sample;
    const uint64_t count = std::min(at_once * out.keys_per_sample, num_keys - first_key);
    float* const to = out.rows + first * out.stride;
    float* const rows = at_once == 1 ? to : scratch;
    hits += tiers.lookup(keys + first_key, count, rows, nullptr);
    if (rows == to) continue;
    for (uint64_t i = 0; i * width < count * embedding_dim_; ++i) {
      std::memcpy(to + i * out.stride, rows + i * width, width * sizeof(float));
    }
  }
  return hits;
}

template <class Key>
void Table::lookup(const Key* keys, uint64_t num_keys, const hps_destination& out,
                   bool continued) {
  uint64_t hits;
  if (TableTiers* const tiers = tiers_.load(std::memory_order_acquire)) {
    hits = lookup_tiers(*tiers, keys, num_keys, out);
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

template void Table::lookup(const int64_t*, uint64_t, const hps_destination&, bool);
template void Table::lookup(const int32_t*, uint64_t, const hps_destination&, bool);
template uint64_t Table::lookup_mapped(const int64_t*, uint64_t, float*, uint8_t*) const;
template uint64_t Table::lookup_mapped(const int32_t*, uint64_t, float*, uint8_t*) const;

}  // namespace hps
