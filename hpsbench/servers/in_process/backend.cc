// What Triton calls: one Python model per instance, asked inside the server's own process.
//
// Everything a model does is in Python (`host.py`); here its inputs are gathered, its answer is
// handed to Triton, and the stages of a request are timed as Triton's own backends do: compute
// input is the gathering, compute infer the model, compute output the copy of its answer.
#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "inputs.h"
#include "outputs.h"
#include "python.h"
#include "triton.h"

namespace hpsbench {
namespace {

constexpr uint32_t kApiMajor = 1;
constexpr char kLibrary[] = "/libpython.so";

TRITONSERVER_Error* failure(const std::string& text) {
  return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, text.c_str());
}

uint64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

// A model of Python's and the memory for its requests, which come one at a time.
struct Instance {
  explicit Instance(TRITONBACKEND_MemoryManager* manager) : memory(manager) {}
  ~Instance() {
    const Gil gil;
    if (model) call_host("unload", one(std::move(model)));
  }

  static std::vector<Object> one(Object argument) {
    std::vector<Object> arguments;
    arguments.push_back(std::move(argument));
    return arguments;
  }

  InputMemory memory;
  Object model;
};

struct Times {
  uint64_t start;
  uint64_t compute_start;
  uint64_t compute_end;
};

// Puts what `host.load` wants to know in JSON into `arguments`: the model's configuration in Triton's
// own words, and where its files are.
TRITONSERVER_Error* describe(TRITONBACKEND_Model* model, std::vector<Object>* arguments) {
  const char* name = nullptr;
  const char* folder = nullptr;
  uint64_t version = 0;
  TRITONBACKEND_ArtifactType type = 0;
  TRITONSERVER_Message* message = nullptr;
  if (auto* error = TRITONBACKEND_ModelName(model, &name)) return error;
  if (auto* error = TRITONBACKEND_ModelVersion(model, &version)) return error;
  if (auto* error = TRITONBACKEND_ModelRepository(model, &type, &folder)) return error;
  if (auto* error = TRITONBACKEND_ModelConfig(model, 1, &message)) return error;
  const char* config = nullptr;
  size_t config_size = 0;
  auto* error = TRITONSERVER_MessageSerializeToJson(message, &config, &config_size);
  if (error == nullptr) {
    arguments->push_back(text(name));
    arguments->push_back(text(std::to_string(version)));
    arguments->push_back(text(folder));
    arguments->push_back(text(std::string(config, config_size)));
  }
  auto* deleted = TRITONSERVER_MessageDelete(message);
  if (deleted != nullptr) TRITONSERVER_ErrorDelete(deleted);
  return error;
}

TRITONSERVER_Error* load(TRITONBACKEND_Model* model, Instance* instance) {
  const Gil gil;
  std::vector<Object> arguments;
  if (auto* error = describe(model, &arguments)) return error;
  const Object loaded = call_host("load", std::move(arguments));
  if (!loaded) return failure("the model could not be loaded; see what Python printed above");
  const std::string problem = as_text(item(loaded.get(), 1));
  if (!problem.empty()) return failure(problem);
  PyObject* const made = item(loaded.get(), 0);
  py.Py_IncRef(made);
  instance->model = Object(made);
  return nullptr;
}

Object described(const std::vector<Input>& inputs) {
  std::vector<Object> all;
  for (const Input& input : inputs) {
    std::vector<Object> shape;
    for (const int64_t length : input.shape) shape.push_back(integer(length));
    std::vector<Object> one;
    one.push_back(text(input.name));
    one.push_back(integer(input.datatype));
    one.push_back(tuple(std::move(shape)));
    one.push_back(integer(reinterpret_cast<int64_t>(input.address)));
    one.push_back(integer(static_cast<int64_t>(input.byte_size)));
    all.push_back(tuple(std::move(one)));
  }
  return tuple(std::move(all));
}

// Empty where the client asks for whatever there is.
TRITONSERVER_Error* wanted_outputs(TRITONBACKEND_Request* request, Object* names) {
  uint32_t count = 0;
  if (auto* error = TRITONBACKEND_RequestOutputCount(request, &count)) return error;
  std::vector<Object> wanted;
  for (uint32_t i = 0; i < count; ++i) {
    const char* name = nullptr;
    if (auto* error = TRITONBACKEND_RequestOutputName(request, i, &name)) return error;
    wanted.push_back(text(name));
  }
  *names = tuple(std::move(wanted));
  return nullptr;
}

// `answer` is (error text, outputs); the interpreter's lock is held.
TRITONSERVER_Error* fill(TRITONBACKEND_Response* response, const Object& answer) {
  if (!answer) return failure("the model failed; see what Python printed in the server's log");
  if (const std::string problem = as_text(item(answer.get(), 0)); !problem.empty()) {
    return failure(problem);
  }
  PyObject* const outputs = item(answer.get(), 1);
  for (intptr_t i = 0; i < py.PyTuple_Size(outputs); ++i) {
    if (auto* error = add_output(response, item(outputs, i))) return error;
  }
  return nullptr;
}

// Answers `response`, and notes when the model was called and was done.
TRITONSERVER_Error* answer(Instance* instance, TRITONBACKEND_Request* request,
                           TRITONBACKEND_Response* response, Times* times) {
  std::vector<Input> inputs;
  if (auto* error = instance->memory.gather(request, &inputs)) return error;
  const Gil gil;
  Object wanted;
  if (auto* error = wanted_outputs(request, &wanted)) return error;
  std::vector<Object> arguments;
  arguments.push_back(instance->model.share());
  arguments.push_back(described(inputs));
  arguments.push_back(std::move(wanted));
  arguments.push_back(integer(reinterpret_cast<int64_t>(response)));
  arguments.push_back(integer(reinterpret_cast<int64_t>(&take_output)));
  times->compute_start = now_ns();
  const Object given = call_host("execute", std::move(arguments));
  times->compute_end = now_ns();
  return fill(response, given);
}

void drop(TRITONSERVER_Error* error) {
  if (error != nullptr) TRITONSERVER_ErrorDelete(error);
}

void serve(TRITONBACKEND_ModelInstance* triton_instance, Instance* instance,
           TRITONBACKEND_Request* request) {
  Times times{};
  times.start = times.compute_start = times.compute_end = now_ns();
  TRITONBACKEND_Response* response = nullptr;
  TRITONSERVER_Error* error = TRITONBACKEND_ResponseNew(&response, request);
  bool success = false;
  if (error == nullptr) {
    error = answer(instance, request, response, &times);
    success = error == nullptr;
    drop(TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, error));
  }
  drop(error);
  const uint64_t end = now_ns();
  drop(TRITONBACKEND_ModelInstanceReportStatistics(triton_instance, request, success, times.start,
                                                   times.compute_start, times.compute_end, end));
  drop(TRITONBACKEND_ModelInstanceReportBatchStatistics(
      triton_instance, 1, times.start, times.compute_start, times.compute_end, end));
  drop(TRITONBACKEND_RequestRelease(request, TRITONSERVER_REQUEST_RELEASE_ALL));
}

}  // namespace
}  // namespace hpsbench

