// Tables whose every key the GPU answers: an exact index, and rows that kernels can reach.
#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "gpu_rows.cuh"
#include "gpu_table.h"

namespace hps::gpu {

namespace {

constexpr uint32_t kEmpty = UINT32_MAX;
constexpr uint64_t kNoRow = UINT64_MAX;
constexpr uint64_t kUploadPiece = 8 << 20;
constexpr unsigned kUploadThreads = 8;
// Bytes up to which page-locking memory takes longer than the copy.
constexpr uint64_t kSmallUpload = 4 << 20;

struct alignas(16) Slot {
  int64_t key;
  uint32_t row;  // kEmpty: the slot is free
  uint32_t padding;
};

struct ResidentView {
  const float* device_rows;
  uint64_t num_device_rows;
  const float* host_rows;  // of the rows from num_device_rows on
  uint64_t num_rows;
  const float* default_row;
  uint32_t dim;
  int64_t first_key;  // with a direct index
  const Slot* slots;  // with a hash index
  uint64_t num_slots;
  unsigned long long* missing_keys;
};

struct DirectIndex {
  static __device__ uint64_t find(const ResidentView& table, int64_t key) {
    const uint64_t row = static_cast<uint64_t>(key) - static_cast<uint64_t>(table.first_key);
    return row < table.num_rows ? row : kNoRow;
  }
};

struct HashIndex {
  static __device__ uint64_t find(const ResidentView& table, int64_t key) {
    uint64_t place = home_of(key, table.num_slots);
    for (;;) {
      const int4 bits = __ldg(reinterpret_cast<const int4*>(table.slots + place));
      const uint32_t row = static_cast<uint32_t>(bits.z);
      if (row == kEmpty) return kNoRow;
      const uint64_t found = uint64_t{static_cast<uint32_t>(bits.y)} << 32 |
                             static_cast<uint32_t>(bits.x);
      if (found == static_cast<uint64_t>(key)) return row;
      if (++place == table.num_slots) place = 0;
    }
  }
};

// Looks up the keys of the calling warp, from number `first` on.
template <class Shape, class Index, class Key, class Out>
__device__ void look_warp_up(const ResidentView& table, const Key* keys, uint64_t num_keys,
                             uint64_t first, Out* out) {
  using Vec = typename Shape::Vec;
  const uint32_t count = static_cast<uint32_t>(
      num_keys - first < Shape::kKeys ? num_keys - first : Shape::kKeys);
  const bool mine = lane_number() < count;
  const uint64_t row = mine ? Index::find(table, keys[first + lane_number()]) : kNoRow;
  const float* source = table.default_row;
  if (row < table.num_device_rows) {
    source = table.device_rows + row * table.dim;
  } else if (row < table.num_rows) {
    source = table.host_rows + (row - table.num_device_rows) * table.dim;
  }
  const unsigned missing = __ballot_sync(kAllLanes, mine && row == kNoRow);
  if (missing != 0 && lane_number() == 0) atomicAdd(table.missing_keys, __popc(missing));
  copy_rows<Vec, Shape::kVecs, Shape::kKeys>(reinterpret_cast<const Vec*>(source),
                                             out + first * table.dim,
                                             table.dim * sizeof(float) / sizeof(Vec), count);
}

template <class Shape, class Index, class Key, class Out>
__global__ void __launch_bounds__(kThreads)
    resident_lookup(const ResidentView table, const Key* keys, uint64_t num_keys, Out* out) {
  const uint64_t first = warp_number() * Shape::kKeys;
  if (first < num_keys) look_warp_up<Shape, Index>(table, keys, num_keys, first, out);
}

// Several tables with rows of one size, of which blockIdx.y is the number.
struct ResidentBatch {
  static constexpr int kMaxParts = 32;
  struct Part {
    ResidentView table;
    const void* keys;
    uint64_t num_keys;
    void* out;
  } parts[kMaxParts];
};
static_assert(sizeof(ResidentBatch) <= 4096, "what a kernel may take as parameters");

template <class Shape, class Key, class Out>
__global__ void __launch_bounds__(kThreads)
    resident_batch_lookup(const __grid_constant__ ResidentBatch batch) {
  const ResidentBatch::Part& part = batch.parts[blockIdx.y];
  const uint64_t first = warp_number() * Shape::kKeys;
  if (first >= part.num_keys) return;
  const Key* const keys = static_cast<const Key*>(part.keys);
  Out* const out = static_cast<Out*>(part.out);
  if (part.table.slots != nullptr) {
    look_warp_up<Shape, HashIndex>(part.table, keys, part.num_keys, first, out);
  } else {
    look_warp_up<Shape, DirectIndex>(part.table, keys, part.num_keys, first, out);
  }
}

// A slot is taken by its row's number, and `keys` says which key that is.
__global__ void index_rows(Slot* slots, uint64_t num_slots, const int64_t* keys,
                           uint64_t num_keys, bool first_counts) {
  const uint64_t row = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x;
  if (row >= num_keys) return;
  const int64_t key = keys[row];
  uint64_t place = home_of(key, num_slots);
  for (;;) {
    const uint32_t taken = atomicCAS(&slots[place].row, kEmpty, static_cast<uint32_t>(row));
    if (taken == kEmpty) return;
    if (keys[taken] == key) {
      if (first_counts) {
        atomicMin(&slots[place].row, static_cast<uint32_t>(row));
      } else {
        atomicMax(&slots[place].row, static_cast<uint32_t>(row));
      }
      return;
    }
    if (++place == num_slots) place = 0;
  }
}

__global__ void write_keys(Slot* slots, uint64_t num_slots, const int64_t* keys) {
  const uint64_t place = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x;
  if (place < num_slots && slots[place].row != kEmpty) slots[place].key = keys[slots[place].row];
}

void upload_part(char* device_memory, const char* host_memory, uint64_t num_bytes, int device) {
  const DeviceScope scope(device);
  const HostBuffer<char> pieces[2] = {HostBuffer<char>(kUploadPiece),
                                      HostBuffer<char>(kUploadPiece)};
  Event done[2];
  const Stream stream;
  int turn = 0;
  for (uint64_t begin = 0; begin < num_bytes; begin += kUploadPiece, turn ^= 1) {
    const uint64_t size = std::min(kUploadPiece, num_bytes - begin);
    done[turn].wait();
    std::memcpy(pieces[turn].get(), host_memory + begin, size);
    check(cudaMemcpyAsync(device_memory + begin, pieces[turn].get(), size, cudaMemcpyHostToDevice,
                          stream.get()),
          "copy rows to the GPU");
    done[turn].record(stream.get());
  }
  stream.wait();
}

class ResidentTable : public Table {
 public:
  ResidentTable(const HostTable& host, uint64_t num_device_rows, bool first_counts, int device)
      : dim_(host.embedding_dim),
        device_rows_(num_device_rows * dim_),
        host_rows_((host.num_keys - num_device_rows) * dim_),
        default_row_(default_row(host)),
        missing_keys_(1) {
    upload(device_rows_.get(), host.rows, device_rows_.num_bytes(), device);
    if (host_rows_.count() != 0) {
      std::memcpy(host_rows_.get(), host.rows + device_rows_.count(), host_rows_.num_bytes());
    }
    check(cudaMemset(missing_keys_.get(), 0, missing_keys_.num_bytes()), "clear a counter");
    view_ = {device_rows_.get(), num_device_rows,  host_rows_.get(), host.num_keys,
             default_row_.get(), static_cast<uint32_t>(dim_), host.keys[0], nullptr, 0,
             missing_keys_.get()};
    if (!is_contiguous(host)) build_index(host, first_counts, device);
    check(cudaDeviceSynchronize(), "build a table");
  }

