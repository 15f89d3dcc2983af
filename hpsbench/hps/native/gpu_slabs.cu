// Slab tables: a share of the rows on the GPU, the others fetched from the host when missed.
//
// Lookups of one table are readers of its order, and insertions writers. A row that was fetched
// from the host before rows were replaced may be the old one: it is not inserted any more.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "gpu_inserter.h"
#include "gpu_lanes.h"
#include "gpu_slab_kernels.cuh"
#include "gpu_table.h"
#include "gpu_workspace.h"

namespace hps::gpu {

namespace {

constexpr uint32_t kPreloadStamp = 1;
constexpr unsigned kSimpleThreads = 256;

unsigned simple_blocks(uint64_t num_threads) {
  return static_cast<unsigned>((num_threads + kSimpleThreads - 1) / kSimpleThreads);
}

struct SlabCounters {
  unsigned long long inserted;
  unsigned long long evicted;
};

class SlabTable : public Table {
 public:
  SlabTable(const HostTable& host, const SlabOptions& options, WorkspacePool& pool,
            Inserter& inserter)
      : Table(host),
        threshold_(options.hit_rate_threshold),
        pool_(pool),
        inserter_(inserter),
        num_sets_(sets_for(host, options.share)),
        slot_keys_(num_sets_ * kSlotsPerSet),
        stamps_(num_sets_ * kSlotsPerSet),
        rows_(num_sets_ * kSlotsPerSet * host.embedding_dim),
        default_row_(host.embedding_dim),
        counters_(1) {
    const std::vector<float> defaults(dim(), host.default_value);
    check(cudaMemcpy(default_row_.get(), defaults.data(), default_row_.num_bytes(),
                     cudaMemcpyHostToDevice),
          "copy a default row to the GPU");
    check(cudaMemset(counters_.get(), 0, counters_.num_bytes()), "clear counters");
    view_ = {slot_keys_.get(), stamps_.get(), rows_.get(), num_sets_, default_row_.get(),
             static_cast<uint32_t>(dim()), &counters_.get()->inserted,
             &counters_.get()->evicted};
    if (num_sets_ != 0) {
      const int64_t one_key = 0;
      int64_t other_key = 1;
      while (home_of(other_key, num_sets_) == home_of(one_key, num_sets_)) ++other_key;
      free_slots<<<simple_blocks(slot_keys_.count()), kSimpleThreads>>>(view_, one_key, other_key);
      check_launch("free_slots");
    }
    check(cudaDeviceSynchronize(), "build a table");
    if (options.preload && num_sets_ != 0) {
      inserter_.run([&](Staging& staging, cudaStream_t stream) {
        insert_from_host(host.keys, std::min(host.num_keys, slot_keys_.count()), kPreloadStamp,
                         staging, stream);
      });
    }
  }

  void lookup(const Keys& keys, const Output& out, cudaStream_t stream) override {
    for (uint64_t begin = 0; begin < keys.count; begin += pool_.max_keys()) {
      const uint64_t count = std::min(pool_.max_keys(), keys.count - begin);
      lookup_part(keys.part(begin, count), out.from(begin, dim()), stream);
    }
    lookups_.fetch_add(1, std::memory_order_relaxed);
  }

  hps_gpu_facts facts() override {
    hps_gpu_facts facts = {};
    facts.capacity = slot_keys_.count();
    facts.device_bytes = slot_keys_.num_bytes() + stamps_.num_bytes() + rows_.num_bytes() +
                         default_row_.num_bytes();
    facts.lookups = lookups_.load(std::memory_order_relaxed);
    facts.keys = keys_.load(std::memory_order_relaxed);
    facts.hits = hits_.load(std::memory_order_relaxed);
    facts.unique_keys = unique_keys_.load(std::memory_order_relaxed);
    facts.unique_hits = unique_hits_.load(std::memory_order_relaxed);
    SlabCounters counters;
    check(cudaMemcpy(&counters, counters_.get(), sizeof(counters), cudaMemcpyDeviceToHost),
          "read counters");
    facts.inserted = counters.inserted;
    facts.evicted = counters.evicted;
    fill_stages(&facts);
    return facts;
  }

  bool is_resident() const override { return false; }
  uint64_t num_places() override { return slot_keys_.count(); }

  void list(uint64_t first, uint64_t count, int64_t* keys, uint8_t* flags,
            cudaStream_t stream) override {
    order_.read(stream, [&] {
      list_slots<<<simple_blocks(count), kSimpleThreads, 0, stream>>>(view_, first, count, keys,
                                                                      flags);
      check_launch("list_slots");
    });
  }

