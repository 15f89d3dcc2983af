// Tables whose every key the GPU answers: an exact index, and rows that kernels can reach.
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "gpu_added_rows.h"
#include "gpu_lanes.h"
#include "gpu_resident_kernels.cuh"
#include "gpu_table.h"

namespace hps::gpu {

namespace {

constexpr unsigned kSimpleThreads = 256;
constexpr uint64_t kEncodedAtOnce = 64 << 20;  // bytes of float32 that become float8
constexpr uint8_t kCodeOfOne = 0x38;
// A GPU that reads here and there in more host memory than this has its reads wait for addresses to
// be translated: at 23 GB/s instead of 51 on an H100. So large lookups read one region at a time.
constexpr uint64_t kHostRegion = 1 << 30;
constexpr uint64_t kFewBytes = 256 << 10;  // for which another launch does not pay

unsigned simple_blocks(uint64_t num_threads) {
  return static_cast<unsigned>((num_threads + kSimpleThreads - 1) / kSimpleThreads);
}

class ResidentTable : public Table {
 public:
  ResidentTable(const HostTable& host, const ResidentOptions& options, Order& order, int device)
      : Table(host),
        order_(order),
        float8_(options.float8),
        device_rows_(options.num_device_rows, host.embedding_dim, options.float8),
        host_rows_((host.num_keys - options.num_device_rows) * host.embedding_dim),
        default_row_(1, host.embedding_dim, options.float8),
        missing_keys_(1),
        device_view_(1),
        added_(host.embedding_dim, options.float8) {
    load_rows(host, options.num_device_rows, device);
    load_default(host.default_value);
    check(cudaMemset(missing_keys_.get(), 0, missing_keys_.num_bytes()), "clear a counter");
    view_ = {device_rows_.store(),
             options.num_device_rows,
             {host_rows_.get(), nullptr},
             host.num_keys,
             default_row_.store(),
             static_cast<uint32_t>(host.embedding_dim),
             host.keys[0],
             nullptr,
             0,
             {},
             nullptr,
             0,
             missing_keys_.get()};
    if (!is_contiguous(host)) build_index(host, options.first_duplicate_counts, device);
    check(cudaMemcpy(device_view_.get(), &view_, sizeof(view_), cudaMemcpyHostToDevice),
          "copy a table's description to the GPU");
    check(cudaDeviceSynchronize(), "build a table");
  }

  void lookup(const Keys& keys, const Output& out, cudaStream_t stream) override {
    // Host memory is best read by all keys at a time.
    const bool whole = num_host_regions() > 1;
    const bool sampled = clock_.samples();
    in_order_of(stream, keys, whole, [&](uint64_t begin, uint64_t end) {
      clock_.time(sampled, kProbe, stream, [&] {
        launch(keys.part(begin, end - begin), out.from(begin, dim()), stream);
      });
    });
    check_launch("resident_lookup");
    count(keys);
  }

  bool is_resident() const override { return true; }
  bool shares_launches() const override { return !float8_ && num_host_regions() <= 1; }
  const ResidentView* device_view() const { return device_view_.get(); }
  void count(const Keys& keys) {
    lookups_.fetch_add(1, std::memory_order_relaxed);
    keys_.fetch_add(keys.count, std::memory_order_relaxed);
  }

  hps_gpu_facts facts() override {
    hps_gpu_facts facts = {};
    facts.resident = 1;
    facts.capacity = view_.num_device_rows + added_.count();
    facts.device_bytes = device_rows_.num_bytes() + slots_.num_bytes() + default_row_.num_bytes() +
                         added_.num_bytes();
    facts.host_bytes = host_rows_.num_bytes();
    facts.lookups = lookups_.load(std::memory_order_relaxed);
    facts.keys = keys_.load(std::memory_order_relaxed);
    unsigned long long missing;
    check(cudaMemcpy(&missing, missing_keys_.get(), sizeof(missing), cudaMemcpyDeviceToHost),
          "read a counter");
    // Keys are counted when a lookup is asked for, missing ones when it runs.
    facts.hits = facts.keys - std::min<uint64_t>(facts.keys, missing);
    facts.inserted = added_.count();
    fill_stages(&facts);
    return facts;
  }

