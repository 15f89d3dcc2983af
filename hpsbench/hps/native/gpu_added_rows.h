// Memory of rows on the GPU, and the rows that a resident table was given after it was made.
#ifndef HPSBENCH_HPS_NATIVE_GPU_ADDED_ROWS_H_
#define HPSBENCH_HPS_NATIVE_GPU_ADDED_ROWS_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "gpu_resident_kernels.cuh"
#include "gpu_memory.h"

namespace hps::gpu {

// Room for rows of float32, or of float8 with their scales.
class RowMemory {
 public:
  RowMemory() = default;
  RowMemory(uint64_t num_rows, uint64_t dim, bool float8)
      : rows_(num_rows * dim * (float8 ? 1 : sizeof(float))), scales_(float8 ? num_rows : 0) {}

  RowStore store() const { return {rows_.get(), scales_.get()}; }
  uint64_t num_bytes() const { return rows_.num_bytes() + scales_.num_bytes(); }
  // Copies the first rows of `other`.
  void copy_from(const RowMemory& other, uint64_t num_rows, uint64_t dim,
                 cudaStream_t stream) const {
    const bool float8 = scales_.count() != 0;
    copy(rows_.get(), other.rows_.get(), num_rows * dim * (float8 ? 1 : sizeof(float)), stream);
    copy(scales_.get(), other.scales_.get(), float8 ? num_rows * sizeof(float) : 0, stream);
  }
  static void copy(void* to, const void* from, uint64_t num_bytes, cudaStream_t stream) {
    if (num_bytes == 0) return;
    check(cudaMemcpyAsync(to, from, num_bytes, cudaMemcpyDefault, stream), "move rows");
  }

 private:
  DeviceBuffer<char> rows_;
  DeviceBuffer<float> scales_;
};

// Grows by doubling. One thread at a time may call it; lookups know it by the view.
class AddedRows {
 public:
  AddedRows(uint64_t dim, bool float8) : dim_(dim), float8_(float8) {}

  uint64_t count() const { return count_.load(std::memory_order_relaxed); }
  uint64_t num_bytes() const { return num_bytes_.load(std::memory_order_relaxed); }
  RowStore store() const { return now_.rows.store(); }
  const Slot* slots() const { return now_.slots.get(); }
  uint64_t num_slots() const { return now_.slots.count(); }

  // Takes the memory that `append` needs.
  void prepare(uint64_t num_more) {
    if (count() + num_more <= now_.keys.count()) return;
    const uint64_t capacity = std::max({kFewest, 2 * now_.keys.count(), count() + num_more});
    next_ = {RowMemory(capacity, dim_, float8_), DeviceBuffer<int64_t>(capacity),
             DeviceBuffer<Slot>(2 * capacity)};
    num_bytes_ = next_.rows.num_bytes() + next_.keys.num_bytes() + next_.slots.num_bytes();
  }

  // Adds keys that are not there. No lookup may run on the GPU meanwhile. What was outgrown stays
  // until `forget_outgrown`.
  void append(const int64_t* keys, const float* rows, uint64_t num_keys, cudaStream_t stream) {
    const uint64_t before = count();
    if (next_.keys.count() != 0) {
      check(cudaMemsetAsync(next_.slots.get(), 0xff, next_.slots.num_bytes(), stream),
            "clear an index");
      next_.rows.copy_from(now_.rows, before, dim_, stream);
      RowMemory::copy(next_.keys.get(), now_.keys.get(), before * sizeof(int64_t), stream);
      outgrown_ = std::exchange(now_, std::exchange(next_, {}));
      add_to_index(0, before, stream);
    }
    RowMemory::copy(now_.keys.get() + before, keys, num_keys * sizeof(int64_t), stream);
    write_rows<<<num_blocks(num_keys), kThreads, 0, stream>>>(store(), before, rows, num_keys,
                                                              static_cast<uint32_t>(dim_));
    check_launch("write_rows");
    add_to_index(before, num_keys, stream);
    count_ = before + num_keys;
  }

  void forget_outgrown() { outgrown_ = {}; }

 private:
  static constexpr uint64_t kFewest = 1024;
  static constexpr unsigned kAddThreads = 256;

  struct Memory {
    RowMemory rows;
    DeviceBuffer<int64_t> keys;
    DeviceBuffer<Slot> slots;
  };

  void add_to_index(uint64_t first, uint64_t num_rows, cudaStream_t stream) {
    if (num_rows == 0) return;
    const auto blocks = static_cast<unsigned>((num_rows + kAddThreads - 1) / kAddThreads);
    add_slots<<<blocks, kAddThreads, 0, stream>>>(now_.slots.get(), now_.slots.count(),
                                                  now_.keys.get(), first, num_rows);
    check_launch("add_slots");
  }

  const uint64_t dim_;
  const bool float8_;
  std::atomic<uint64_t> count_{0};
  std::atomic<uint64_t> num_bytes_{0};
  Memory now_;
  Memory next_;
  Memory outgrown_;
};

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_ADDED_ROWS_H_