#define HPSBENCH_EXPORTED extern "C" __attribute__((visibility("default")))

HPSBENCH_EXPORTED TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend* backend) {
  uint32_t major = 0;
  uint32_t minor = 0;
  if (auto* error = TRITONBACKEND_ApiVersion(&major, &minor)) return error;
  if (major != hpsbench::kApiMajor) {
    return hpsbench::failure("this backend is for version 1 of Triton's backend interface, not " +
                             std::to_string(major));
  }
  TRITONBACKEND_ArtifactType type = 0;
  const char* folder = nullptr;
  if (auto* error = TRITONBACKEND_BackendArtifacts(backend, &type, &folder)) return error;
  const std::string problem = hpsbench::start_python(std::string(folder) + hpsbench::kLibrary);
  return problem.empty() ? nullptr : hpsbench::failure(problem);
}

HPSBENCH_EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(
    TRITONBACKEND_ModelInstance* instance) {
  TRITONBACKEND_Model* model = nullptr;
  TRITONBACKEND_Backend* backend = nullptr;
  TRITONBACKEND_MemoryManager* manager = nullptr;
  if (auto* error = TRITONBACKEND_ModelInstanceModel(instance, &model)) return error;
  if (auto* error = TRITONBACKEND_ModelBackend(model, &backend)) return error;
  if (auto* error = TRITONBACKEND_BackendMemoryManager(backend, &manager)) return error;
  auto state = std::make_unique<hpsbench::Instance>(manager);
  if (auto* error = hpsbench::load(model, state.get())) return error;
  return TRITONBACKEND_ModelInstanceSetState(instance, state.release());
}

HPSBENCH_EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(
    TRITONBACKEND_ModelInstance* instance) {
  void* state = nullptr;
  if (auto* error = TRITONBACKEND_ModelInstanceState(instance, &state)) return error;
  delete static_cast<hpsbench::Instance*>(state);
  return nullptr;
}

HPSBENCH_EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests, uint32_t count) {
  void* state = nullptr;
  if (auto* error = TRITONBACKEND_ModelInstanceState(instance, &state)) return error;
  for (uint32_t i = 0; i < count; ++i) {
    hpsbench::serve(instance, static_cast<hpsbench::Instance*>(state), requests[i]);
  }
  return nullptr;
}
