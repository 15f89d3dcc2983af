// The C interface of the parameter server's core: embedding tables on the host, asked by key.
//
// Two callers: Python, through ctypes, and the TensorFlow operation in op.cc. Nothing here knows
// TensorFlow or Python, so that the core can be tested, and run under a sanitizer, alone.
//
// Terms. A *row* is one embedding vector: `embedding_dim` float32. A *table* answers a key (any
// int64) with its row, or with its default value repeated where no row has that key. A *model* is
// a numbered list of tables. Its mapped rows never change, and asking them takes no lock.
//
// Threads. Every function may be called from any thread. A model lives until its last reference
// is released; a lookup needs a reference for as long as it runs.
//
// Errors. A function that returns hps_status writes one line of text into `error` when the status
// is not HPS_OK. No function throws, aborts or prints.
#ifndef HPSBENCH_HPS_NATIVE_CORE_H_
#define HPSBENCH_HPS_NATIVE_CORE_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

// The values are those of absl::StatusCode, so that op.cc can hand them on.
typedef enum {
  HPS_OK = 0,
  HPS_INVALID_ARGUMENT = 3,
  HPS_NOT_FOUND = 5,
  HPS_ALREADY_EXISTS = 6,
  HPS_RESOURCE_EXHAUSTED = 8,
  HPS_FAILED_PRECONDITION = 9,
  HPS_INTERNAL = 13,
} hps_status;

typedef struct {
  char text[4096];  // ends in a NUL
} hps_error;

typedef struct hps_model hps_model;

// One table of a model to be loaded.
typedef struct {
  const char* name;           // for error texts
  const char* key_path;       // file of int64[num_keys]
  const char* rows_path;      // file of float32[num_keys * embedding_dim]
  uint64_t num_keys;          // 1 to 2^32 - 1
  uint64_t embedding_dim;     // at least 1
  float default_value;        // what a missing key is answered with, repeated
  int32_t fusion_group;       // tables of one group share one index; -1: an index of its own
} hps_table_spec;

typedef enum {
  HPS_INDEX_DIRECT = 0,  // the keys are one ascending range: row = key - first key
  HPS_INDEX_HASH = 1,
} hps_index_kind;

typedef struct {
  uint64_t num_keys;
  uint64_t embedding_dim;
  uint64_t index_bytes;  // of the whole index, also where a fusion group shares it
  hps_index_kind index_kind;
  // Since load: batches looked up, keys asked, and keys answered with the default.
  uint64_t lookups;
  uint64_t keys;
  uint64_t missing_keys;
} hps_table_facts;

// Maps the files, checks their sizes, builds the indices on `num_threads` threads (0: one per
// core) and sets `*model` to a new reference. Fails where a file cannot be mapped or has another
// size than told, and with HPS_ALREADY_EXISTS where two tables of one fusion group hold the same
// key. Where a key occurs twice in a table, its last row counts.
hps_status hps_model_load(const hps_table_spec* tables, int32_t num_tables, int32_t num_threads,
                          hps_model** model, hps_error* error);

void hps_model_retain(hps_model* model);
void hps_model_release(hps_model* model);

int32_t hps_model_num_tables(const hps_model* model);
// `table` must be in [0, hps_model_num_tables(model)), here and below.
void hps_model_table_facts(const hps_model* model, int32_t table, hps_table_facts* facts);
// Its name, for error texts; valid as long as the model.
const char* hps_model_table_name(const hps_model* model, int32_t table);

// Where a lookup writes rows: those of a sample's keys one after another, and from the first of a
// sample to the first of the next there are `stride` floats.
typedef struct {
  float* rows;
  uint64_t keys_per_sample;  // all of them, where no sample follows
  uint64_t stride;
  // Not by way of the caches, where rows are aligned for it. For outputs too large to stay there,
  // and which would only push out what is read.
  int32_t streamed;
} hps_destination;

// Writes the rows of `keys` (int64[num_keys], or int32[num_keys]) to `out`, on the calling thread.
// A caller that shares a batch out among threads sets `continued` for all parts but one, so that
// the batch counts as one lookup.
void hps_lookup_int64(hps_model* model, int32_t table, const int64_t* keys, uint64_t num_keys,
                      const hps_destination* out, int32_t continued);
