#include "gpu_cache.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gpu_attached.h"

namespace {

using hps::gpu::check;
using hps::gpu::DeviceScope;
using hps::gpu::Error;
using hps::gpu::find_cache;
using hps::gpu::guarded;

constexpr uint64_t kMaxKeys = 1 << 30;
constexpr int kBusTrials = 5;

// What a part says of where its rows go. Throws where kernels cannot count so far.
hps::gpu::Output output_of(const hps_gpu_part& part, uint64_t dim, hps_row_type row_type) {
  hps::gpu::Output out = {part.out, row_type};
  if (part.num_keys <= part.keys_per_sample || part.keys_per_sample == 0) return out;
  const uint64_t skipped = part.stride - part.keys_per_sample * dim;
  if (skipped == 0) return out;
  if (part.num_keys > UINT32_MAX || skipped > UINT32_MAX || row_type != HPS_FLOAT32) {
    throw Error{HPS_INVALID_ARGUMENT,
                "rows can be written side by side with other values where they are float32, and "
                "neither they nor the values between are more than 2^32 - 1; ask for fewer keys"};
  }
  out.keys_per_sample = static_cast<uint32_t>(part.keys_per_sample);
  out.skipped = static_cast<uint32_t>(skipped);
  return out;
}

hps_status lookup(hps_gpu_cache* cache, const hps_gpu_part* parts, int32_t num_parts,
                  int32_t key_bytes, int32_t on_host, hps_row_type row_type, void* stream,
                  hps_error* error) {
  return guarded(error, [&] {
    const DeviceScope scope(cache->device);
    const auto its_stream = static_cast<cudaStream_t>(stream);
    std::vector<hps::gpu::Request> requests;
    for (const hps_gpu_part* part = parts; part != parts + num_parts; ++part) {
      hps::gpu::Table& table = *cache->tables[part->table];
      requests.push_back({&table,
                          {part->keys, key_bytes, part->num_keys},
                          output_of(*part, table.dim(), row_type)});
    }
    if (on_host == 0) {
      hps::gpu::look_up(requests, cache->resident_order, its_stream);
      return;
    }
    const hps::gpu::LanePool::Loan lane(cache->lanes);
    lane->take_keys(requests);
    hps::gpu::look_up(requests, cache->resident_order, its_stream);
  });
}

void destroy(hps_gpu_cache* cache) {
  // Waiting and freeing would fail, or spoil it, while another thread captures a graph.
  std::optional<DeviceScope> scope;
  try {
    scope.emplace(cache->device);
  } catch (const Error&) {  // CUDA has ended before this process: its memory is gone already
  }
  cache->inserter.reset();
  cudaDeviceSynchronize();  // lookups may still read the rows
  delete cache;
}

constexpr hps_gpu_functions kFunctions = {lookup, destroy};

std::unique_ptr<hps::gpu::Table> make_table(const hps::gpu::HostTable& host,
                                            const hps_gpu_options& options,
                                            hps_gpu_cache& cache) {
  const double share = std::min(1.0, std::max(0.0, options.share));
  switch (options.type) {
    case HPS_GPU_STATIC:
      return make_resident_table(host, {host.num_keys, true, options.float8 != 0},
                                 cache.resident_order, cache.device);
    case HPS_GPU_UVM: {
      const double on_gpu = share * static_cast<double>(host.num_keys);
      return make_resident_table(host, {static_cast<uint64_t>(on_gpu), false, false},
                                 cache.resident_order, cache.device);
    }
    case HPS_GPU_DYNAMIC:
      break;
  }
  if (share >= 1) {
    return make_resident_table(host, {host.num_keys, false, false}, cache.resident_order,
                               cache.device);
  }
  return make_slab_table(host, {share, options.hit_rate_threshold, options.preload != 0},
                         cache.pool, *cache.inserter);
}

// Calls `run`, and has its errors say what they are about.
template <class Run>
auto naming(const std::string& what, const Run& run) {
  try {
    return run();
  } catch (const Error& e) {
    throw Error{e.status, what + ": " + e.text};
  }
}

std::string table_name(const hps_model* model, int32_t table) {
  return std::string("table ") + hps_model_table_name(model, table);
}

std::unique_ptr<hps_gpu_cache> make_cache(hps_model* model, const hps_gpu_options& options,
                                          const hps_gpu_table_spec* specs) {
  std::vector<hps::gpu::HostTable> hosts;
  uint64_t largest_dim = 1;
  for (int32_t t = 0; t < hps_model_num_tables(model); ++t) {
    hps_table_facts facts;
    hps_model_table_facts(model, t, &facts);
    hosts.push_back({model, t, facts.num_keys, facts.embedding_dim, hps_model_rows(model, t),
                     specs[t].keys, specs[t].default_value});
    largest_dim = std::max(largest_dim, facts.embedding_dim);
  }
  const bool has_slabs = options.type == HPS_GPU_DYNAMIC && options.share < 1;
  const uint64_t max_keys = std::max<uint64_t>(1, std::min(options.max_keys, kMaxKeys));
  auto cache = naming("lookups of " + std::to_string(max_keys) + " keys", [&] {
    return std::make_unique<hps_gpu_cache>(
        options.device, has_slabs ? options.num_workspaces : 0, max_keys, largest_dim);
  });
  for (const auto& host : hosts) {
    naming(table_name(model, host.number),
           [&] { cache->tables.push_back(make_table(host, options, *cache)); });
  }
  return cache;
}

// How much of the current GPU's memory was free, where it can tell: with none left it cannot.
std::string free_memory(int32_t device) {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  if (cudaMemGetInfo(&free_bytes, &total_bytes) != cudaSuccess) {
    cudaGetLastError();
    return "GPU " + std::to_string(device) + " had too little free to be used at all";
  }
  return "GPU " + std::to_string(device) + " had " + std::to_string(free_bytes) + " of " +
         std::to_string(total_bytes) + " bytes free before";
}

}  // namespace