  void lookup(const Keys& keys, const Output& out, cudaStream_t stream) override {
    with_types(keys, out, dim_, is_aligned(out.data), [&](auto shape, auto* data, auto* rows) {
      using Shape = decltype(shape);
      const unsigned blocks = num_blocks((keys.count + Shape::kKeys - 1) / Shape::kKeys);
      if (view_.slots != nullptr) {
        resident_lookup<Shape, HashIndex>
            <<<blocks, kThreads, 0, stream>>>(view_, data, keys.count, rows);
      } else {
        resident_lookup<Shape, DirectIndex>
            <<<blocks, kThreads, 0, stream>>>(view_, data, keys.count, rows);
      }
    });
    check_launch("resident_lookup");
    count(keys);
  }

  uint64_t dim() const { return dim_; }
  const ResidentView& view() const { return view_; }
  void count(const Keys& keys) {
    lookups_.fetch_add(1, std::memory_order_relaxed);
    keys_.fetch_add(keys.count, std::memory_order_relaxed);
  }

  hps_gpu_facts facts() override {
    hps_gpu_facts facts = {};
    facts.resident = 1;
    facts.capacity = view_.num_device_rows;
    facts.device_bytes = device_rows_.num_bytes() + slots_.num_bytes() + default_row_.num_bytes();
    facts.host_bytes = host_rows_.num_bytes();
    facts.lookups = lookups_.load(std::memory_order_relaxed);
    facts.keys = keys_.load(std::memory_order_relaxed);
    unsigned long long missing;
    check(cudaMemcpy(&missing, missing_keys_.get(), sizeof(missing), cudaMemcpyDeviceToHost),
          "read a counter");
    // Keys are counted when a lookup is asked for, missing ones when it runs.
    facts.hits = facts.keys - std::min<uint64_t>(facts.keys, missing);
    return facts;
  }

 private:
  static bool is_contiguous(const HostTable& host) {
    const uint64_t first = static_cast<uint64_t>(host.keys[0]);
    for (uint64_t i = 1; i < host.num_keys; ++i) {
      if (static_cast<uint64_t>(host.keys[i]) != first + i) return false;
    }
    return true;
  }