void hps_lookup_int32(hps_model* model, int32_t table, const int32_t* keys, uint64_t num_keys,
                      const hps_destination* out, int32_t continued);

// Looks up `num_keys[t]` keys of each table t, one table after another, from the flat `keys` into
// the flat `out`, shared out among the threads of the model (those of hps_model_load).
void hps_lookup_flat_int64(hps_model* model, const int64_t* keys, const uint64_t* num_keys,
                           float* out);
void hps_lookup_flat_int32(hps_model* model, const int32_t* keys, const uint64_t* num_keys,
                           float* out);

// For caches of a table. The rows themselves, float32[num_keys * embedding_dim], in the order of
// the key file; and the rows of some keys, shared out among the threads of the model: found[i] says
// whether there is a row with that key; where there is none, out has the default.
const float* hps_model_rows(const hps_model* model, int32_t table);
void hps_fetch(hps_model* model, int32_t table, const int64_t* keys, uint64_t num_keys, float* out,
               uint8_t* found);

// The tiers around the mapped rows. A key is asked of the first tier, then of the next, until one
// has it: the volatile tier (copies in host memory), Redis, the rows that were updated since load,
// RocksDB, and the mapped rows. Lookups and hps_fetch go through them all.
typedef enum {
  HPS_TIER_VOLATILE = 0,
  HPS_TIER_REDIS = 1,
  HPS_TIER_UPDATED = 2,
  HPS_TIER_ROCKSDB = 3,
  HPS_TIER_MAPPED = 4,
  HPS_NUM_TIERS = 5,
} hps_tier;

typedef enum {
  HPS_EVICT_RANDOM = 0,
  HPS_EVICT_LEAST_USED = 1,  // uses of before an eviction count half
  HPS_EVICT_OLDEST = 2,      // what was not asked for the longest time
} hps_overflow_policy;

typedef struct {
  uint32_t num_partitions;
  uint64_t overflow_margin;  // rows in a partition; with more, some are evicted ...
  int32_t overflow_policy;
  double overflow_resolution_target;  // ... until it has this share of the margin
  uint64_t allocation_rate;           // bytes that a partition takes at a time, at most
} hps_volatile_options;

typedef struct {
  int32_t has_volatile;
  hps_volatile_options volatile_tier;
  int32_t cache_missed;  // the volatile tier takes rows that were found below it
  int32_t redis;         // whether to ask it
  int32_t rocksdb;
  int32_t mapped_first;  // RocksDB comes after the mapped rows
} hps_tier_options;

typedef struct {
  uint64_t keys;  // asked of the tier, and had by it
  uint64_t hits;
  uint64_t ns;  // that threads spent in it
  uint64_t inserted;
  uint64_t evicted;
  uint64_t num_rows;
  uint64_t num_bytes;
} hps_tier_facts;

// Databases outside the process, for HPS_TIER_REDIS and HPS_TIER_ROCKSDB; Python provides them.
enum { HPS_FETCHED = 0, HPS_FETCHED_WANTS_MISSING = 1 };
typedef struct {
  // Writes the rows that there are, and found[i]. Negative where the tier fails: it has none then.
  // HPS_FETCHED_WANTS_MISSING: `insert` is to be called with those found in later tiers.
  int32_t (*fetch)(int32_t tier, int32_t table, const int64_t* keys, uint64_t num_keys, float* out,
                   uint8_t* found);
  void (*insert)(int32_t tier, int32_t table, const int64_t* keys, uint64_t num_keys,
                 const float* rows);
} hps_databases;
// NULL takes them away; then this returns only after running calls have returned.
void hps_model_set_databases(hps_model* model, const hps_databases* databases);

// Gives a table its tiers, once, before it is asked. Without, its mapped rows answer alone.
hps_status hps_model_set_tiers(hps_model* model, int32_t table, const hps_tier_options* options,
                               hps_error* error);
void hps_model_tier_facts(const hps_model* model, int32_t table, hps_tier tier,
                          hps_tier_facts* facts);