  void rewrite(const int64_t* keys, const float* rows, uint64_t num_keys, uint8_t* flags,
               cudaStream_t stream) override {
    order_.write(stream, [&] {
      ++generation_;
      with_vec(dim(), is_aligned(rows), [&](auto vec) {
        rewrite_slots<decltype(vec)><<<num_blocks(num_keys), kThreads, 0, stream>>>(
            view_, keys, rows, num_keys, flags);
      });
      check_launch("rewrite_slots");
    });
  }

 private:
  static uint64_t sets_for(const HostTable& host, double share) {
    const double slots = std::min(1.0, share) * static_cast<double>(host.num_keys);
    if (slots <= 0) return 0;
    const uint64_t sets = static_cast<uint64_t>(slots + kSlotsPerSet - 1) / kSlotsPerSet;
    // Two at least: a free slot holds a key of another set.
    return std::clamp<uint64_t>(sets, 2, kNoSlot / kSlotsPerSet);
  }

  uint32_t next_stamp() {
    uint32_t stamp;
    do stamp = stamp_.fetch_add(1, std::memory_order_relaxed);
    while (stamp == 0);
    return stamp;
  }

  void lookup_part(const Keys& keys, const Output& out, cudaStream_t stream) {
    const WorkspacePool::Loan workspace(pool_);
    const uint32_t stamp = next_stamp();
    // Keys that come from the host are looked for without waiting for what `stream` does before.
    const cudaStream_t probing = keys.lane == nullptr ? stream : keys.lane->sending.get();
    workspace->used.hold(probing);
    const RecordAtEnd used(workspace->used, stream);
    const MissLists lists = workspace->lists(keys.count, probing);
    const bool sampled = clock_.samples();
    order_.read(probing, stream, [&] {
      for (uint64_t begin = 0, end = 0; begin < keys.count; begin = end) {
        end = keys.lane == nullptr ? keys.count : keys.lane->send(keys, begin);
        clock_.time(sampled, kProbe, probing, [&] {
          launch_probe(keys, begin, end, stamp, *workspace, lists, probing);
        });
        workspace->probed.record(probing);
        if (probing != stream) workspace->probed.hold(stream);
        clock_.time(sampled, kProbe, stream, [&] {
          launch_copy(workspace->slots.get() + begin, end - begin, out.from(begin, dim()),
                      stream);
        });
      }
    });
    // Rows are copied meanwhile, and the caller can go on before they are.
    const CountsOnHost counts = workspace->wait_for_counts();
    const uint64_t unique_keys = uint64_t{counts.unique_hits} + counts.missing_keys;
    keys_.fetch_add(keys.count, std::memory_order_relaxed);
    hits_.fetch_add(keys.count - counts.missing_keys - counts.duplicates,
                    std::memory_order_relaxed);
    unique_keys_.fetch_add(unique_keys, std::memory_order_relaxed);
    unique_hits_.fetch_add(counts.unique_hits, std::memory_order_relaxed);
    if (counts.missing_keys == 0) return;
    const double hit_rate = static_cast<double>(counts.unique_hits) / static_cast<double>(unique_keys);
    // Without a slot, nothing that is inserted later could ever hit.
    if (hit_rate >= threshold_ && num_sets_ != 0) {
      std::vector<int64_t> missing(lists.host_keys, lists.host_keys + counts.missing_keys);
      inserter_.offer([this, stamp, missing = std::move(missing)](Staging& staging,
                                                                  cudaStream_t its_stream) {
        insert_from_host(missing.data(), missing.size(), stamp, staging, its_stream);
      });
      return;
    }
    fetch_missing(lists, counts.missing_keys, stamp, workspace->staging, out, sampled, stream);
    if (counts.duplicates == 0) return;
    clock_.time(sampled, kMerge, stream, [&] {
      with_places(out, [&](auto places) {
        repeat_rows<<<num_blocks(counts.duplicates), kThreads, 0, stream>>>(
            lists.duplicates, lists.originals, counts.duplicates, places, view_.dim);
      });
      check_launch("repeat_rows");
    });
  }

  void launch_probe(const Keys& keys, uint64_t begin, uint64_t end, uint32_t stamp,
                    const Workspace& workspace, const MissLists& lists, cudaStream_t stream) {
    const bool is_last = end == keys.count;
    with_key_type(keys, [&](auto* data) {
      slab_probe<<<num_blocks((end - begin + kWarp - 1) / kWarp), kThreads, 0, stream>>>(
          view_, data, static_cast<uint32_t>(begin), static_cast<uint32_t>(end),
          workspace.slots.get(), stamp, lists, is_last);
    });
    check_launch("slab_probe");
  }