  uint64_t num_places() override {
    return (view_.slots != nullptr ? view_.num_slots : view_.num_rows) + view_.num_added_slots;
  }

  void list(uint64_t first, uint64_t count, int64_t* keys, uint8_t* flags,
            cudaStream_t stream) override {
    order_.read(stream, [&] {
      list_keys<<<simple_blocks(count), kSimpleThreads, 0, stream>>>(view_, first, count, keys,
                                                                     flags);
      check_launch("list_keys");
    });
  }

  void rewrite(const int64_t* keys, const float* rows, uint64_t num_keys, uint8_t* flags,
               cudaStream_t stream) override {
    order_.write(stream, [&] {
      rewrite_rows<<<num_blocks(num_keys), kThreads, 0, stream>>>(view_, keys, rows, num_keys,
                                                                  flags);
      check_launch("rewrite_rows");
    });
  }

  // No lookup may answer such a key with the default any more, so a place is made for it.
  void add(const int64_t* keys, const float* rows, uint64_t num_keys,
           cudaStream_t stream) override {
    added_.prepare(num_keys);
    order_.write(stream, [&] {
      added_.append(keys, rows, num_keys, stream);
      view_.added = added_.store();
      view_.added_slots = added_.slots();
      view_.num_added_slots = added_.num_slots();
      check(cudaMemcpyAsync(device_view_.get(), &view_, sizeof(view_), cudaMemcpyHostToDevice,
                            stream),
            "copy a table's description to the GPU");
    });
    check(cudaStreamSynchronize(stream), "add rows");
    added_.forget_outgrown();
  }

 private:
  static bool is_contiguous(const HostTable& host) {
    const uint64_t first = static_cast<uint64_t>(host.keys[0]);
    for (uint64_t i = 1; i < host.num_keys; ++i) {
      if (static_cast<uint64_t>(host.keys[i]) != first + i) return false;
    }
    return true;
  }

  uint64_t num_host_regions() const {
    return (host_rows_.num_bytes() + kHostRegion - 1) / kHostRegion;
  }

  void launch(const Keys& keys, const Output& out, cudaStream_t stream) const {
    const uint64_t num_regions = num_host_regions();
    if (num_regions <= 1 ||
        keys.count * dim() * sizeof(float) < num_regions * kFewBytes) {
      return launch(view_, keys, out, stream);
    }
    ResidentView without_host = view_;
    without_host.host.rows = nullptr;
    launch(without_host, keys, out, stream);
    const uint64_t rows_of_region = kHostRegion / (dim() * sizeof(float)) + 1;
    for (uint64_t row = view_.num_device_rows; row < view_.num_rows; row += rows_of_region) {
      launch_host_rows(row, std::min(row + rows_of_region, view_.num_rows), keys, out, stream);
    }
  }

  void launch_host_rows(uint64_t first_row, uint64_t last_row, const Keys& keys, const Output& out,
                        cudaStream_t stream) const {
    with_vec(dim(), out.is_aligned(), [&](auto vec) {
      with_key_type(keys, [&](auto* data) {
        with_places(out, [&](auto places) {
          host_rows_lookup<decltype(vec)>
              <<<num_blocks((keys.count + kWarp - 1) / kWarp), kThreads, 0, stream>>>(
                  view_, first_row, last_row, data, keys.count, places);
        });
      });
    });
  }

