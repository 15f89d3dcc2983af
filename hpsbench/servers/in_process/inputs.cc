#include "inputs.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <system_error>
#include <thread>

namespace hpsbench {
namespace {

constexpr uint64_t kAlignment = 64;
// What one thread claims at a time, and from how many bytes on it pays to start threads.
constexpr uint64_t kPiece = 1 << 20;
constexpr uint64_t kWorthThreads = 2 << 20;
constexpr unsigned kMostThreads = 4;

struct Piece {
  char* to;
  const char* from;
  uint64_t byte_size;
};

uint64_t aligned(uint64_t byte_size) { return (byte_size + kAlignment - 1) & ~(kAlignment - 1); }

unsigned num_threads(uint64_t byte_size) {
  if (byte_size < kWorthThreads) return 1;
  cpu_set_t cpus;
  // A server may be confined to some of the machine's.
  const int count = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
  return std::min(kMostThreads, static_cast<unsigned>(count));
}

void copy(const std::vector<Piece>& pieces, uint64_t byte_size) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i; (i = next.fetch_add(1)) < pieces.size();) {
      std::memcpy(pieces[i].to, pieces[i].from, pieces[i].byte_size);
    }
  };
  std::vector<std::thread> others;
  try {
    for (unsigned i = 1; i < num_threads(byte_size); ++i) others.emplace_back(work);
  } catch (const std::system_error&) {
    // No more threads to be had: those that started, and this one, do it all.
  }
  work();
  for (std::thread& other : others) other.join();
}

TRITONSERVER_Error* add_pieces(TRITONBACKEND_Input* input, uint32_t buffer_count, char* to,
                               std::vector<Piece>* pieces) {
  for (uint32_t i = 0; i < buffer_count; ++i) {
    const void* buffer = nullptr;
    uint64_t byte_size = 0;
    TRITONSERVER_MemoryType type = TRITONSERVER_MEMORY_CPU;
    int64_t id = 0;
    if (auto* error = TRITONBACKEND_InputBuffer(input, i, &buffer, &byte_size, &type, &id)) {
      return error;
    }
    if (type == TRITONSERVER_MEMORY_GPU) {
      return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_UNSUPPORTED,
                                   "this model takes its inputs in host memory, not on a GPU");
    }
    const char* from = static_cast<const char*>(buffer);
    while (byte_size > 0) {
      const uint64_t some = std::min(byte_size, kPiece);
      pieces->push_back({to, from, some});
      to += some;
      from += some;
      byte_size -= some;
    }
  }
  return nullptr;
}

}  // namespace

InputMemory::~InputMemory() { release(); }

TRITONSERVER_Error* InputMemory::gather(TRITONBACKEND_Request* request,
                                        std::vector<Input>* inputs) {
  uint32_t count = 0;
  if (auto* error = TRITONBACKEND_RequestInputCount(request, &count)) return error;
  inputs->clear();
  std::vector<TRITONBACKEND_Input*> handles(count);
  std::vector<uint32_t> buffer_counts(count);
  uint64_t all = 0;
  for (uint32_t i = 0; i < count; ++i) {
    if (auto* error = TRITONBACKEND_RequestInputByIndex(request, i, &handles[i])) return error;
    const char* name = nullptr;
    TRITONSERVER_DataType datatype = 0;
    const int64_t* shape = nullptr;
    uint32_t dims_count = 0;
    uint64_t byte_size = 0;
    if (auto* error = TRITONBACKEND_InputProperties(handles[i], &name, &datatype, &shape,
                                                    &dims_count, &byte_size, &buffer_counts[i])) {
      return error;
    }
    inputs->push_back({name, datatype, {shape, shape + dims_count}, nullptr, byte_size});
    all += aligned(byte_size);
  }
  if (auto* error = reserve(all)) return error;
  std::vector<Piece> pieces;
  char* to = memory_;
  for (uint32_t i = 0; i < count; ++i) {
    if (auto* error = add_pieces(handles[i], buffer_counts[i], to, &pieces)) return error;
    (*inputs)[i].address = to;
    to += aligned((*inputs)[i].byte_size);
  }
  copy(pieces, all);
  return nullptr;
}

TRITONSERVER_Error* InputMemory::reserve(uint64_t byte_size) {
  if (byte_size <= capacity_) return nullptr;
  release();
  void* memory = nullptr;
  for (const auto type : {TRITONSERVER_MEMORY_CPU_PINNED, TRITONSERVER_MEMORY_CPU}) {
    auto* error = TRITONBACKEND_MemoryManagerAllocate(manager_, &memory, type, 0, byte_size);
    if (error == nullptr) {
      memory_ = static_cast<char*>(memory);
      capacity_ = byte_size;
      type_ = type;
      return nullptr;
    }
    // There is no GPU, or its pool is spent: plain memory serves as well, if more slowly.
    if (type == TRITONSERVER_MEMORY_CPU) return error;
    TRITONSERVER_ErrorDelete(error);
  }
  return nullptr;
}

void InputMemory::release() {
  if (memory_ == nullptr) return;
  auto* error = TRITONBACKEND_MemoryManagerFree(manager_, memory_, type_, 0);
  if (error != nullptr) TRITONSERVER_ErrorDelete(error);
  memory_ = nullptr;
  capacity_ = 0;
}

}  // namespace hpsbench
