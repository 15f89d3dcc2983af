#include "tiers.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <thread>

#include "table.h"

namespace hps {

namespace {

// Keys that go through the tiers together: enough for one request to a database to be worth it, and
// few enough that what each thread keeps for them stays small.
constexpr uint64_t kPiece = 1 << 14;
constexpr hps_tier kOrder[] = {HPS_TIER_REDIS, HPS_TIER_UPDATED, HPS_TIER_ROCKSDB,
                               HPS_TIER_MAPPED};
constexpr hps_tier kMappedFirst[] = {HPS_TIER_REDIS, HPS_TIER_UPDATED, HPS_TIER_MAPPED,
                                     HPS_TIER_ROCKSDB};

// Rows updated without limit: they have no other home in this process.
hps_volatile_options unlimited() { return {16, UINT64_MAX, HPS_EVICT_RANDOM, 1.0, 1 << 20}; }

}  // namespace

void Databases::set(const hps_databases* functions) {
  functions_.store(nullptr);
  while (running_.load() != 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  kept_.reset(functions == nullptr ? nullptr : new hps_databases(*functions));
  functions_.store(kept_.get());
}

int32_t Databases::fetch(hps_tier tier, int32_t table, const int64_t* keys, uint64_t num_keys,
                         float* out, uint8_t* found) const {
  running_.fetch_add(1);
  const hps_databases* const functions = functions_.load();
  const int32_t answer =
      functions == nullptr ? -1 : functions->fetch(tier, table, keys, num_keys, out, found);
  running_.fetch_sub(1);
  return answer;
}

void Databases::insert(hps_tier tier, int32_t table, const int64_t* keys, uint64_t num_keys,
                       const float* rows) const {
  running_.fetch_add(1);
  const hps_databases* const functions = functions_.load();
  if (functions != nullptr) functions->insert(tier, table, keys, num_keys, rows);
  running_.fetch_sub(1);
}

void TierCounters::count(uint64_t asked, uint64_t found, uint64_t duration_ns) {
  keys.fetch_add(asked, std::memory_order_relaxed);
  hits.fetch_add(found, std::memory_order_relaxed);
  ns.fetch_add(duration_ns, std::memory_order_relaxed);
}

// Reused from batch to batch, for a thread.
struct TableTiers::Scratch {
  std::vector<int64_t> keys;
  std::vector<uint8_t> found;
  // Of the keys that the volatile tier lacks: their positions, ordered by key; the keys, each once;
  // and for each position, the number of its key.
  std::vector<uint32_t> positions;
  std::vector<int64_t> unique_keys;
  std::vector<uint32_t> numbers;
  std::vector<float> rows;
  std::vector<uint8_t> rows_found;
  // What one tier is asked.
  std::vector<uint32_t> remaining;
  std::vector<int64_t> asked_keys;
  std::vector<float> asked_rows;
  std::vector<uint8_t> asked_found;
};

TableTiers::TableTiers(Table& table, int32_t number, const Databases& databases,
                       const hps_tier_options& options)
    : table_(table),
      number_(number),
      databases_(databases),
      options_(options),
      volatile_(options.has_volatile
                    ? std::make_unique<VolatileTable>(table.embedding_dim(), options.volatile_tier)
                    : nullptr) {}

template <class Key>
uint64_t TableTiers::lookup(const Key* keys, uint64_t num_keys, float* out, uint8_t* found) {
  uint64_t hits = 0;
  for (uint64_t begin = 0; begin < num_keys; begin += kPiece) {
    const uint64_t count = std::min(kPiece, num_keys - begin);
    float* const piece_out = out + begin * table_.embedding_dim();
    uint8_t* const piece_found = found == nullptr ? nullptr : found + begin;
    try {
      hits += lookup_piece(keys + begin, count, piece_out, piece_found);
    } catch (const std::bad_alloc&) {
      hits += table_.lookup_mapped(keys + begin, count, piece_out, piece_found);
    }
  }
  return hits;
}

template <class Key>
uint64_t TableTiers::lookup_piece(const Key* keys, uint64_t num_keys, float* out,
                                  uint8_t* found) {
  thread_local Scratch scratch;
  scratch.keys.assign(keys, keys + num_keys);
  scratch.found.assign(num_keys, 0);
  uint64_t hits = 0;
  VolatileTable::Versions seen;
  if (volatile_ != nullptr) {
    const uint64_t started = now_ns();
    if (options_.cache_missed) seen = volatile_->versions();
    hits = volatile_->lookup(scratch.keys.data(), num_keys, out, scratch.found.data());
    counters_[HPS_TIER_VOLATILE].count(num_keys, hits, now_ns() - started);
  }
  const bool mapped_next = volatile_ == nullptr && !options_.redis &&
                           (options_.mapped_first || !options_.rocksdb);
  if (mapped_next) hits = look_at_mapped(scratch, keys, num_keys, out);
  if (hits < num_keys && !(mapped_next && !options_.rocksdb)) {
    hits += look_below(mapped_next ? HPS_TIER_ROCKSDB : HPS_TIER_REDIS, scratch, num_keys, out);
    if (options_.cache_missed && volatile_ != nullptr) {
      volatile_->insert_missed(scratch.unique_keys.data(), scratch.unique_keys.size(),
                               scratch.rows.data(), scratch.rows_found.data(), seen);
    }
  }
  if (found != nullptr) std::memcpy(found, scratch.found.data(), num_keys);
  return hits;
}

// The mapped rows, and over them those that were updated: in this order, since the mapped ones come
// fastest all at once, and few are updated.
template <class Key>
uint64_t TableTiers::look_at_mapped(Scratch& scratch, const Key* keys, uint64_t num_keys,
                                    float* out) {
  const uint64_t started = now_ns();
  const uint64_t mapped = table_.lookup_mapped(keys, num_keys, out, scratch.found.data());
  const uint64_t finished = now_ns();
  VolatileTable* const updated = updated_.load(std::memory_order_acquire);
  uint64_t updated_hits = 0, both = 0;
  if (updated != nullptr) {
    scratch.asked_found.resize(num_keys);
    updated_hits = updated->lookup(scratch.keys.data(), num_keys, out, scratch.asked_found.data());
    if (updated_hits != 0) {
      for (uint64_t i = 0; i < num_keys; ++i) {
        both += scratch.found[i] & scratch.asked_found[i];
        scratch.found[i] |= scratch.asked_found[i];
      }
    }
    counters_[HPS_TIER_UPDATED].count(num_keys, updated_hits, now_ns() - finished);
  }
  counters_[HPS_TIER_MAPPED].count(num_keys - updated_hits, mapped - both, finished - started);
  return mapped + updated_hits - both;
}

// Answers the keys that are not found yet, each of them asked once.
uint64_t TableTiers::look_below(hps_tier first, Scratch& scratch, uint64_t num_keys, float* out) {
  uint8_t* const found = scratch.found.data();
  const uint64_t dim = table_.embedding_dim();
  auto& positions = scratch.positions;
  positions.clear();
  for (uint64_t i = 0; i < num_keys; ++i) {
    if (!found[i]) positions.push_back(static_cast<uint32_t>(i));
  }
  const int64_t* const keys = scratch.keys.data();
  std::sort(positions.begin(), positions.end(),
            [&](uint32_t a, uint32_t b) { return keys[a] < keys[b]; });
  scratch.unique_keys.clear();
  scratch.numbers.clear();
  for (const uint32_t position : positions) {
    if (scratch.unique_keys.empty() || scratch.unique_keys.back() != keys[position]) {
      scratch.unique_keys.push_back(keys[position]);
    }
    scratch.numbers.push_back(static_cast<uint32_t>(scratch.unique_keys.size() - 1));
  }
  const uint64_t num_unique = scratch.unique_keys.size();
  scratch.rows.resize(num_unique * dim);
  scratch.rows_found.resize(num_unique);
  fetch_from(first, scratch.unique_keys.data(), num_unique, scratch.rows.data(),
             scratch.rows_found.data());
  uint64_t hits = 0;
  for (uint64_t i = 0; i < positions.size(); ++i) {
    const uint32_t position = positions[i], number = scratch.numbers[i];
    std::memcpy(out + position * dim, scratch.rows.data() + number * dim, dim * sizeof(float));
    found[position] = scratch.rows_found[number];
    hits += found[position];
  }
  return hits;
}

uint64_t TableTiers::fetch_from(hps_tier first, const int64_t* keys, uint64_t num_keys, float* out,
                                uint8_t* found) {
  thread_local Scratch scratch;
  const uint64_t dim = table_.embedding_dim();
  auto& remaining = scratch.remaining;
  remaining.resize(num_keys);
  std::iota(remaining.begin(), remaining.end(), 0);
  std::memset(found, 0, num_keys);
  std::vector<uint32_t> wanted;  // by Redis, once a later tier has them
  bool started = false;
  for (const hps_tier tier : options_.mapped_first ? kMappedFirst : kOrder) {
    started = started || tier == first;
    if (!started || remaining.empty()) continue;
    const bool there = tier == HPS_TIER_REDIS     ? options_.redis != 0
                       : tier == HPS_TIER_ROCKSDB ? options_.rocksdb != 0
                       : tier == HPS_TIER_UPDATED ? updated_.load(std::memory_order_acquire) != nullptr
                                                  : true;
    if (!there) continue;
    const uint64_t count = remaining.size();
    scratch.asked_keys.resize(count);
    scratch.asked_rows.resize(count * dim);
    scratch.asked_found.assign(count, 0);
    for (uint64_t i = 0; i < count; ++i) scratch.asked_keys[i] = keys[remaining[i]];
    const uint64_t asked_at = now_ns();
    bool wants_missing = false;
    const uint64_t hits = ask(tier, scratch.asked_keys.data(), count, scratch.asked_rows.data(),
                              scratch.asked_found.data(), &wants_missing);
    counters_[tier].count(count, hits, now_ns() - asked_at);
    uint64_t left = 0;
    for (uint64_t i = 0; i < count; ++i) {
      const uint32_t number = remaining[i];
      if (scratch.asked_found[i]) {
        std::memcpy(out + number * dim, scratch.asked_rows.data() + i * dim, dim * sizeof(float));
        found[number] = 1;
      } else {
        remaining[left++] = number;
      }
    }
    remaining.resize(left);
    if (wants_missing) wanted = remaining;
  }
  for (const uint32_t number : remaining) {
    std::memcpy(out + number * dim, table_.default_row(), dim * sizeof(float));
  }
  if (!wanted.empty()) {
    scratch.asked_keys.clear();
    scratch.asked_rows.clear();
    for (const uint32_t number : wanted) {
      if (!found[number]) continue;
      scratch.asked_keys.push_back(keys[number]);
      scratch.asked_rows.insert(scratch.asked_rows.end(), out + number * dim,
                                out + (number + 1) * dim);
    }
    if (!scratch.asked_keys.empty()) {
      databases_.insert(HPS_TIER_REDIS, number_, scratch.asked_keys.data(),
                        scratch.asked_keys.size(), scratch.asked_rows.data());
    }
  }
  return num_keys - remaining.size();
}

uint64_t TableTiers::ask(hps_tier tier, const int64_t* keys, uint64_t num_keys, float* out,
                         uint8_t* found, bool* wants_missing) {
  if (tier == HPS_TIER_MAPPED) return table_.lookup_mapped(keys, num_keys, out, found);
  if (tier == HPS_TIER_UPDATED) {
    return updated_.load(std::memory_order_acquire)->lookup(keys, num_keys, out, found);
  }
  const int32_t answer = databases_.fetch(tier, number_, keys, num_keys, out, found);
  if (answer < 0) {
    std::memset(found, 0, num_keys);
    return 0;
  }
  *wants_missing = answer == HPS_FETCHED_WANTS_MISSING;
  return std::count_if(found, found + num_keys, [](uint8_t f) { return f != 0; });
}

VolatileTable& TableTiers::updated_rows() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (updated_kept_ == nullptr) {
    updated_kept_ = std::make_unique<VolatileTable>(table_.embedding_dim(), unlimited());
    updated_.store(updated_kept_.get(), std::memory_order_release);
  }
  return *updated_kept_;
}

void TableTiers::update(const int64_t* keys, uint64_t num_keys, const float* rows) {
  updated_rows().upsert(keys, num_keys, rows);
  // The upper tier last: what a lookup has read below it until now is older, and not inserted.
  if (volatile_ != nullptr) volatile_->upsert(keys, num_keys, rows);
}

void TableTiers::preload(const int64_t* keys, uint64_t num_keys) {
  if (volatile_ == nullptr) return;
  for (uint64_t begin = 0; begin < num_keys; begin += kPiece) {
    const uint64_t count = std::min(kPiece, num_keys - begin);
    const VolatileTable::Versions seen = volatile_->versions();
    std::vector<float> rows(count * table_.embedding_dim());
    std::vector<uint8_t> found(count);
    fetch_from(HPS_TIER_REDIS, keys + begin, count, rows.data(), found.data());
    volatile_->insert_missed(keys + begin, count, rows.data(), found.data(), seen);
  }
}

const VolatileTable* TableTiers::rows_of(hps_tier tier) const {
  if (tier == HPS_TIER_VOLATILE) return volatile_.get();
  return tier == HPS_TIER_UPDATED ? updated_.load(std::memory_order_acquire) : nullptr;
}

uint64_t TableTiers::keys(hps_tier tier, int64_t* keys, uint64_t capacity) const {
  const VolatileTable* const rows = rows_of(tier);
  uint64_t count = 0;
  for (uint32_t p = 0; rows != nullptr && p < rows->num_partitions(); ++p) {
    for (const int64_t key : rows->keys(p)) {
      if (count < capacity) keys[count] = key;
      ++count;
    }
  }
  return count;
}

void TableTiers::refresh() {
  if (volatile_ == nullptr) return;
  for (uint32_t p = 0; p < volatile_->num_partitions(); ++p) {
    const VolatileTable::Versions seen = volatile_->versions();
    const std::vector<int64_t> keys = volatile_->keys(p);
    std::vector<float> rows(std::min<uint64_t>(kPiece, keys.size()) * table_.embedding_dim());
    std::vector<uint8_t> found(std::min<uint64_t>(kPiece, keys.size()));
    for (uint64_t begin = 0; begin < keys.size(); begin += kPiece) {
      const uint64_t count = std::min<uint64_t>(kPiece, keys.size() - begin);
      fetch_from(HPS_TIER_REDIS, keys.data() + begin, count, rows.data(), found.data());
      volatile_->replace(keys.data() + begin, count, rows.data(), found.data(), seen);
    }
  }
}

void TableTiers::facts(hps_tier tier, hps_tier_facts* facts) const {
  const TierCounters& counters = counters_[tier];
  *facts = {counters.keys.load(std::memory_order_relaxed),
            counters.hits.load(std::memory_order_relaxed),
            counters.ns.load(std::memory_order_relaxed), 0, 0, 0, 0};
  const VolatileTable* const rows = rows_of(tier);
  if (rows == nullptr) return;
  facts->inserted = rows->inserted();
  facts->evicted = rows->evicted();
  facts->num_rows = rows->size();
  facts->num_bytes = rows->num_bytes();
}

template uint64_t TableTiers::lookup(const int64_t*, uint64_t, float*, uint8_t*);
template uint64_t TableTiers::lookup(const int32_t*, uint64_t, float*, uint8_t*);

}  // namespace hps
