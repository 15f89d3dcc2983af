#include "table.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <system_error>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14
#endif

namespace hps {

namespace {

// Keys per piece of a shared lookup: enough to pay for waking a thread.
constexpr uint64_t kLookupGrain = 512;

std::string os_error() { return std::generic_category().message(errno); }

}  // namespace

MappedFile::MappedFile(const std::string& path, uint64_t num_bytes) : num_bytes_(num_bytes) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw Error{HPS_NOT_FOUND, path + ": " + os_error()};
  struct stat status;
  if (fstat(file, &status) != 0 || static_cast<uint64_t>(status.st_size) != num_bytes) {
    close(file);
    throw Error{HPS_INVALID_ARGUMENT, path + " has " + std::to_string(status.st_size) +
                                          " bytes, expected " + std::to_string(num_bytes)};
  }
  data_ = mmap(nullptr, num_bytes, PROT_READ, MAP_SHARED, file, 0);
  const std::string error = os_error();
  close(file);
  if (data_ == MAP_FAILED) throw Error{HPS_RESOURCE_EXHAUSTED, path + ": cannot map it: " + error};
  // Read from disk in huge pages, where the system can: random rows then miss the TLB less.
  madvise(data_, num_bytes, MADV_HUGEPAGE);
}

MappedFile::~MappedFile() { munmap(data_, num_bytes_); }

Table::Table(const hps_table_spec& spec)
    : name_(spec.name),
      num_keys_(spec.num_keys),
      embedding_dim_(spec.embedding_dim),
      rows_file_(spec.rows_path, spec.num_keys * spec.embedding_dim * sizeof(float)),
      rows_(static_cast<const float*>(rows_file_.data())),
      default_row_(spec.embedding_dim, spec.default_value) {}

void Table::use_hash_index(std::shared_ptr<const HashIndex> index, uint32_t first_row) {
  hash_index_ = std::move(index);
  first_row_ = first_row;
}

hps_table_facts Table::facts() const {
  hps_table_facts facts;
  facts.num_keys = num_keys_;
  facts.embedding_dim = embedding_dim_;
  facts.index_bytes = hash_index_ ? hash_index_->num_bytes() : 0;
  facts.index_kind = hash_index_ ? HPS_INDEX_HASH : HPS_INDEX_DIRECT;
  facts.lookups = lookups_.load(std::memory_order_relaxed);
  facts.keys = keys_.load(std::memory_order_relaxed);
  facts.missing_keys = missing_keys_.load(std::memory_order_relaxed);
  return facts;
}

void Table::use_tiers(std::unique_ptr<TableTiers> tiers) {
  kept_tiers_ = std::move(tiers);
  tiers_.store(kept_tiers_.get(), std::memory_order_release);
}

hps_tier_facts Table::tier_facts(hps_tier tier) const {
  hps_tier_facts facts{};
  if (const TableTiers* const tiers = this->tiers()) tiers->facts(tier, &facts);
  if (tier == HPS_TIER_MAPPED) {
    facts.keys += mapped_.keys.load(std::memory_order_relaxed);
    facts.hits += mapped_.hits.load(std::memory_order_relaxed);
    facts.ns += mapped_.ns.load(std::memory_order_relaxed);
    facts.num_rows = num_keys_;
    facts.num_bytes = rows_file_.num_bytes();
  }
  return facts;
}

Model::Model(const hps_table_spec* specs, int32_t num_tables, int32_t num_threads)
    : pool_(static_cast<unsigned>(std::max(0, num_threads))), forks_(num_forks()) {
  std::map<int32_t, std::vector<int32_t>> groups;
  for (int32_t i = 0; i < num_tables; ++i) {
    const std::string name = specs[i].name;
    if (specs[i].num_keys == 0 || specs[i].num_keys >= UINT32_MAX || specs[i].embedding_dim == 0) {
      throw Error{HPS_INVALID_ARGUMENT,
                  "table " + name + " has " + std::to_string(specs[i].num_keys) + " rows of " +
                      std::to_string(specs[i].embedding_dim) +
                      " values; it must have 1 to 4294967294 rows of at least 1 value"};
    }
    tables_.push_back(std::make_unique<Table>(specs[i]));
    const int32_t group = specs[i].fusion_group;
    groups[group >= 0 ? group : -1 - i].push_back(i);
  }
  for (const auto& [group, members] : groups) index_group(members, specs);
  try {
    toucher_ = std::thread([this] { touch_rows(); });
  } catch (const std::system_error&) {  // then the first lookups do it
  }
}

Model::~Model() {
  stopping_.store(true);
  if (forks_ != num_forks()) {
    new std::thread(std::move(toucher_));  // never to be joined or destroyed: it is the parent's
  } else if (toucher_.joinable()) {
    toucher_.join();
  }
}