// Puts the rows of these keys into the volatile tier, from what lies below it.
hps_status hps_model_preload(hps_model* model, int32_t table, const int64_t* keys,
                             uint64_t num_keys, hps_error* error);
// The keys that HPS_TIER_VOLATILE or HPS_TIER_UPDATED holds now: writes up to `capacity` of them, and
// returns how many there are.
uint64_t hps_model_tier_keys(const hps_model* model, int32_t table, hps_tier tier, int64_t* keys,
                             uint64_t capacity);
// Rewrites the rows of the volatile tier from what lies below it.
hps_status hps_model_refresh(hps_model* model, int32_t table, hps_error* error);
// Sets the rows of keys, old or new, in the volatile tier and in the rows updated since load. A
// lookup that starts later gets them, and none ever gets a part of a row.
hps_status hps_model_update(hps_model* model, int32_t table, const int64_t* keys,
                            uint64_t num_keys, const float* rows, hps_error* error);
// As hps_fetch, but without the tiers before `first`, and on the calling thread.
hps_status hps_fetch_from(hps_model* model, int32_t table, hps_tier first, const int64_t* keys,
                          uint64_t num_keys, float* out, uint8_t* found, hps_error* error);

// A model's cache on one GPU. The GPU library makes it; the core only keeps it for whoever looks
// keys up there, and so knows no CUDA.
typedef struct hps_gpu_cache hps_gpu_cache;

typedef enum {
  HPS_FLOAT32 = 0,
  HPS_FLOAT16 = 1,  // rounded to the nearest, ties to even
} hps_row_type;

// Keys of one table to be looked up; `out` is in memory of the GPU. Its rows are one after another,
// or, of float32, those of each sample's keys are: then from the first of a sample to the first of
// the next there are `stride` values.
typedef struct {
  int32_t table;
  const void* keys;
  uint64_t num_keys;
  void* out;
  uint64_t keys_per_sample;  // 0: all rows are one after another
  uint64_t stride;
} hps_gpu_part;

typedef struct {
  // Keys are int64 (`key_bytes` 8) or int32 (4), all in memory of the GPU, or all `on_host`, from
  // where they are read before this returns. Rows are written in the order of the CUDA stream.
  hps_status (*lookup)(hps_gpu_cache* cache, const hps_gpu_part* parts, int32_t num_parts,
                       int32_t key_bytes, int32_t on_host, hps_row_type row_type, void* stream,
                       hps_error* error);
  void (*destroy)(hps_gpu_cache* cache);
} hps_gpu_functions;

// The model destroys the cache with itself. HPS_ALREADY_EXISTS where it has one on that GPU.
// `functions` must stay valid.
hps_status hps_model_attach_gpu(hps_model* model, int32_t device, hps_gpu_cache* cache,
                                const hps_gpu_functions* functions);
// The cache on `device` and how to ask it, or NULL. It lives as long as the model.
hps_gpu_cache* hps_model_gpu(const hps_model* model, int32_t device,
                             const hps_gpu_functions** functions);

// The registry: models by name, for the whole process. It holds a reference of its own.
void hps_registry_put(const char* model_name, hps_model* model);
// Returns a new reference, or NULL.
hps_model* hps_registry_get(const char* model_name);
void hps_registry_clear(void);
void hps_registry_remove(const char* model_name);
// Changes whenever the registry does: what was got before may be outdated then.
uint64_t hps_registry_generation(void);

// The initializer puts models into the registry when an operation runs for the first time. It
// parses a configuration file, so Python provides it. A failure is text in `error`, and may be
// tried again.
typedef int32_t (*hps_initializer)(const char* model_name, const char* ps_config_file,
                                   int64_t global_batch_size, hps_error* error);
// NULL takes it back; then this returns only after running initializers have returned.
void hps_set_initializer(hps_initializer initializer);
// Calls the initializer; HPS_FAILED_PRECONDITION where there is none.
hps_status hps_initialize(const char* model_name, const char* ps_config_file,
                          int64_t global_batch_size, hps_error* error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif  // HPSBENCH_HPS_NATIVE_CORE_H_
