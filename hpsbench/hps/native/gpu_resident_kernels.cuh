// The kernels of resident tables: an exact index, and rows that the GPU can reach.
//
// Rows that were added since load have an index and memory of their own, which is asked only where
// the first index has no such key. Rows are float32, or codes of float8 (E4M3) with one scale per
// row: value = code * scale, and the scale maps the largest value to the largest code.
#ifndef HPSBENCH_HPS_NATIVE_GPU_RESIDENT_KERNELS_CUH_
#define HPSBENCH_HPS_NATIVE_GPU_RESIDENT_KERNELS_CUH_

#include <cuda_fp8.h>

#include "gpu_rows.cuh"

namespace hps::gpu {

constexpr uint32_t kEmpty = UINT32_MAX;
constexpr uint64_t kNoRow = UINT64_MAX;
constexpr float kLargestCode = 448;

struct alignas(16) Slot {
  int64_t key;
  uint32_t row;  // kEmpty: the slot is free
  uint32_t padding;
};

// Rows in one piece of memory.
struct RowStore {
  void* rows;
  float* scales;  // of float8 rows; null: the rows are float32
};

struct ResidentView {
  RowStore device;
  uint64_t num_device_rows;
  RowStore host;  // the rows from num_device_rows on
  uint64_t num_rows;
  RowStore default_row;
  uint32_t dim;
  int64_t first_key;  // with a direct index
  const Slot* slots;  // with a hash index
  uint64_t num_slots;
  RowStore added;
  const Slot* added_slots;
  uint64_t num_added_slots;
  unsigned long long* missing_keys;
};

__device__ inline uint64_t find_in(const Slot* slots, uint64_t num_slots, int64_t key) {
  uint64_t place = home_of(key, num_slots);
  for (;;) {
    const int4 bits = __ldg(reinterpret_cast<const int4*>(slots + place));
    const uint32_t row = static_cast<uint32_t>(bits.z);
    if (row == kEmpty) return kNoRow;
    const uint64_t found =
        uint64_t{static_cast<uint32_t>(bits.y)} << 32 | static_cast<uint32_t>(bits.x);
    if (found == static_cast<uint64_t>(key)) return row;
    if (++place == num_slots) place = 0;
  }
}

struct DirectIndex {
  static __device__ uint64_t find(const ResidentView& table, int64_t key) {
    const uint64_t row = static_cast<uint64_t>(key) - static_cast<uint64_t>(table.first_key);
    return row < table.num_rows ? row : kNoRow;
  }
};

struct HashIndex {
  static __device__ uint64_t find(const ResidentView& table, int64_t key) {
    return find_in(table.slots, table.num_slots, key);
  }
};

template <class VecType>
struct Float8Row {
  using Vec = VecType;
  const uint8_t* codes;
  float scale;

  __device__ Float8Row in_lane(int lane) const {
    return {reinterpret_cast<const uint8_t*>(
                __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(codes), lane)),
            __shfl_sync(kAllLanes, scale, lane)};
  }
  __device__ Vec load(uint32_t i) const {
    if constexpr (sizeof(Vec) == sizeof(float4)) {
      const unsigned word = __ldg(reinterpret_cast<const unsigned*>(codes) + i);
      const float2 low = decode(static_cast<__nv_fp8x2_storage_t>(word));
      const float2 high = decode(static_cast<__nv_fp8x2_storage_t>(word >> 16));
      return {low.x * scale, low.y * scale, high.x * scale, high.y * scale};
    } else {
      return decode(static_cast<__nv_fp8x2_storage_t>(__ldg(codes + i))).x * scale;
    }
  }
  static __device__ float2 decode(__nv_fp8x2_storage_t codes) {
    return __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(codes, __NV_E4M3)));
  }
};

template <class Vec>
__device__ inline void point(Float32Row<Vec>* to, const RowStore& store, uint64_t row,
                             uint32_t dim) {
  to->values = reinterpret_cast<const Vec*>(static_cast<const float*>(store.rows) + row * dim);
}
template <class Vec>
__device__ inline void point(Float8Row<Vec>* to, const RowStore& store, uint64_t row,
                             uint32_t dim) {
  to->codes = static_cast<const uint8_t*>(store.rows) + row * dim;
  to->scale = store.scales[row];
}