  void launch(const ResidentView& view, const Keys& keys, const Output& out,
              cudaStream_t stream) const {
    with_types(keys, out, dim(), out.is_aligned(), [&](auto shape, auto* data, auto places) {
      using Shape = decltype(shape);
      const unsigned blocks = num_blocks((keys.count + Shape::kKeys - 1) / Shape::kKeys);
      if (float8_) {
        float8_lookup<Shape><<<blocks, kThreads, 0, stream>>>(view, data, keys.count, places);
      } else if (view.slots != nullptr) {
        resident_lookup<Shape, HashIndex>
            <<<blocks, kThreads, 0, stream>>>(view, data, keys.count, places);
      } else {
        resident_lookup<Shape, DirectIndex>
            <<<blocks, kThreads, 0, stream>>>(view, data, keys.count, places);
      }
    });
  }

  void load_rows(const HostTable& host, uint64_t num_device_rows, int device) {
    if (!float8_) {
      upload(device_rows_.store().rows, host.rows, num_device_rows * dim() * sizeof(float), device);
    } else {
      const uint64_t at_once = std::max<uint64_t>(1, kEncodedAtOnce / (dim() * sizeof(float)));
      const DeviceBuffer<float> piece(std::min(at_once, num_device_rows) * dim());
      for (uint64_t first = 0; first < num_device_rows; first += at_once) {
        const uint64_t count = std::min(at_once, num_device_rows - first);
        upload(piece.get(), host.rows + first * dim(), count * dim() * sizeof(float), device);
        write_rows<<<num_blocks(count), kThreads>>>(device_rows_.store(), first, piece.get(),
                                                    count, static_cast<uint32_t>(dim()));
        check_launch("write_rows");
        check(cudaDeviceSynchronize(), "encode rows");
      }
    }
    if (host_rows_.count() != 0) {
      std::memcpy(host_rows_.get(), host.rows + num_device_rows * dim(), host_rows_.num_bytes());
    }
  }

  void load_default(float value) {
    const RowStore store = default_row_.store();
    if (!float8_) {
      const std::vector<float> values(dim(), value);
      check(cudaMemcpy(store.rows, values.data(), dim() * sizeof(float), cudaMemcpyHostToDevice),
            "copy a default row to the GPU");
      return;
    }
    check(cudaMemset(store.rows, kCodeOfOne, dim()), "write a default row");
    check(cudaMemcpy(store.scales, &value, sizeof(value), cudaMemcpyHostToDevice),
          "copy a default value to the GPU");
  }

  void build_index(const HostTable& host, bool first_counts, int device) {
    slots_ = DeviceBuffer<Slot>(host.num_keys * 5 / 3 + 2);
    check(cudaMemset(slots_.get(), 0xff, slots_.num_bytes()), "clear an index");
    const DeviceBuffer<int64_t> keys(host.num_keys);
    upload(keys.get(), host.keys, keys.num_bytes(), device);
    index_rows<<<simple_blocks(host.num_keys), kSimpleThreads>>>(
        slots_.get(), slots_.count(), keys.get(), host.num_keys, first_counts);
    check_launch("index_rows");
    write_keys<<<simple_blocks(slots_.count()), kSimpleThreads>>>(slots_.get(), slots_.count(),
                                                                  keys.get());
    check_launch("write_keys");
    check(cudaDeviceSynchronize(), "build an index");
    view_.slots = slots_.get();
    view_.num_slots = slots_.count();
  }

