// Lookups for callers that are not TensorFlow, and the arrays that they get.
#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "gpu_attached.h"

struct hps_gpu_array {
  hps_gpu_array(hps_model* its_model, hps_gpu_cache* its_cache, hps_row_type its_type)
      : model(its_model), cache(its_cache), row_type(its_type) {
    hps_model_retain(model);
  }

  hps_model* const model;
  hps_gpu_cache* const cache;
  const hps_row_type row_type;
  hps::gpu::Block block;
  hps::gpu::Event ready;
  std::atomic<int> references{1};
  std::mutex mutex;
  std::vector<cudaStream_t> users;
};

namespace {

using hps::gpu::check;
using hps::gpu::DeviceScope;
using hps::gpu::Error;
using hps::gpu::find_cache;
using hps::gpu::guarded;

// DLPack's structures, version 0, which all libraries take.
struct DLTensor {
  void* data;
  struct {
    int32_t type;
    int32_t number;
  } device;
  int32_t num_dims;
  struct {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
  } dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};

constexpr int32_t kDLCuda = 2;
constexpr uint8_t kDLFloat = 2;
constexpr char kCapsule[] = "dltensor";

// A tensor on loan, with all that belongs to it.
struct Loan {
  DLManagedTensor managed;
  std::vector<int64_t> shape;
  hps_gpu_array* array;
};

void end_loan(DLManagedTensor* managed) {
  auto* const loan = static_cast<Loan*>(managed->context);
  hps_gpu_array_release(loan->array);
  delete loan;
}

// A function of the Python that this process is: the library is not linked with any.
template <class Function>
Function* python_function(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

// What Python calls with a capsule whose time is over. One that was consumed has another name.
void drop_capsule(void* capsule) {
  static const auto is_valid = python_function<int(void*, const char*)>("PyCapsule_IsValid");
  static const auto pointer_of =
      python_function<void*(void*, const char*)>("PyCapsule_GetPointer");
  if (is_valid(capsule, kCapsule) == 0) return;
  end_loan(static_cast<DLManagedTensor*>(pointer_of(capsule, kCapsule)));
}

uint64_t embedding_dim(const hps_model* model, int32_t table) {
  hps_table_facts facts;
  hps_model_table_facts(model, table, &facts);
  return facts.embedding_dim;
}

// The requests of a flat lookup, and with `out` NULL how many values it has.
uint64_t split(const hps_model* model, const hps_gpu_cache& cache,
               const hps_gpu_flat_request& flat, const void* keys, void* out,
               std::vector<hps::gpu::Request>* requests) {
  hps::gpu::Keys all = {keys, flat.key_bytes, 0};
  const hps::gpu::Output rows = {out, flat.row_type};
  uint64_t first_key = 0;
  uint64_t num_values = 0;
  for (int32_t t = 0; t < hps_model_num_tables(model); ++t) {
    const uint64_t count = flat.num_keys[t];
    if (requests != nullptr && count != 0) {
      requests->push_back(
          {cache.tables[t].get(), all.part(first_key, count), rows.from(num_values, 1)});
    }
    first_key += count;
    num_values += count * embedding_dim(model, t);
  }
  return num_values;
}

}  // namespace

hps_status hps_gpu_lookup_flat(hps_model* model, int32_t device,
                               const hps_gpu_flat_request* request, void* out,
                               hps_gpu_array** array, hps_error* error) {
  return guarded(error, [&] {
    hps_gpu_cache* const cache = find_cache(model, device);
    const DeviceScope scope(device);
    const hps::gpu::LanePool::Loan lane(cache->lanes);
    const bool waits = request->on_stream == 0;
    const cudaStream_t stream =
        waits ? lane->stream.get() : static_cast<cudaStream_t>(request->stream);
    const void* const keys = request->keys;
    if (request->keys_on_gpu != 0 && waits) lane->after_default_stream();
    std::unique_ptr<hps_gpu_array, decltype(&hps_gpu_array_release)> made(nullptr,
                                                                          hps_gpu_array_release);
    if (out == nullptr) {
      made.reset(new hps_gpu_array(model, cache, request->row_type));
      const uint64_t num_values = split(model, *cache, *request, keys, nullptr, nullptr);
      const hps::gpu::Output as_asked = {nullptr, request->row_type};
      made->block = cache->blocks.take(num_values * as_asked.value_bytes(), stream);
      made->users.push_back(stream);
      out = made->block.memory.get();
    }
    std::vector<hps::gpu::Request> requests;
    split(model, *cache, *request, keys, out, &requests);
    if (request->keys_on_gpu == 0) lane->take_keys(requests);
    hps::gpu::look_up(requests, cache->resident_order, stream);
    if (made != nullptr) made->ready.record(stream);
    if (waits) {
      check(cudaStreamSynchronize(stream), "look keys up");
      if (made != nullptr) made->users.clear();
    }
    *array = made.release();
  });
}

void* hps_gpu_array_data(const hps_gpu_array* array) { return array->block.memory.get(); }

hps_status hps_gpu_array_use(hps_gpu_array* array, void* stream, hps_error* error) {
  return guarded(error, [&] {
    const DeviceScope scope(array->cache->device);
    array->ready.hold(static_cast<cudaStream_t>(stream));
    const std::lock_guard<std::mutex> lock(array->mutex);
    array->users.push_back(static_cast<cudaStream_t>(stream));
  });
}

hps_status hps_gpu_array_read(const hps_gpu_array* array, uint64_t first, uint64_t num_values,
                              void* out, hps_error* error) {
  return guarded(error, [&] {
    const DeviceScope scope(array->cache->device);
    const hps::gpu::Output rows = {array->block.memory.get(), array->row_type};
    array->ready.wait();
    check(cudaMemcpy(out, rows.from(first, 1).data, num_values * rows.value_bytes(),
                     cudaMemcpyDeviceToHost),
          "copy rows from the GPU");
  });
}

void hps_gpu_array_release(hps_gpu_array* array) {
  if (array->references.fetch_sub(1) != 1) return;
  hps_model* const model = array->model;
  try {
    const DeviceScope scope(array->cache->device);
    array->block.uses.clear();
    for (const cudaStream_t user : array->users) {
      array->block.uses.push_back(std::make_unique<hps::gpu::Event>());
      array->block.uses.back()->record(user);
    }
    array->cache->blocks.give_back(std::move(array->block));
  } catch (...) {  // CUDA is gone, with the process: so is the memory
  }
  delete array;
  hps_model_release(model);
}

void* hps_gpu_array_capsule(hps_gpu_array* array, uint64_t first, const int64_t* shape,
                            int32_t num_dims) {
  static const auto new_capsule = python_function<void*(void*, const char*, void (*)(void*))>(
      "PyCapsule_New");
  if (new_capsule == nullptr) return nullptr;
  const hps::gpu::Output rows = {array->block.memory.get(), array->row_type};
  auto* const loan = new Loan{{}, std::vector<int64_t>(shape, shape + num_dims), array};
  array->references.fetch_add(1);
  DLTensor& tensor = loan->managed.tensor;
  tensor.data = rows.from(first, 1).data;
  tensor.device = {kDLCuda, array->cache->device};
  tensor.num_dims = num_dims;
  tensor.dtype = {kDLFloat, static_cast<uint8_t>(8 * rows.value_bytes()), 1};
  tensor.shape = loan->shape.data();
  loan->managed.context = loan;
  loan->managed.deleter = end_loan;
  void* const capsule = new_capsule(&loan->managed, kCapsule, drop_capsule);
  if (capsule == nullptr) end_loan(&loan->managed);
  return capsule;
}

hps_status hps_gpu_lookup_host(hps_model* model, int32_t device, const hps_gpu_part* parts,
                               int32_t num_parts, int32_t key_bytes, hps_row_type row_type,
                               hps_error* error) {
  return guarded(error, [&] {
    hps_gpu_cache* const cache = find_cache(model, device);
    const DeviceScope scope(device);
    const hps::gpu::Stream stream;
    std::vector<hps::gpu::DeviceBuffer<char>> rows;
    std::vector<hps::gpu::Request> requests;
    for (const hps_gpu_part* part = parts; part != parts + num_parts; ++part) {
      const hps::gpu::Output out = {nullptr, row_type};
      rows.emplace_back(part->num_keys * embedding_dim(model, part->table) * out.value_bytes());
      requests.push_back({cache->tables[part->table].get(),
                          {part->keys, key_bytes, part->num_keys},
                          {rows.back().get(), row_type}});
    }
    const hps::gpu::LanePool::Loan lane(cache->lanes);
    lane->take_keys(requests);
    hps::gpu::look_up(requests, cache->resident_order, stream.get());
    for (int32_t i = 0; i < num_parts; ++i) {
      check(cudaMemcpyAsync(parts[i].out, rows[i].get(), rows[i].num_bytes(),
                            cudaMemcpyDeviceToHost, stream.get()),
            "copy rows from the GPU");
    }
    stream.wait();
  });
}
