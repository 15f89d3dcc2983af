// Replaces rows that a GPU holds, while lookups go on.
#ifndef HPSBENCH_HPS_NATIVE_GPU_REWRITER_H_
#define HPSBENCH_HPS_NATIVE_GPU_REWRITER_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <vector>

#include "gpu_memory.h"
#include "gpu_table.h"

namespace hps::gpu {

// It works piece by piece, one at a time on a GPU; between pieces, another thread's may come.
class Rewriter {
 public:
  explicit Rewriter(uint64_t largest_dim) : largest_dim_(largest_dim) {}

  // Replaces the rows of `keys` (distinct); resident tables take in those that are new to them.
  void update(Table& table, const int64_t* keys, const float* rows, uint64_t num_keys) {
    const uint64_t dim = table.dim();
    in_pieces(num_keys, dim, [&](uint64_t begin, uint64_t count) {
      std::copy_n(keys + begin, count, keys_.get());
      std::copy_n(rows + begin * dim, count * dim, rows_.get());
      std::fill_n(flags_.get(), count, uint8_t{1});
      table.rewrite(keys_.get(), rows_.get(), count, flags_.get(), stream_.get());
      stream_.wait();
      if (table.is_resident()) add_new(table, count);
    });
  }

  // Replaces the next `share` of the rows that the table holds by what the tiers have now.
  void refresh(Table& table, double share) {
    const auto places = [&] { return table.num_places(); };
    const uint64_t at_start = places();
    const uint64_t asked = static_cast<uint64_t>(share * static_cast<double>(at_start) + 0.999999);
    in_pieces(std::min(at_start, asked), table.dim(), [&](uint64_t, uint64_t count) {
      if (table.next_place >= places()) table.next_place = 0;
      count = std::min(count, places() - table.next_place);
      table.list(table.next_place, count, keys_.get(), flags_.get(), stream_.get());
      stream_.wait();
      const std::vector<uint8_t> is_held(flags_.get(), flags_.get() + count);
      hps_fetch(table.host().model, table.host().number, keys_.get(), count, rows_.get(),
                flags_.get());
      for (uint64_t i = 0; i < count; ++i) flags_[i] = flags_[i] != 0 && is_held[i] != 0;
      table.rewrite(keys_.get(), rows_.get(), count, flags_.get(), stream_.get());
      stream_.wait();
      table.next_place += count;
    });
  }

 private:
  static constexpr uint64_t kFloats = 1 << 20;
  static constexpr uint64_t kMaxRows = 1 << 14;

  template <class Run>
  void in_pieces(uint64_t num_rows, uint64_t dim, const Run& run) {
    const uint64_t num_floats = std::max(kFloats, largest_dim_);
    const uint64_t piece = std::min(kMaxRows, num_floats / dim);
    for (uint64_t begin = 0; begin < num_rows; begin += piece) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (keys_.count() == 0) {
        rows_ = HostBuffer<float>(num_floats);
        flags_ = HostBuffer<uint8_t>(kMaxRows);
        keys_ = HostBuffer<int64_t>(kMaxRows);
      }
      run(begin, std::min(piece, num_rows - begin));
    }
  }

  // Adds what was not rewritten of a piece.
  void add_new(Table& table, uint64_t count) {
    const uint64_t dim = table.dim();
    uint64_t num_new = 0;
    for (uint64_t i = 0; i < count; ++i) {
      if (flags_[i] != 0) continue;
      keys_[num_new] = keys_[i];
      std::memmove(rows_.get() + num_new * dim, rows_.get() + i * dim, dim * sizeof(float));
      ++num_new;
    }
    if (num_new != 0) table.add(keys_.get(), rows_.get(), num_new, stream_.get());
  }

  const uint64_t largest_dim_;
  Stream stream_;
  std::mutex mutex_;  // guards what follows, and Table::next_place
  HostBuffer<float> rows_;
  HostBuffer<uint8_t> flags_;
  HostBuffer<int64_t> keys_;
};

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_REWRITER_H_