  void build_index(const HostTable& host, bool first_counts, int device) {
    constexpr unsigned kBuildThreads = 256;
    const auto blocks = [](uint64_t threads) {
      return static_cast<unsigned>((threads + kBuildThreads - 1) / kBuildThreads);
    };
    slots_ = DeviceBuffer<Slot>(host.num_keys * 5 / 3 + 2);
    check(cudaMemset(slots_.get(), 0xff, slots_.num_bytes()), "clear an index");
    const DeviceBuffer<int64_t> keys(host.num_keys);
    upload(keys.get(), host.keys, keys.num_bytes(), device);
    index_rows<<<blocks(host.num_keys), kBuildThreads>>>(slots_.get(), slots_.count(), keys.get(),
                                                         host.num_keys, first_counts);
    check_launch("index_rows");
    write_keys<<<blocks(slots_.count()), kBuildThreads>>>(slots_.get(), slots_.count(),
                                                          keys.get());
    check_launch("write_keys");
    check(cudaDeviceSynchronize(), "build an index");
    view_.slots = slots_.get();
    view_.num_slots = slots_.count();
  }

  const uint64_t dim_;
  DeviceBuffer<float> device_rows_;
  HostBuffer<float> host_rows_;
  DeviceBuffer<float> default_row_;
  DeviceBuffer<Slot> slots_;
  DeviceBuffer<unsigned long long> missing_keys_;
  ResidentView view_;
  std::atomic<uint64_t> lookups_{0};
  std::atomic<uint64_t> keys_{0};
};

// Looks up requests of resident tables with rows of one size, in as few launches as possible.
void look_up_together(const std::vector<Request>& requests, cudaStream_t stream) {
  for (size_t begin = 0; begin < requests.size(); begin += ResidentBatch::kMaxParts) {
    const size_t num_parts = std::min<size_t>(ResidentBatch::kMaxParts, requests.size() - begin);
    ResidentBatch batch;
    uint64_t most_keys = 0;
    bool aligned = true;
    for (size_t i = 0; i < num_parts; ++i) {
      const Request& request = requests[begin + i];
      auto& table = static_cast<ResidentTable&>(*request.table);
      batch.parts[i] = {table.view(), request.keys.data, request.keys.count, request.out.data};
      most_keys = std::max(most_keys, request.keys.count);
      aligned = aligned && is_aligned(request.out.data);
      table.count(request.keys);
    }
    const Request& first = requests[begin];
    with_types(first.keys, first.out, batch.parts[0].table.dim, aligned,
               [&](auto shape, auto* data, auto* rows) {
                 using Shape = decltype(shape);
                 using Key = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
                 using Out = std::remove_pointer_t<decltype(rows)>;
                 const dim3 blocks(num_blocks((most_keys + Shape::kKeys - 1) / Shape::kKeys),
                                   static_cast<unsigned>(num_parts));
                 resident_batch_lookup<Shape, Key, Out><<<blocks, kThreads, 0, stream>>>(batch);
               });
    check_launch("resident_batch_lookup");
  }
}

}  // namespace

void look_up(const std::vector<Request>& requests, cudaStream_t stream) {
  std::map<uint64_t, std::vector<Request>> resident;  // by the size of rows
  for (const Request& request : requests) {
    if (request.keys.count == 0) continue;
    const auto* const table = dynamic_cast<const ResidentTable*>(request.table);
    if (requests.size() > 1 && table != nullptr) {
      resident[table->dim()].push_back(request);
    } else {
      request.table->lookup(request.keys, request.out, stream);
    }
  }
  for (const auto& [dim, of_one_size] : resident) look_up_together(of_one_size, stream);
}

void upload(void* device_memory, const void* host_memory, uint64_t num_bytes, int device) {
  if (num_bytes <= kSmallUpload) {
    check(cudaMemcpy(device_memory, host_memory, num_bytes, cudaMemcpyHostToDevice),
          "copy rows to the GPU");
    return;
  }
  const unsigned num_threads = static_cast<unsigned>(std::min<uint64_t>(
      {kUploadThreads, std::max(1u, std::thread::hardware_concurrency()),
       (num_bytes + 4 * kUploadPiece - 1) / (4 * kUploadPiece)}));
  if (num_threads == 0) return;
  const uint64_t part = (num_bytes + num_threads - 1) / num_threads;
  std::mutex mutex;
  std::exception_ptr failure;
  const auto run = [&](unsigned i) {
    try {
      const uint64_t begin = std::min(num_bytes, i * part);
      upload_part(static_cast<char*>(device_memory) + begin,
                  static_cast<const char*>(host_memory) + begin,
                  std::min(part, num_bytes - begin), device);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 1; i < num_threads; ++i) {
    try {
      threads.emplace_back(run, i);
    } catch (const std::system_error&) {
      run(i);
    }
  }
  run(0);
  for (auto& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

DeviceBuffer<float> default_row(const HostTable& table) {
  const std::vector<float> values(table.embedding_dim, table.default_value);
  DeviceBuffer<float> row(table.embedding_dim);
  check(cudaMemcpy(row.get(), values.data(), row.num_bytes(), cudaMemcpyHostToDevice),
        "copy a default row to the GPU");
  return row;
}

std::unique_ptr<Table> make_resident_table(const HostTable& table, uint64_t num_device_rows,
                                           bool first_duplicate_counts, int device) {
  return std::make_unique<ResidentTable>(table, num_device_rows, first_duplicate_counts, device);
}

}  // namespace hps::gpu