  void launch_copy(const uint32_t* slots, uint64_t num_keys, const Output& out,
                   cudaStream_t stream) {
    with_row_shape(dim(), out.is_aligned(), [&](auto shape) {
      with_places(out, [&](auto places) {
        using Shape = decltype(shape);
        const uint64_t num_warps = (num_keys + Shape::kKeys - 1) / Shape::kKeys;
        slab_copy<Shape><<<num_blocks(num_warps), kThreads, 0, stream>>>(
            view_, slots, static_cast<uint32_t>(num_keys), places);
      });
    });
    check_launch("slab_copy");
  }

  void fetch_missing(const MissLists& lists, uint64_t num_missing, uint32_t stamp,
                     Staging& staging, const Output& out, bool sampled, cudaStream_t stream) {
    staging.in_pieces(
        num_missing, dim(), stream, [&](uint64_t begin, uint64_t count, Staging::Half& half) {
          const uint64_t generation = generation_;
          const auto started = std::chrono::steady_clock::now();
          fetch(lists.host_keys + begin, count, half, stream);
          if (sampled) clock_.add(kFetch, std::chrono::steady_clock::now() - started);
          clock_.time(sampled, kMerge, stream,
                      [&] { place(half, lists.positions + begin, count, out, stream); });
          clock_.time(sampled, kInsert, stream, [&] {
            insert(lists.keys + begin, half, count, generation, stamp, stream);
          });
        });
  }

  void place(const Staging::Half& fetched, const uint32_t* positions, uint64_t num_rows,
             const Output& out, cudaStream_t stream) {
    with_vec(dim(), out.is_aligned(), [&](auto vec) {
      with_places(out, [&](auto places) {
        place_rows<decltype(vec)><<<num_blocks(num_rows), kThreads, 0, stream>>>(
            fetched.device_rows.get(), fetched.device_found.get(),
            static_cast<uint32_t>(num_rows), positions, places, view_.dim);
      });
    });
    check_launch("place_rows");
  }

  void insert_from_host(const int64_t* keys, uint64_t num_keys, uint32_t stamp, Staging& staging,
                        cudaStream_t stream) {
    staging.in_pieces(num_keys, dim(), stream,
                      [&](uint64_t begin, uint64_t count, Staging::Half& half) {
                        const uint64_t generation = generation_;
                        std::memcpy(half.keys.get(), keys + begin, count * sizeof(int64_t));
                        fetch(keys + begin, count, half, stream);
                        insert(half.keys.get(), half, count, generation, stamp, stream);
                      });
  }

  void fetch(const int64_t* keys, uint64_t num_keys, Staging::Half& half, cudaStream_t stream) {
    hps_fetch(host().model, host().number, keys, num_keys, half.rows.get(), half.found.get());
    half.send(num_keys, dim(), stream);
  }

  // `generation` was that of the table before the rows were fetched.
  void insert(const int64_t* keys, const Staging::Half& fetched, uint64_t num_keys,
              uint64_t generation, uint32_t stamp, cudaStream_t stream) {
    if (num_sets_ == 0) return;
    order_.write(stream, [&] {
      if (generation_ != generation) return;
      with_vec(dim(), is_aligned(fetched.device_rows.get()), [&](auto vec) {
        insert_rows<decltype(vec)><<<num_blocks(num_keys), kThreads, 0, stream>>>(
            view_, keys, fetched.device_found.get(), fetched.device_rows.get(),
            static_cast<uint32_t>(num_keys), stamp);
      });
      check_launch("insert_rows");
    });
  }

  const double threshold_;
  WorkspacePool& pool_;
  Inserter& inserter_;
  const uint64_t num_sets_;
  DeviceBuffer<int64_t> slot_keys_;
  DeviceBuffer<uint32_t> stamps_;
  DeviceBuffer<float> rows_;
  DeviceBuffer<float> default_row_;
  DeviceBuffer<SlabCounters> counters_;
  SlabView view_;
  Order order_;
  std::atomic<uint64_t> generation_{0};  // of the rows on the host; changes in a write
  std::atomic<uint32_t> stamp_{kPreloadStamp + 1};
  std::atomic<uint64_t> lookups_{0};
  std::atomic<uint64_t> keys_{0};
  std::atomic<uint64_t> hits_{0};
  std::atomic<uint64_t> unique_keys_{0};
  std::atomic<uint64_t> unique_hits_{0};
};

}  // namespace

std::unique_ptr<Table> make_slab_table(const HostTable& table, const SlabOptions& options,
                                       WorkspacePool& pool, Inserter& inserter) {
  return std::make_unique<SlabTable>(table, options, pool, inserter);
}

}  // namespace hps::gpu
