// A model's cache on one GPU as the files of the C interface see it, and how these report errors.
#ifndef HPSBENCH_HPS_NATIVE_GPU_ATTACHED_H_
#define HPSBENCH_HPS_NATIVE_GPU_ATTACHED_H_

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "gpu_arrays.h"
#include "gpu_inserter.h"
#include "gpu_lanes.h"
#include "gpu_memory.h"
#include "gpu_order.h"
#include "gpu_rewriter.h"
#include "gpu_table.h"
#include "gpu_workspace.h"

struct hps_gpu_cache {
  hps_gpu_cache(int gpu, int32_t num_workspaces, uint64_t max_keys, uint64_t largest_dim)
      : device(gpu),
        pool(num_workspaces, max_keys, largest_dim),
        inserter(std::make_unique<hps::gpu::Inserter>(gpu, largest_dim)),
        rewriter(largest_dim) {}
  ~hps_gpu_cache() { inserter.reset(); }  // its jobs use the tables

  const int device;
  hps::gpu::WorkspacePool pool;
  std::unique_ptr<hps::gpu::Inserter> inserter;
  hps::gpu::Rewriter rewriter;
  hps::gpu::Order resident_order;
  std::vector<std::unique_ptr<hps::gpu::Table>> tables;
  hps::gpu::BlockPool blocks;
  hps::ThreadPool copiers{std::min(kMostCopiers, std::max(1u, std::thread::hardware_concurrency()))};
  hps::gpu::LanePool lanes{copiers};

 private:
  // Threads that copy keys, the caller's among them: as many as memory needs to be busy.
  static constexpr unsigned kMostCopiers = 8;
};

namespace hps::gpu {

inline hps_status fail(hps_error* error, hps_status status, const std::string& text) {
  const size_t length = std::min(text.size(), sizeof(error->text) - 1);
  std::memcpy(error->text, text.data(), length);
  error->text[length] = '\0';
  return status;
}

// Calls `run`, and turns what it throws into a status and a text.
template <class Run>
hps_status guarded(hps_error* error, const Run& run) {
  try {
    run();
    return HPS_OK;
  } catch (const Error& e) {
    return fail(error, e.status, e.text);
  } catch (const std::bad_alloc&) {
    return fail(error, HPS_RESOURCE_EXHAUSTED, "no host memory left");
  } catch (const std::exception& e) {
    return fail(error, HPS_INTERNAL, e.what());
  }
}

inline hps_gpu_cache* find_cache(const hps_model* model, int32_t device) {
  const hps_gpu_functions* functions;
  hps_gpu_cache* const cache = hps_model_gpu(model, device, &functions);
  if (cache == nullptr) {
    throw Error{HPS_NOT_FOUND, "the model has no cache on GPU " + std::to_string(device)};
  }
  return cache;
}

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_ATTACHED_H_
