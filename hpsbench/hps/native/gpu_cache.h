// The C interface of the GPU library: caches of a model's tables on GPUs.
//
// The library is optional. It is compiled by nvcc, links the core and no TensorFlow, and attaches
// what it makes to a model of the core (`hps_model_attach_gpu`), where the TensorFlow operation
// finds it. It loads on machines without a GPU, where `hps_gpu_count` says 0.
//
// Terms. A *resident* table answers every key on the GPU: an exact index over all keys, with all
// rows in GPU memory (static, and dynamic with a share of 1) or the last of them in host memory
// that the GPU reads (uvm). A *slab* table (dynamic) holds a share of the rows in sets of 16 slots,
// and replaces the least recently used slot of a set. `hit rate` = unique keys that hit / unique
// keys. A key that no table holds is answered with the default, and never takes a slot.
//
// Threads and errors are as in core.h.
#ifndef HPSBENCH_HPS_NATIVE_GPU_CACHE_H_
#define HPSBENCH_HPS_NATIVE_GPU_CACHE_H_

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef enum {
  HPS_GPU_DYNAMIC = 0,
  HPS_GPU_STATIC = 1,
  HPS_GPU_UVM = 2,
} hps_gpu_cache_type;

typedef struct {
  int32_t device;  // as CUDA numbers the visible ones
  hps_gpu_cache_type type;
  double share;  // of each table's rows in GPU memory, 0 to 1; static takes all
  // dynamic: at or above this hit rate, missing keys get the default now and are inserted in the
  // background; below it, the lookup fetches them. Above 1, every lookup does.
  double hit_rate_threshold;
  int32_t preload;         // dynamic: fill the cache with the first rows
  int32_t num_workspaces;  // dynamic: lookups at a time for which memory is taken at the start
  uint64_t max_keys;       // dynamic: keys per lookup for which memory is taken; more go in parts
  int32_t float8;          // static: rows of 8-bit floats (E4M3), with one scale per row
} hps_gpu_options;

typedef struct {
  const int64_t* keys;  // of the table's rows, in their order; read by hps_gpu_attach only
  float default_value;
} hps_gpu_table_spec;

typedef struct {
  uint64_t capacity;      // rows that GPU memory holds
  uint64_t device_bytes;  // GPU memory of the table, without workspaces
  uint64_t host_bytes;    // page-locked host memory of the table
  int32_t resident;       // every key is answered on the GPU; then unique keys are not counted
  // Since load: batches looked up, keys asked, and of those the ones answered from the cache.
  uint64_t lookups;
  uint64_t keys;
  uint64_t hits;
  uint64_t unique_keys;
  uint64_t unique_hits;
  uint64_t inserted;  // of a resident table: rows that updates added
  uint64_t evicted;
  // Of one lookup in 64, the time of its stages, added up: finding rows and copying those on the
  // GPU; fetching the others from the host; copying them to the output; inserting them.
  uint64_t sampled_lookups;
  uint64_t probe_ns;
  uint64_t fetch_ns;
  uint64_t merge_ns;
  uint64_t insertion_ns;
} hps_gpu_facts;

// How many GPUs this process sees; 0 without a driver that fits.
int32_t hps_gpu_count(void);

// How fast rows could come from host memory: the bandwidth of a copy of `num_bytes` from page-locked
// memory, in bytes per second.
hps_status hps_gpu_bus_bandwidth(int32_t device, uint64_t num_bytes, double* bytes_per_second,
                                 hps_error* error);

// Makes a cache of all tables of `model` on one GPU and attaches it to the model, which owns it.
// `tables` has one entry per table. Fails where GPU memory does not suffice, naming the table and
// saying how much it needs and how much was free, and where the model has a cache on that GPU; then
// no memory stays taken.
hps_status hps_gpu_attach(hps_model* model, const hps_gpu_options* options,
                          const hps_gpu_table_spec* tables, hps_error* error);

// HPS_NOT_FOUND where the model has no cache on `device`.
hps_status hps_gpu_table_facts(const hps_model* model, int32_t device, int32_t table,
                               hps_gpu_facts* facts, hps_error* error);

// Looks up keys by way of the GPU, and returns when all outputs are written. Keys and outputs of the
// parts are in host memory, and rows one after another there.
hps_status hps_gpu_lookup_host(hps_model* model, int32_t device, const hps_gpu_part* parts,
                               int32_t num_parts, int32_t key_bytes, hps_row_type row_type,
                               hps_error* error);

// Rows in memory of the GPU, for callers other than TensorFlow. It comes with one reference; a
// reference holds on to the model too.
typedef struct hps_gpu_array hps_gpu_array;

typedef struct {
  const void* keys;  // of all tables, one table after another; where, says `keys_on_gpu`
  int32_t key_bytes;
  int32_t keys_on_gpu;
  const uint64_t* num_keys;  // per table
  hps_row_type row_type;
  // Keys on the GPU must be there in the order of CUDA's default stream, or of `stream`.
  // 1: the rows are written in the order of `stream`, which may be CUDA's default stream (NULL), and
  // this returns before they are. 0: they are written when this returns.
  int32_t on_stream;
  void* stream;
} hps_gpu_flat_request;

// Writes the rows of all keys, flat, to `out` (memory of the GPU), or to a new array where that is
// NULL. Keys in host memory are copied before this returns.
hps_status hps_gpu_lookup_flat(hps_model* model, int32_t device,
                               const hps_gpu_flat_request* request, void* out,
                               hps_gpu_array** array, hps_error* error);

void* hps_gpu_array_data(const hps_gpu_array* array);
// Lets `stream` wait for the rows, and has the memory of the array wait for `stream`: it is given
// to another lookup only after what `stream` was given until the last release.
hps_status hps_gpu_array_use(hps_gpu_array* array, void* stream, hps_error* error);
// Copies values from number `first` on to host memory.
hps_status hps_gpu_array_read(const hps_gpu_array* array, uint64_t first, uint64_t num_values,
                              void* out, hps_error* error);
void hps_gpu_array_release(hps_gpu_array* array);
// A Python capsule with a DLPack tensor of the values from number `first` on, in `num_dims` lengths.
// The tensor has a reference of its own. Only for a Python thread that holds the interpreter's lock;
// NULL where there is no Python.
void* hps_gpu_array_capsule(hps_gpu_array* array, uint64_t first, const int64_t* shape,
                            int32_t num_dims);

// Replaces the rows of `keys` (distinct) where the GPU holds them, by `rows`, float32 in host memory.
// A resident table takes in the keys that are new to it. The host tiers must have the new rows
// already; then, when this returns, lookups that begin answer with the new rows. Lookups under way
// answer with the old row or the new one, never with a mixture.
hps_status hps_gpu_update(hps_model* model, int32_t device, int32_t table, const int64_t* keys,
                          const float* rows, uint64_t num_keys, hps_error* error);

// Replaces the next `share` (0 to 1) of the rows that the GPU holds by what the host has; calls go
// round the table. Rows of keys that the host does not find stay.
hps_status hps_gpu_refresh(hps_model* model, int32_t device, int32_t table, double share,
                           hps_error* error);

// Waits until what was to be inserted in the background is.
hps_status hps_gpu_settle(hps_model* model, int32_t device, hps_error* error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif  // HPSBENCH_HPS_NATIVE_GPU_CACHE_H_
