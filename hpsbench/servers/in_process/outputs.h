// A response's outputs: copied from the model's, or memory that the model writes itself.
#ifndef HPSBENCH_SERVERS_IN_PROCESS_OUTPUTS_H_
#define HPSBENCH_SERVERS_IN_PROCESS_OUTPUTS_H_

#include <cstddef>
#include <cstdint>

#include "python.h"
#include "triton.h"

namespace hpsbench {

// Adds a copy of `output`, a tuple (name, datatype, shape, address, bytes, who keeps the bytes).
TRITONSERVER_Error* add_output(TRITONBACKEND_Response* response, PyObject* output);

// An output as `triton_utils.py` asks for it; its structure of the same name has the same fields.
struct TakenOutput {
  void* response;
  const char* name;
  const int64_t* shape;
  uint64_t byte_size;
  int64_t gpu;  // wanted, below 0 for host memory
  uint32_t dims_count;
  int32_t datatype;
  // Filled in:
  void* address;
  int32_t is_on_gpu;  // Triton may have memory of the other kind
  char problem[256];  // empty where there is none
};

// Adds an output that the caller is to write.
void take_output(TakenOutput* output);

}  // namespace hpsbench

#endif  // HPSBENCH_SERVERS_IN_PROCESS_OUTPUTS_H_