  Order& order_;
  const bool float8_;
  RowMemory device_rows_;
  HostBuffer<float> host_rows_;
  RowMemory default_row_;
  DeviceBuffer<Slot> slots_;
  DeviceBuffer<unsigned long long> missing_keys_;
  DeviceBuffer<ResidentView> device_view_;  // the same as `view_`
  AddedRows added_;
  ResidentView view_;
  std::atomic<uint64_t> lookups_{0};
  std::atomic<uint64_t> keys_{0};
};

template <class Shape, class Key, class Places>
void launch_together(const Request* requests, size_t count, cudaStream_t stream) {
  using Batch = ResidentBatch<Places>;
  for (size_t begin = 0; begin < count; begin += Batch::kMaxParts) {
    const size_t num_parts = std::min<size_t>(Batch::kMaxParts, count - begin);
    const Request* const first = requests + begin;
    Batch batch;
    uint64_t most_keys = 0;
    uint64_t all_keys = 0;
    for (size_t i = 0; i < num_parts; ++i) {
      const Request& request = first[i];
      auto& table = static_cast<ResidentTable&>(*request.table);
      with_places(request.out, [&](auto places) {
        if constexpr (std::is_same_v<decltype(places), Places>) {
          batch.parts[i] = {table.device_view(), request.keys.data, request.keys.count,
                            places.from_first()};
        }
      });
      most_keys = std::max(most_keys, request.keys.count);
      all_keys += request.keys.count;
      table.count(request.keys);
    }
    const bool sampled = first->table->clock().samples();
    const auto span = sampled ? std::make_shared<Span>(stream) : nullptr;
    const dim3 blocks(num_blocks((most_keys + Shape::kKeys - 1) / Shape::kKeys),
                      static_cast<unsigned>(num_parts));
    resident_batch_lookup<Shape, Key, Places><<<blocks, kThreads, 0, stream>>>(batch);
    check_launch("resident_batch_lookup");
    if (!sampled) continue;
    span->end(stream);
    for (const Request* request = first; request != first + num_parts; ++request) {
      if (request != first) request->table->clock().count();
      request->table->clock().add(kProbe, span,
                                  static_cast<double>(request->keys.count) / all_keys);
    }
  }
}

// Looks up requests of resident tables with rows of one size, whose outputs are all dense or all
// not, in as few launches as possible.
void look_up_together(const Request* requests, size_t count, cudaStream_t stream) {
  bool aligned = true;
  for (size_t i = 0; i < count; ++i) aligned = aligned && requests[i].out.is_aligned();
  in_order_of(stream, requests[0].keys, true, [](uint64_t, uint64_t) {});
  const uint64_t dim = requests[0].table->dim();
  with_types(requests[0].keys, requests[0].out, dim, aligned,
             [&](auto shape, auto* data, auto places) {
               using Shape = decltype(shape);
               using Key = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
               launch_together<Shape, Key, decltype(places)>(requests, count, stream);
             });
}

// Looks up requests of resident tables; reorders them.
void look_residents_up(std::vector<Request>& requests, cudaStream_t stream) {
  const auto kind = [](const Request& request) {
    return std::make_pair(request.table->dim(), request.out.is_dense());
  };
  const auto by_kind = [&](const Request& a, const Request& b) { return kind(a) < kind(b); };
  if (!std::is_sorted(requests.begin(), requests.end(), by_kind)) {
    std::stable_sort(requests.begin(), requests.end(), by_kind);
  }
  for (size_t begin = 0; begin < requests.size();) {
    size_t end = begin + 1;
    while (end < requests.size() && kind(requests[end]) == kind(requests[begin])) ++end;
    if (end - begin > 1 && requests[begin].table->shares_launches()) {
      look_up_together(&requests[begin], end - begin, stream);
    } else {
      for (size_t i = begin; i < end; ++i) {
        requests[i].table->lookup(requests[i].keys, requests[i].out, stream);
      }
    }
    begin = end;
  }
}

}  // namespace

void look_up(const std::vector<Request>& requests, Order& resident_order, cudaStream_t stream) {
  std::vector<Request> residents;
  for (const Request& request : requests) {
    if (request.keys.count == 0) continue;
    if (request.table->is_resident()) {
      residents.push_back(request);
    } else {
      request.table->lookup(request.keys, request.out, stream);
    }
  }
  if (residents.empty()) return;
  resident_order.read(stream, [&] { look_residents_up(residents, stream); });
  if (Lane* const lane = residents[0].keys.lane) lane->used.record(stream);
}

std::unique_ptr<Table> make_resident_table(const HostTable& table, const ResidentOptions& options,
                                           Order& order, int device) {
  return std::make_unique<ResidentTable>(table, options, order, device);
}

}  // namespace hps::gpu
