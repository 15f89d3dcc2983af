#include "core.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <string>

#include "table.h"

struct hps_model {
  struct Gpu {
    hps_gpu_cache* cache;
    const hps_gpu_functions* functions;
  };

  hps_model(const hps_table_spec* tables, int32_t num_tables, int32_t num_threads)
      : model(tables, num_tables, num_threads) {}
  ~hps_model() {
    for (const auto& [device, gpu] : gpus) gpu.functions->destroy(gpu.cache);
  }

  hps::Model model;
  mutable std::shared_mutex gpus_mutex;
  std::map<int32_t, Gpu> gpus;  // by device
};

namespace {

hps_status fail(hps_error* error, hps_status status, const std::string& text) {
  const size_t length = std::min(text.size(), sizeof(error->text) - 1);
  std::memcpy(error->text, text.data(), length);
  error->text[length] = '\0';
  return status;
}

struct Registry {
  std::mutex mutex;
  std::map<std::string, hps_model*> models;
  std::atomic<uint64_t> generation{0};
};

// Never destroyed: operations may still run while the process exits.
Registry& registry() {
  static Registry* const instance = new Registry;
  return *instance;
}

struct Initializer {
  std::shared_mutex mutex;
  hps_initializer function = nullptr;
};

Initializer& initializer() {
  static Initializer* const instance = new Initializer;
  return *instance;
}

template <class Do>
hps_status guarded(hps_error* error, const Do& action) {
  try {
    action();
    return HPS_OK;
  } catch (const hps::Error& e) {
    return fail(error, e.status, e.text);
  } catch (const std::bad_alloc&) {
    return fail(error, HPS_RESOURCE_EXHAUSTED, "no memory left");
  } catch (const std::exception& e) {
    return fail(error, HPS_FAILED_PRECONDITION, e.what());
  }
}

}  // namespace

hps_status hps_model_load(const hps_table_spec* tables, int32_t num_tables, int32_t num_threads,
                          hps_model** model, hps_error* error) {
  if (num_tables < 1) return fail(error, HPS_INVALID_ARGUMENT, "a model must have a table");
  return guarded(error, [&] { *model = new hps_model(tables, num_tables, num_threads); });
}

void hps_model_retain(hps_model* model) { model->model.references.fetch_add(1); }

void hps_model_release(hps_model* model) {
  if (model->model.references.fetch_sub(1) == 1) delete model;
}

int32_t hps_model_num_tables(const hps_model* model) { return model->model.num_tables(); }

void hps_model_table_facts(const hps_model* model, int32_t table, hps_table_facts* facts) {
  *facts = model->model.table(table).facts();
}

const char* hps_model_table_name(const hps_model* model, int32_t table) {
  return model->model.table(table).name().c_str();
}

void hps_lookup_int64(hps_model* model, int32_t table, const int64_t* keys, uint64_t num_keys,
                      const hps_destination* out, int32_t continued) {
  model->model.table(table).lookup(keys, num_keys, *out, continued != 0);
}

void hps_lookup_int32(hps_model* model, int32_t table, const int32_t* keys, uint64_t num_keys,
                      const hps_destination* out, int32_t continued) {
  model->model.table(table).lookup(keys, num_keys, *out, continued != 0);
}

void hps_lookup_flat_int64(hps_model* model, const int64_t* keys, const uint64_t* num_keys,
                           float* out) {
  model->model.lookup_flat(keys, num_keys, out);
}

void hps_lookup_flat_int32(hps_model* model, const int32_t* keys, const uint64_t* num_keys,
                           float* out) {
  model->model.lookup_flat(keys, num_keys, out);
}

const float* hps_model_rows(const hps_model* model, int32_t table) {
  return static_cast<const float*>(model->model.table(table).rows().data());
}

void hps_fetch(hps_model* model, int32_t table, const int64_t* keys, uint64_t num_keys, float* out,
               uint8_t* found) {
  model->model.fetch(table, keys, num_keys, out, found);
}

void hps_model_set_databases(hps_model* model, const hps_databases* databases) {
  model->model.databases.set(databases);
}

hps_status hps_model_set_tiers(hps_model* model, int32_t table, const hps_tier_options* options,
                               hps_error* error) {
  return guarded(error, [&] { model->model.tiers(table, options); });
}