// Looks up the keys of the calling warp, from number `first` on.
template <class Row, class Shape, class Index, class Key, class Places>
__device__ void look_warp_up(const ResidentView& table, const Key* keys, uint64_t num_keys,
                             uint64_t first, const Places& out) {
  const uint32_t count = static_cast<uint32_t>(
      num_keys - first < Shape::kKeys ? num_keys - first : Shape::kKeys);
  const bool mine = lane_number() < count;
  const uint64_t row = mine ? Index::find(table, keys[first + lane_number()]) : kNoRow;
  bool is_missing = mine && row == kNoRow;
  Row source;
  if (row < table.num_device_rows) {
    point(&source, table.device, row, table.dim);
  } else if (row < table.num_rows && table.host.rows != nullptr) {
    point(&source, table.host, row - table.num_device_rows, table.dim);
  } else {
    point(&source, table.default_row, 0, table.dim);
    if (is_missing && table.num_added_slots != 0) {
      const uint64_t added =
          find_in(table.added_slots, table.num_added_slots, keys[first + lane_number()]);
      if (added != kNoRow) {
        point(&source, table.added, added, table.dim);
        is_missing = false;
      }
    }
  }
  const unsigned missing = __ballot_sync(kAllLanes, is_missing);
  if (missing != 0 && lane_number() == 0) atomicAdd(table.missing_keys, __popc(missing));
  copy_rows<Shape::kVecs, Shape::kKeys>(source, out, first, table.dim, count);
}

template <class Row, class Shape, class Key, class Places>
__device__ void look_warp_up_by_any_index(const ResidentView& table, const Key* keys,
                                          uint64_t num_keys, uint64_t first, const Places& out) {
  if (table.slots != nullptr) {
    look_warp_up<Row, Shape, HashIndex>(table, keys, num_keys, first, out);
  } else {
    look_warp_up<Row, Shape, DirectIndex>(table, keys, num_keys, first, out);
  }
}

template <class Shape, class Index, class Key, class Places>
__global__ void __launch_bounds__(kThreads)
    resident_lookup(const ResidentView table, const Key* keys, uint64_t num_keys,
                    const Places out) {
  const uint64_t first = warp_number() * Shape::kKeys;
  if (first >= num_keys) return;
  look_warp_up<Float32Row<typename Shape::Vec>, Shape, Index>(table, keys, num_keys, first, out);
}

template <class Shape, class Key, class Places>
__global__ void __launch_bounds__(kThreads)
    float8_lookup(const ResidentView table, const Key* keys, uint64_t num_keys, const Places out) {
  const uint64_t first = warp_number() * Shape::kKeys;
  if (first >= num_keys) return;
  look_warp_up_by_any_index<Float8Row<typename Shape::Vec>, Shape>(table, keys, num_keys, first,
                                                                   out);
}

// Copies the rows in host memory from number `first_row` to `last_row` - 1; a warp has 32 keys.
template <class Vec, class Key, class Places>
__global__ void __launch_bounds__(kThreads)
    host_rows_lookup(const ResidentView table, uint64_t first_row, uint64_t last_row,
                     const Key* keys, uint64_t num_keys, const Places out) {
  constexpr int kAtOnce = 4;
  const uint64_t first = warp_number() * kWarp;
  const uint64_t mine = first + lane_number();
  uint64_t row = kNoRow;
  if (mine < num_keys) {
    row = table.slots != nullptr ? HashIndex::find(table, keys[mine])
                                 : DirectIndex::find(table, keys[mine]);
  }
  unsigned wanted = __ballot_sync(kAllLanes, row >= first_row && row < last_row);
  using Word = decltype(as_output(Vec(), out.data));
  const uint32_t num_vecs = table.dim * sizeof(float) / sizeof(Vec);
  while (wanted != 0) {
    // Of several keys at a time, so that more reads are under way.
    const Vec* from[kAtOnce];
    Word* to[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int lane = wanted != 0 ? __ffs(wanted) - 1 : 0;
      const uint64_t its_row = __shfl_sync(kAllLanes, row, lane) - table.num_device_rows;
      from[k] = wanted == 0 ? nullptr
                            : reinterpret_cast<const Vec*>(
                                  static_cast<const float*>(table.host.rows) + its_row * table.dim);
      to[k] = reinterpret_cast<Word*>(out.at(first + lane, table.dim));
      wanted &= wanted - 1;
    }
    for (uint32_t i = lane_number(); i < num_vecs; i += kWarp) {
      Vec values[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (from[k] != nullptr) values[k] = __ldg(from[k] + i);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (from[k] != nullptr) __stcs(to[k] + i, as_output(values[k], out.data));
      }
    }
  }
}

// Several tables of float32 rows of one size, of which blockIdx.y is the number.
template <class Places>
struct ResidentBatch {
  struct Part {
    const ResidentView* table;  // on the GPU
    const void* keys;
    uint64_t num_keys;
    typename Places::FromFirst out;
  };
  static constexpr int kMaxParts = 4080 / sizeof(Part);  // a kernel takes 4096 bytes of parameters
  Part parts[kMaxParts];
};