int32_t hps_gpu_count(void) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

hps_status hps_gpu_bus_bandwidth(int32_t device, uint64_t num_bytes, double* bytes_per_second,
                                 hps_error* error) {
  return guarded(error, [&] {
    const DeviceScope scope(device);
    const hps::gpu::HostBuffer<char> from(num_bytes);
    const hps::gpu::DeviceBuffer<char> to(num_bytes);
    const hps::gpu::Stream stream;
    double best = 0;
    for (int i = 0; i < kBusTrials; ++i) {
      hps::gpu::Span span(stream.get());
      check(cudaMemcpyAsync(to.get(), from.get(), num_bytes, cudaMemcpyHostToDevice, stream.get()),
            "copy to the GPU");
      span.end(stream.get());
      stream.wait();
      best = std::max(best, 1e9 * static_cast<double>(num_bytes) / span.ns());
    }
    *bytes_per_second = best;
  });
}

hps_status hps_gpu_attach(hps_model* model, const hps_gpu_options* options,
                          const hps_gpu_table_spec* tables, hps_error* error) {
  return guarded(error, [&] {
    std::string free_before = "GPU " + std::to_string(options->device) + " could not be used";
    try {
      const DeviceScope scope(options->device);
      free_before = free_memory(options->device);
      auto cache = make_cache(model, *options, tables);
      if (hps_model_attach_gpu(model, options->device, cache.get(), &kFunctions) != HPS_OK) {
        throw Error{HPS_ALREADY_EXISTS,
                    "the model has a cache on GPU " + std::to_string(options->device)};
      }
      cache.release();
    } catch (const Error& e) {
      if (e.status != HPS_RESOURCE_EXHAUSTED) throw;
      throw Error{e.status, e.text + "; " + free_before};
    }
  });
}

hps_status hps_gpu_table_facts(const hps_model* model, int32_t device, int32_t table,
                               hps_gpu_facts* facts, hps_error* error) {
  return guarded(error, [&] {
    const DeviceScope scope(device);
    *facts = find_cache(model, device)->tables[table]->facts();
  });
}

hps_status hps_gpu_settle(hps_model* model, int32_t device, hps_error* error) {
  return guarded(error, [&] { find_cache(model, device)->inserter->settle(); });
}

hps_status hps_gpu_update(hps_model* model, int32_t device, int32_t table, const int64_t* keys,
                          const float* rows, uint64_t num_keys, hps_error* error) {
  return guarded(error, [&] {
    hps_gpu_cache* const cache = find_cache(model, device);
    const DeviceScope scope(device);
    naming(table_name(model, table),
           [&] { cache->rewriter.update(*cache->tables[table], keys, rows, num_keys); });
  });
}

hps_status hps_gpu_refresh(hps_model* model, int32_t device, int32_t table, double share,
                           hps_error* error) {
  return guarded(error, [&] {
    hps_gpu_cache* const cache = find_cache(model, device);
    const DeviceScope scope(device);
    cache->rewriter.refresh(*cache->tables[table], share);
  });
}