void hps_model_tier_facts(const hps_model* model, int32_t table, hps_tier tier,
                          hps_tier_facts* facts) {
  *facts = model->model.table(table).tier_facts(tier);
}

hps_status hps_model_preload(hps_model* model, int32_t table, const int64_t* keys,
                             uint64_t num_keys, hps_error* error) {
  return guarded(error, [&] { model->model.tiers(table, nullptr).preload(keys, num_keys); });
}

uint64_t hps_model_tier_keys(const hps_model* model, int32_t table, hps_tier tier, int64_t* keys,
                             uint64_t capacity) {
  const hps::TableTiers* const tiers = model->model.table(table).tiers();
  return tiers == nullptr ? 0 : tiers->keys(tier, keys, capacity);
}

hps_status hps_model_refresh(hps_model* model, int32_t table, hps_error* error) {
  return guarded(error, [&] {
    if (hps::TableTiers* const tiers = model->model.table(table).tiers()) tiers->refresh();
  });
}

hps_status hps_model_update(hps_model* model, int32_t table, const int64_t* keys,
                            uint64_t num_keys, const float* rows, hps_error* error) {
  return guarded(error, [&] { model->model.tiers(table, nullptr).update(keys, num_keys, rows); });
}

hps_status hps_fetch_from(hps_model* model, int32_t table, hps_tier first, const int64_t* keys,
                          uint64_t num_keys, float* out, uint8_t* found, hps_error* error) {
  return guarded(error, [&] {
    model->model.tiers(table, nullptr).fetch_from(first, keys, num_keys, out, found);
  });
}

hps_status hps_model_attach_gpu(hps_model* model, int32_t device, hps_gpu_cache* cache,
                                const hps_gpu_functions* functions) {
  const std::unique_lock<std::shared_mutex> lock(model->gpus_mutex);
  const bool added = model->gpus.insert({device, {cache, functions}}).second;
  return added ? HPS_OK : HPS_ALREADY_EXISTS;
}

hps_gpu_cache* hps_model_gpu(const hps_model* model, int32_t device,
                             const hps_gpu_functions** functions) {
  const std::shared_lock<std::shared_mutex> lock(model->gpus_mutex);
  const auto found = model->gpus.find(device);
  if (found == model->gpus.end()) return nullptr;
  *functions = found->second.functions;
  return found->second.cache;
}

void hps_registry_put(const char* model_name, hps_model* model) {
  hps_model_retain(model);
  hps_model* replaced = nullptr;
  {
    const std::lock_guard<std::mutex> lock(registry().mutex);
    std::swap(replaced, registry().models[model_name]);
    registry().models[model_name] = model;
    registry().generation.fetch_add(1);
  }
  if (replaced != nullptr) hps_model_release(replaced);
}

hps_model* hps_registry_get(const char* model_name) {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  const auto found = registry().models.find(model_name);
  if (found == registry().models.end()) return nullptr;
  hps_model_retain(found->second);
  return found->second;
}

void hps_registry_remove(const char* model_name) {
  hps_model* removed = nullptr;
  {
    const std::lock_guard<std::mutex> lock(registry().mutex);
    const auto found = registry().models.find(model_name);
    if (found == registry().models.end()) return;
    removed = found->second;
    registry().models.erase(found);
    registry().generation.fetch_add(1);
  }
  hps_model_release(removed);
}

void hps_registry_clear(void) {
  std::map<std::string, hps_model*> models;
  {
    const std::lock_guard<std::mutex> lock(registry().mutex);
    models.swap(registry().models);
    registry().generation.fetch_add(1);
  }
  for (const auto& [name, model] : models) hps_model_release(model);
}

uint64_t hps_registry_generation(void) { return registry().generation.load(); }

void hps_set_initializer(hps_initializer function) {
  const std::unique_lock<std::shared_mutex> lock(initializer().mutex);
  initializer().function = function;
}

hps_status hps_initialize(const char* model_name, const char* ps_config_file,
                          int64_t global_batch_size, hps_error* error) {
  const std::shared_lock<std::shared_mutex> lock(initializer().mutex);
  if (initializer().function == nullptr) {
    return fail(error, HPS_FAILED_PRECONDITION,
                "nothing can initialise it in this process: import hpsbench.hps in Python first");
  }
  error->text[0] = '\0';
  const int32_t status =
      initializer().function(model_name, ps_config_file, global_batch_size, error);
  return static_cast<hps_status>(status);
}