template <class Shape, class Key, class Places>
__global__ void __launch_bounds__(kThreads)
    resident_batch_lookup(const __grid_constant__ ResidentBatch<Places> batch) {
  const auto& part = batch.parts[blockIdx.y];
  const uint64_t first = warp_number() * Shape::kKeys;
  if (first >= part.num_keys) return;
  look_warp_up_by_any_index<Float32Row<typename Shape::Vec>, Shape>(
      *part.table, static_cast<const Key*>(part.keys), part.num_keys, first, Places(part.out));
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

// Adds keys, distinct and not yet there, whose rows have the numbers from `first` on.
__global__ void add_slots(Slot* slots, uint64_t num_slots, const int64_t* keys, uint64_t first,
                          uint64_t num_keys) {
  const uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x;
  if (i >= num_keys) return;
  const uint32_t row = static_cast<uint32_t>(first + i);
  uint64_t place = home_of(keys[row], num_slots);
  while (atomicCAS(&slots[place].row, kEmpty, row) != kEmpty) {
    if (++place == num_slots) place = 0;
  }
  slots[place].key = keys[row];
}

// Writes one row, by a warp.
__device__ inline void write_row(const RowStore& store, uint64_t row, const float* from,
                                 uint32_t dim) {
  if (store.scales == nullptr) {
    float* const to = static_cast<float*>(store.rows) + row * dim;
    for (uint32_t i = lane_number(); i < dim; i += kWarp) to[i] = from[i];
    return;
  }
  float largest = 0;
  for (uint32_t i = lane_number(); i < dim; i += kWarp) largest = fmaxf(largest, fabsf(from[i]));
  for (int apart = kWarp / 2; apart != 0; apart /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, apart));
  }
  const float scale = largest == 0 ? 1 : largest / kLargestCode;
  if (lane_number() == 0) store.scales[row] = scale;
  uint8_t* const codes = static_cast<uint8_t*>(store.rows) + row * dim;
  for (uint32_t i = lane_number(); i < dim; i += kWarp) {
    codes[i] = __nv_cvt_float_to_fp8(from[i] / scale, __NV_SATFINITE, __NV_E4M3);
  }
}

// Writes consecutive rows, from number `first` on.
__global__ void write_rows(RowStore store, uint64_t first, const float* rows, uint64_t num_rows,
                           uint32_t dim) {
  const uint64_t i = warp_number();
  if (i < num_rows) write_row(store, first + i, rows + i * dim, dim);
}

// Replaces the rows of keys that are flagged, and takes the flag from those that are not here. Keys
// are distinct.
__global__ void rewrite_rows(ResidentView table, const int64_t* keys, const float* rows,
                             uint64_t num_keys, uint8_t* flags) {
  const uint64_t i = warp_number();
  if (i >= num_keys || flags[i] == 0) return;
  const int64_t key = keys[i];
  const float* const from = rows + i * table.dim;
  const uint64_t row = table.slots != nullptr ? HashIndex::find(table, key)
                                              : DirectIndex::find(table, key);
  if (row < table.num_device_rows) return write_row(table.device, row, from, table.dim);
  if (row < table.num_rows) {
    return write_row(table.host, row - table.num_device_rows, from, table.dim);
  }
  const uint64_t added = table.num_added_slots == 0
                             ? kNoRow
                             : find_in(table.added_slots, table.num_added_slots, key);
  if (added != kNoRow) return write_row(table.added, added, from, table.dim);
  __syncwarp();
  if (lane_number() == 0) flags[i] = 0;
}

// Lists the keys at some places: of the rows with a direct index, else of the slots; then of the
// slots of rows that were added. Where there is none, the flag is 0.
__global__ void list_keys(ResidentView table, uint64_t first, uint64_t count, int64_t* keys,
                          uint8_t* flags) {
  const uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x;
  if (i >= count) return;
  const uint64_t num_places = table.slots != nullptr ? table.num_slots : table.num_rows;
  const uint64_t place = first + i;
  if (table.slots == nullptr && place < num_places) {
    keys[i] = table.first_key + static_cast<int64_t>(place);
    flags[i] = 1;
    return;
  }
  Slot slot = {0, kEmpty, 0};
  if (place < num_places) {
    slot = table.slots[place];
  } else if (place - num_places < table.num_added_slots) {
    slot = table.added_slots[place - num_places];
  }
  keys[i] = slot.key;
  flags[i] = slot.row != kEmpty;
}

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_RESIDENT_KERNELS_CUH_
