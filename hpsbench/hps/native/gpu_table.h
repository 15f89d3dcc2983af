// What all tables on a GPU have in common, whichever way they hold their rows.
#ifndef HPSBENCH_HPS_NATIVE_GPU_TABLE_H_
#define HPSBENCH_HPS_NATIVE_GPU_TABLE_H_

#include <cuda_fp16.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "core.h"
#include "gpu_cache.h"
#include "gpu_memory.h"
#include "gpu_order.h"
#include "gpu_stages.h"

namespace hps::gpu {

// A table of a model as the host holds it.
struct HostTable {
  hps_model* model;
  int32_t number;
  uint64_t num_keys;
  uint64_t embedding_dim;
  const float* rows;
  const int64_t* keys;  // valid while a GPU table is made
  float default_value;
};

class Lane;

// Keys on the GPU: int64, or int32.
struct Keys {
  const void* data;
  int32_t key_bytes;
  uint64_t count;
  // Where they are on their way to `data`, if they are, and by which lane they come or came.
  const char* on_host = nullptr;
  Lane* lane = nullptr;

  uint64_t num_bytes() const { return count * key_bytes; }
  Keys part(uint64_t begin, uint64_t count_of_part) const {
    const uint64_t skip = begin * key_bytes;
    return {static_cast<const char*>(data) + skip, key_bytes, count_of_part,
            on_host == nullptr ? nullptr : on_host + skip, lane};
  }
};

// Where rows go, on the GPU: one after another, or (float32) those of each sample's keys one after
// another.
struct Output {
  void* data;
  hps_row_type type;
  uint32_t keys_per_sample = 0;  // 0: of all samples one after another
  uint32_t skipped = 0;          // values between the rows of a sample and those of the next
  uint32_t first_key = 0;        // the number of the first key, from the first of a sample on

  bool is_dense() const { return keys_per_sample == 0; }
  uint64_t value_bytes() const { return type == HPS_FLOAT16 ? sizeof(__half) : sizeof(float); }
  // Where the rows of keys from number `num_keys` on go. What lies between samples is not in `data`.
  Output from(uint64_t num_keys, uint64_t dim) const {
    return {static_cast<char*>(data) + num_keys * dim * value_bytes(), type, keys_per_sample,
            skipped, is_dense() ? 0 : first_key + static_cast<uint32_t>(num_keys)};
  }
  // Whether rows whose size is a multiple of 16 bytes all begin at one.
  bool is_aligned() const {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && skipped * value_bytes() % 16 == 0;
  }
};

class Table {
 public:
  explicit Table(const HostTable& host) : host_(host) { host_.keys = nullptr; }
  virtual ~Table() = default;

  const HostTable& host() const { return host_; }
  uint64_t dim() const { return host_.embedding_dim; }
  StageClock& clock() { return clock_; }

  // Writes the rows of `keys` to `out`, in the order of `stream`.
  virtual void lookup(const Keys& keys, const Output& out, cudaStream_t stream) = 0;
  virtual hps_gpu_facts facts() = 0;
  // Whether it answers every key on the GPU. Then its `lookup` is to be called in an Order's read.
  virtual bool is_resident() const = 0;
  // Whether a launch can look up several tables of its kind, with rows of one size.
  virtual bool shares_launches() const { return false; }

  // What follows is for one thread at a time. Keys, rows and flags are in page-locked host memory.
  // Of places 0 to num_places() - 1, writes which keys they hold; flag 0 means none.
  virtual uint64_t num_places() = 0;
  virtual void list(uint64_t first, uint64_t count, int64_t* keys, uint8_t* flags,
                    cudaStream_t stream) = 0;
  // Replaces the rows of flagged keys that are held, and sets the flags of the others to 0.
  virtual void rewrite(const int64_t* keys, const float* rows, uint64_t num_keys, uint8_t* flags,
                       cudaStream_t stream) = 0;
  // Takes in keys that a resident table does not hold, and returns when it does.
  virtual void add(const int64_t*, const float*, uint64_t, cudaStream_t) {}
  uint64_t next_place = 0;  // to be refreshed

 protected:
  void fill_stages(hps_gpu_facts* facts) {
    facts->sampled_lookups = clock_.sampled();
    facts->probe_ns = clock_.ns(kProbe);
    facts->fetch_ns = clock_.ns(kFetch);
    facts->merge_ns = clock_.ns(kMerge);
    facts->insertion_ns = clock_.ns(kInsert);
  }

  StageClock clock_;

 private:
  HostTable host_;
};

struct Request {
  Table* table;
  Keys keys;
  Output out;
};
// Looks up keys of several tables, all keys and all rows of one type. Resident tables, whose order
// is `resident_order`, share launches.
void look_up(const std::vector<Request>& requests, Order& resident_order, cudaStream_t stream);

// Lets Key be the type of the keys in a call of `run`.
template <class Run>
void with_key_type(const Keys& keys, const Run& run) {
  if (keys.key_bytes == 8) {
    run(static_cast<const int64_t*>(keys.data));
  } else {
    run(static_cast<const int32_t*>(keys.data));
  }
}

// Copies `num_bytes` to the GPU, through page-locked memory and on several threads.
void upload(void* device_memory, const void* host_memory, uint64_t num_bytes, int device);

class WorkspacePool;
class Inserter;

// A share of the rows in slots. `pool` and `inserter` must outlive it.
struct SlabOptions {
  double share;
  double hit_rate_threshold;
  bool preload;
};
std::unique_ptr<Table> make_slab_table(const HostTable& table, const SlabOptions& options,
                                       WorkspacePool& pool, Inserter& inserter);

// All rows on the GPU, or the first `num_device_rows` there and the others in host memory. `order`
// must outlive it.
struct ResidentOptions {
  uint64_t num_device_rows;
  bool first_duplicate_counts;
  bool float8;  // rows of 8-bit floats, with one scale per row; then all are on the GPU
};
std::unique_ptr<Table> make_resident_table(const HostTable& table, const ResidentOptions& options,
                                           Order& order, int device);

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_TABLE_H_
