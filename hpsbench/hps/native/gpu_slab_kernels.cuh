// The kernels of a slab table: probing, copying, rows of missing keys, insertion.
//
// A set is 16 slots, whose keys are one line of memory, so eight lanes probe a key at once. A free
// slot holds a key that belongs to another set, so it is never found, and no key is reserved. A
// slot's stamp is the number of the lookup that used it last, 0 where it is free.
#ifndef HPSBENCH_HPS_NATIVE_GPU_SLAB_KERNELS_CUH_
#define HPSBENCH_HPS_NATIVE_GPU_SLAB_KERNELS_CUH_

#include "gpu_rows.cuh"
#include "gpu_workspace.h"

namespace hps::gpu {

constexpr uint32_t kSlotsPerSet = 16;
constexpr uint32_t kNoSlot = UINT32_MAX;

struct SlabView {
  int64_t* keys;
  uint32_t* stamps;
  float* rows;
  uint64_t num_sets;
  const float* default_row;
  uint32_t dim;
  unsigned long long* inserted;
  unsigned long long* evicted;
};

// Of the two keys that stand for "free", the one that belongs to another set.
__global__ void free_slots(SlabView slabs, int64_t one_key, int64_t other_key) {
  const uint64_t slot = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x;
  if (slot >= slabs.num_sets * kSlotsPerSet) return;
  const bool own = home_of(one_key, slabs.num_sets) == slot / kSlotsPerSet;
  slabs.keys[slot] = own ? other_key : one_key;
  slabs.stamps[slot] = 0;
}

// Adds up `wanted` over the warp and reserves that many places from `counter` on; returns this
// lane's place.
__device__ inline uint32_t reserve(bool wanted, unsigned int* counter) {
  const unsigned lanes = __ballot_sync(kAllLanes, wanted);
  if (lanes == 0) return 0;
  uint32_t first = 0;
  if (lane_number() == 0) first = atomicAdd(counter, __popc(lanes));
  return __shfl_sync(kAllLanes, first, 0) + __popc(lanes & ((1u << lane_number()) - 1));
}

// Returns the position of the first lane, of any warp, that came with this key: maybe `position`.
template <class Key>
__device__ uint32_t first_with_key(const MissLists& lists, const Key* keys, uint32_t position) {
  const Key key = keys[position];
  const unsigned long long entry = uint64_t{lists.number} << 32 | position;
  uint32_t place = static_cast<uint32_t>(home_of(key, uint64_t{lists.seen_mask} + 1));
  for (;;) {
    unsigned long long there = *static_cast<volatile unsigned long long*>(&lists.seen[place]);
    if (there >> 32 != lists.number) {
      const unsigned long long before = atomicCAS(&lists.seen[place], there, entry);
      if (before == there) return position;
      there = before;  // only this lookup writes here, so it is an entry of its own
    }
    const uint32_t other = static_cast<uint32_t>(there);
    if (keys[other] == key) return other;
    place = (place + 1) & lists.seen_mask;
  }
}

// Hands the counts over to the host, by the last of the grid's blocks to come here, and clears them.
__device__ inline void publish(const MissLists& lists) {
  __shared__ bool is_last;
  __syncthreads();
  LookupCounts* const counts = lists.counts;
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(&counts->finished_blocks, 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last || threadIdx.x >= kWarp) return;
  static_assert(LookupCounts::kHitCounters == kWarp, "a lane reads a counter");
  const unsigned hits = atomicExch(&counts->hits[lane_number()].unique_hits, 0);
  const unsigned unique_hits = __reduce_add_sync(kAllLanes, hits);
  if (lane_number() != 0) return;
  lists.counts_on_host->missing_keys = atomicExch(&counts->missing_keys, 0);
  lists.counts_on_host->duplicates = atomicExch(&counts->duplicates, 0);
  lists.counts_on_host->unique_hits = unique_hits;
  counts->finished_blocks = 0;
  __threadfence_system();
  lists.counts_on_host->number = lists.number;
}

// Finds the slots of the calling warp's keys, from number `first` to `end` - 1 at most, and lists
// what is missing.
template <class Key>
__device__ void probe_warp(const SlabView& slabs, const Key* keys, uint32_t first, uint32_t end,
                           uint32_t* slots, uint32_t stamp, const MissLists& lists) {
  constexpr int kAtOnce = 4;
  const int lane = lane_number();
  const uint32_t position = first + lane;
  const bool mine = position < end;
  const int64_t key = mine ? keys[position] : 0;
  const uint64_t set = home_of(key, slabs.num_sets);
  bool hit = false;
  uint64_t slot = 0;
  if (slabs.num_sets != 0) {
    longlong2 pairs[kWarp / kAtOnce];
#pragma unroll
    for (int begin = 0; begin < kWarp; begin += kAtOnce) {
      const uint64_t its_set = __shfl_sync(kAllLanes, set, begin + lane / 8);
      pairs[begin / kAtOnce] = *reinterpret_cast<const longlong2*>(
          slabs.keys + its_set * kSlotsPerSet + lane % 8 * 2);
    }
#pragma unroll
    for (int begin = 0; begin < kWarp; begin += kAtOnce) {
      const int64_t wanted = __shfl_sync(kAllLanes, key, begin + lane / 8);
      const unsigned even = __ballot_sync(kAllLanes, pairs[begin / kAtOnce].x == wanted);
      const unsigned odd = __ballot_sync(kAllLanes, pairs[begin / kAtOnce].y == wanted);
      if (lane >= begin && lane < begin + kAtOnce) {
        const unsigned even_hits = even >> (lane - begin) * 8 & 0xff;
        const unsigned odd_hits = odd >> (lane - begin) * 8 & 0xff;
        hit = mine && (even_hits | odd_hits) != 0;
        slot = set * kSlotsPerSet +
               (even_hits != 0 ? 2 * (__ffs(even_hits) - 1) : 2 * (__ffs(odd_hits) - 1) + 1);
      }
    }
  }
  if (mine) slots[position] = hit ? static_cast<uint32_t>(slot) : kNoSlot;
  // The first of a key's hits is the one that finds an older stamp.
  const bool first_hit = hit && slabs.stamps[slot] != stamp &&
                         atomicExch(&slabs.stamps[slot], stamp) != stamp;
  const unsigned first_hits = __ballot_sync(kAllLanes, first_hit);
  if (first_hits != 0 && lane == 0) {
    atomicAdd(&lists.counts->hits[blockIdx.x % LookupCounts::kHitCounters].unique_hits,
              __popc(first_hits));
  }
  const bool missing = mine && !hit;
  if (!__any_sync(kAllLanes, missing)) return;
  const uint32_t original = missing ? first_with_key(lists, keys, position) : position;
  const bool unique = missing && original == position;
  const uint32_t place = reserve(unique, &lists.counts->missing_keys);
  if (unique) {
    lists.host_keys[place] = key;
    lists.keys[place] = key;
    lists.positions[place] = position;
    __threadfence_system();
  }
  const bool again = missing && original != position;
  const uint32_t next = reserve(again, &lists.counts->duplicates);
  if (again) {
    lists.duplicates[next] = position;
    lists.originals[next] = original;
  }
}

// Finds the slots of keys number `begin` to `end` - 1, and lists what is missing. The last launch of
// a lookup `is_last`: then the host is told.
template <class Key>
__global__ void __launch_bounds__(kThreads)
    slab_probe(const SlabView slabs, const Key* keys, uint32_t begin, uint32_t end,
               uint32_t* slots, uint32_t stamp, const MissLists lists, bool is_last) {
  const uint64_t first = begin + warp_number() * kWarp;
  if (first < end) {
    probe_warp(slabs, keys, static_cast<uint32_t>(first), end, slots, stamp, lists);
  }
  if (is_last) publish(lists);
}

// Copies the rows in these slots, and the default where there is none.
template <class Shape, class Places>
__global__ void __launch_bounds__(kThreads)
    slab_copy(const SlabView slabs, const uint32_t* slots, uint32_t num_keys, const Places out) {
  using Vec = typename Shape::Vec;
  const uint32_t first = static_cast<uint32_t>(warp_number() * Shape::kKeys);
  if (first >= num_keys) return;
  const uint32_t count = min(num_keys - first, uint32_t{Shape::kKeys});
  const uint32_t slot = lane_number() < count ? slots[first + lane_number()] : kNoSlot;
  const float* const source =
      slot != kNoSlot ? slabs.rows + uint64_t{slot} * slabs.dim : slabs.default_row;
  copy_rows<Shape::kVecs, Shape::kKeys>(Float32Row<Vec>{reinterpret_cast<const Vec*>(source)}, out,
                                        first, slabs.dim, count);
}

// Copies the fetched rows to their positions; where no tier has the key, the default is there.
template <class Vec, class Places>
__global__ void place_rows(const float* rows, const uint8_t* found, uint32_t num_rows,
                           const uint32_t* positions, const Places out, uint32_t dim) {
  const uint64_t i = warp_number();
  if (i >= num_rows || found[i] == 0) return;
  copy_row<Vec>(rows + i * dim, out.at(positions[i], dim), dim);
}

template <class Places>
__global__ void repeat_rows(const uint32_t* duplicates, const uint32_t* originals,
                            uint32_t num_duplicates, const Places out, uint32_t dim) {
  const uint64_t i = warp_number();
  if (i >= num_duplicates) return;
  const auto* const from = out.at(originals[i], dim);
  auto* const to = out.at(duplicates[i], dim);
  for (uint32_t k = lane_number(); k < dim; k += kWarp) to[k] = from[k];
}

// Takes slots for the keys that were found, and copies their rows there. A slot is taken by
// changing its stamp from what it was, and one that is as recent as `stamp` is never taken, so no
// two keys of a launch get the same slot. Neither a lookup nor another insertion may run at the
// same time.
template <class Vec>
__global__ void insert_rows(SlabView slabs, const int64_t* keys, const uint8_t* found,
                            const float* rows, uint32_t num_keys, uint32_t stamp) {
  const uint64_t i = warp_number();
  if (i >= num_keys || slabs.num_sets == 0 || found[i] == 0) return;
  const int lane = lane_number();
  const int64_t key = keys[i];
  const uint64_t first_slot = home_of(key, slabs.num_sets) * kSlotsPerSet;
  const bool has_slot = lane < kSlotsPerSet;
  volatile int64_t* const slot_keys = slabs.keys + first_slot;
  volatile uint32_t* const stamps = slabs.stamps + first_slot;
  if (__any_sync(kAllLanes, has_slot && slot_keys[lane % kSlotsPerSet] == key)) return;
  for (;;) {
    const uint32_t seen = stamps[lane % kSlotsPerSet];
    // How many lookups ago, in numbers that begin anew after 2^32; free slots first.
    const int32_t age = static_cast<int32_t>(stamp - seen);
    const int32_t rank = !has_slot ? INT32_MIN : seen == 0 ? INT32_MAX : age;
    const int32_t oldest = __reduce_max_sync(kAllLanes, rank);
    if (oldest <= 0) return;
    const int victim = __ffs(__ballot_sync(kAllLanes, rank == oldest)) - 1;
    uint32_t before = 0;
    if (lane == victim) before = atomicCAS(&slabs.stamps[first_slot + lane], seen, stamp);
    const bool taken = __shfl_sync(kAllLanes, lane == victim && before == seen, victim);
    if (!taken) continue;
    if (lane == victim) {
      slot_keys[lane] = key;
      atomicAdd(slabs.inserted, 1ull);
      if (seen != 0) atomicAdd(slabs.evicted, 1ull);
    }
    copy_row<Vec>(rows + i * slabs.dim, slabs.rows + (first_slot + victim) * slabs.dim,
                  slabs.dim);
    return;
  }
}

// Replaces the rows of flagged keys that are cached, and takes the flag from the others. Keys are
// distinct, and neither a lookup nor an insertion may run at the same time.
template <class Vec>
__global__ void rewrite_slots(SlabView slabs, const int64_t* keys, const float* rows,
                              uint64_t num_keys, uint8_t* flags) {
  const uint64_t i = warp_number();
  if (i >= num_keys || flags[i] == 0) return;
  const int lane = lane_number();
  const int64_t key = keys[i];
  unsigned held = 0;
  uint64_t first_slot = 0;
  if (slabs.num_sets != 0) {
    first_slot = home_of(key, slabs.num_sets) * kSlotsPerSet;
    held = __ballot_sync(kAllLanes, lane < kSlotsPerSet &&
                                        slabs.keys[first_slot + lane % kSlotsPerSet] == key);
  }
  if (held != 0) {
    copy_row<Vec>(rows + i * slabs.dim,
                  slabs.rows + (first_slot + __ffs(held) - 1) * slabs.dim, slabs.dim);
  } else if (lane == 0) {
    flags[i] = 0;
  }
}

// Lists the keys in some slots; where there is none, the flag is 0.
__global__ void list_slots(SlabView slabs, uint64_t first, uint64_t count, int64_t* keys,
                           uint8_t* flags) {
  const uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x;
  if (i >= count) return;
  keys[i] = slabs.keys[first + i];
  flags[i] = slabs.stamps[first + i] != 0;
}

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_SLAB_KERNELS_CUH_
