// A request's inputs, each in one piece: what the server received lies in as many as it came in.
#ifndef HPSBENCH_SERVERS_IN_PROCESS_INPUTS_H_
#define HPSBENCH_SERVERS_IN_PROCESS_INPUTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "triton.h"

namespace hpsbench {

struct Input {
  std::string name;
  TRITONSERVER_DataType datatype;
  std::vector<int64_t> shape;
  const void* address;
  uint64_t byte_size;
};

// Memory for one request's inputs at a time; page-locked where Triton has such memory, so that a
// GPU copies from it at full speed.
class InputMemory {
 public:
  explicit InputMemory(TRITONBACKEND_MemoryManager* manager) : manager_(manager) {}
  ~InputMemory();
  InputMemory(const InputMemory&) = delete;
  InputMemory& operator=(const InputMemory&) = delete;

  // Fills `inputs`, valid until the next call. Several threads copy what is large.
  TRITONSERVER_Error* gather(TRITONBACKEND_Request* request, std::vector<Input>* inputs);

 private:
  TRITONSERVER_Error* reserve(uint64_t byte_size);
  void release();

  TRITONBACKEND_MemoryManager* const manager_;
  TRITONSERVER_MemoryType type_ = TRITONSERVER_MEMORY_CPU;
  char* memory_ = nullptr;
  uint64_t capacity_ = 0;
};

}  // namespace hpsbench

#endif  // HPSBENCH_SERVERS_IN_PROCESS_INPUTS_H_