void Model::index_group(const std::vector<int32_t>& members, const hps_table_spec* specs) {
  std::vector<std::unique_ptr<MappedFile>> files;
  std::vector<KeySegment> segments;
  uint64_t num_rows = 0;
  bool contiguous = true;
  for (const int32_t i : members) {
    const uint64_t count = specs[i].num_keys;
    if (num_rows + count >= UINT32_MAX) {
      throw Error{HPS_RESOURCE_EXHAUSTED, "the tables fused with " + std::string(specs[i].name) +
                                              " have more than 4294967294 rows together"};
    }
    files.push_back(std::make_unique<MappedFile>(specs[i].key_path, count * sizeof(int64_t)));
    segments.push_back({static_cast<const int64_t*>(files.back()->data()), count,
                        static_cast<uint32_t>(num_rows)});
    num_rows += count;
    contiguous = contiguous && is_contiguous(segments.back(), pool_);
  }
  const auto fail_overlap = [&](int32_t one, int32_t other, int64_t key) {
    throw Error{HPS_ALREADY_EXISTS,
                "tables " + tables_[one]->name() + " and " + tables_[other]->name() +
                    " are to be fused, and both hold the key " + std::to_string(key)};
  };
  if (contiguous) {
    // Ranges that are disjoint need no index, alone or together.
    for (size_t a = 0; a < members.size(); ++a) {
      tables_[members[a]]->use_direct_index(segments[a].keys[0]);
      for (size_t b = 0; b < a; ++b) {
        const uint64_t first_a = segments[a].keys[0], first_b = segments[b].keys[0];
        if (first_a - first_b < segments[b].count) {
          fail_overlap(members[b], members[a], segments[a].keys[0]);
        }
        if (first_b - first_a < segments[a].count) {
          fail_overlap(members[b], members[a], segments[b].keys[0]);
        }
      }
    }
    return;
  }
  const auto index = std::make_shared<const HashIndex>(segments, pool_);
  if (index->overlap()) {
    const auto member_of = [&](uint32_t row) {
      const auto after = std::upper_bound(
          segments.begin(), segments.end(), row,
          [](uint32_t r, const KeySegment& segment) { return r < segment.first_row; });
      return members[after - segments.begin() - 1];
    };
    fail_overlap(member_of(index->overlap()->one_row), member_of(index->overlap()->other_row),
                 index->overlap()->key);
  }
  for (size_t i = 0; i < members.size(); ++i) {
    tables_[members[i]]->use_hash_index(index, segments[i].first_row);
  }
}

// Reads the rows into memory and into the page tables, which lookups would otherwise wait for.
void Model::touch_rows() {
  constexpr uint64_t kPiece = 16 << 20;
  for (const auto& table : tables_) {
    const MappedFile& rows = table->rows();
    for (uint64_t begin = 0; begin < rows.num_bytes(); begin += kPiece) {
      if (stopping_.load()) return;
      char* piece = static_cast<char*>(const_cast<void*>(rows.data())) + begin;
      const int failed =
          madvise(piece, std::min(kPiece, rows.num_bytes() - begin), MADV_POPULATE_READ);
      if (failed != 0) return;  // an older kernel, or a file cut meanwhile
    }
  }
}

template <class Key>
void Model::lookup_flat(const Key* keys, const uint64_t* num_keys, float* out) {
  struct Part {
    uint64_t first_key;
    const Key* keys;
    float* out;
  };
  std::vector<Part> parts;
  uint64_t total = 0;
  for (int32_t t = 0; t < num_tables(); ++t) {
    parts.push_back({total, keys + total, out});
    total += num_keys[t];
    out += num_keys[t] * table(t).embedding_dim();
  }
  pool_.run(total, kLookupGrain, [&](uint64_t begin, uint64_t end) {
    for (int32_t t = 0; t < num_tables(); ++t) {
      const Part& part = parts[t];
      const uint64_t first = std::max(begin, part.first_key);
      const uint64_t last = std::min(end, part.first_key + num_keys[t]);
      if (first >= last) continue;
      const uint64_t skip = first - part.first_key;
      float* const rows = part.out + skip * table(t).embedding_dim();
      table(t).lookup(part.keys + skip, last - first,
                      hps_destination{rows, last - first, 0, 0}, skip != 0);
    }
  });
}

void Model::fetch(int32_t number, const int64_t* keys, uint64_t num_keys, float* out,
                  uint8_t* found) {
  Table& asked = table(number);
  pool_.run(num_keys, kLookupGrain, [&](uint64_t begin, uint64_t end) {
    asked.fetch(keys + begin, end - begin, out + begin * asked.embedding_dim(), found + begin);
  });
}

TableTiers& Model::tiers(int32_t number, const hps_tier_options* options) {
  const std::lock_guard<std::mutex> lock(tiers_mutex_);
  if (table(number).tiers() == nullptr) {
    table(number).use_tiers(std::make_unique<TableTiers>(
        table(number), number, databases, options != nullptr ? *options : hps_tier_options{}));
  }
  return *table(number).tiers();
}

template void Model::lookup_flat(const int64_t*, const uint64_t*, float*);
template void Model::lookup_flat(const int32_t*, const uint64_t*, float*);

}  // namespace hps
