#include "outputs.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

namespace hpsbench {
namespace {

struct Memory {
  void* address = nullptr;
  TRITONSERVER_MemoryType type = TRITONSERVER_MEMORY_CPU;
  int64_t id = 0;
};

// `memory` says of what kind it is to be, and then what it is.
TRITONSERVER_Error* add(TRITONBACKEND_Response* response, const char* name,
                        TRITONSERVER_DataType datatype, const int64_t* shape, uint32_t dims_count,
                        uint64_t byte_size, Memory* memory) {
  TRITONBACKEND_Output* output = nullptr;
  if (auto* error =
          TRITONBACKEND_ResponseOutput(response, &output, name, datatype, shape, dims_count)) {
    return error;
  }
  return TRITONBACKEND_OutputBuffer(output, &memory->address, byte_size, &memory->type,
                                    &memory->id);
}

}  // namespace

TRITONSERVER_Error* add_output(TRITONBACKEND_Response* response, PyObject* output) {
  const std::string name = as_text(item(output, 0));
  const auto datatype = static_cast<TRITONSERVER_DataType>(py.PyLong_AsLongLong(item(output, 1)));
  const std::vector<int64_t> shape = as_integers(item(output, 2));
  const void* const from = reinterpret_cast<const void*>(py.PyLong_AsLongLong(item(output, 3)));
  const uint64_t byte_size = py.PyLong_AsLongLong(item(output, 4));
  Memory memory;
  if (auto* error = add(response, name.c_str(), datatype, shape.data(),
                        static_cast<uint32_t>(shape.size()), byte_size, &memory)) {
    return error;
  }
  if (memory.type == TRITONSERVER_MEMORY_GPU) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_UNSUPPORTED,
                                 "this model leaves its outputs in host memory, not on a GPU");
  }
  if (byte_size > 0) std::memcpy(memory.address, from, byte_size);
  return nullptr;
}

void take_output(TakenOutput* output) {
  Memory memory;
  if (output->gpu >= 0) memory = {nullptr, TRITONSERVER_MEMORY_GPU, output->gpu};
  auto* error = add(static_cast<TRITONBACKEND_Response*>(output->response), output->name,
                    output->datatype, output->shape, output->dims_count, output->byte_size, &memory);
  output->address = memory.address;
  output->is_on_gpu = memory.type == TRITONSERVER_MEMORY_GPU;
  std::string problem;
  if (error != nullptr) {
    problem = TRITONSERVER_ErrorMessage(error);
    TRITONSERVER_ErrorDelete(error);
  } else if (output->is_on_gpu && memory.id != output->gpu) {
    problem = "Triton has memory of GPU " + std::to_string(memory.id) + " for output " +
              output->name + ", not of GPU " + std::to_string(output->gpu);
  }
  const size_t length = std::min(problem.size(), sizeof(output->problem) - 1);
  std::memcpy(output->problem, problem.data(), length);
  output->problem[length] = 0;
}

}  // namespace hpsbench
