// CUDA's resources as C++ objects, and its errors as exceptions.
#ifndef HPSBENCH_HPS_NATIVE_GPU_MEMORY_H_
#define HPSBENCH_HPS_NATIVE_GPU_MEMORY_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <utility>

#include "core.h"

namespace hps::gpu {

// What functions of the library throw; the C interface turns it into a status and a text.
struct Error {
  hps_status status;
  std::string text;
};

inline void check(cudaError_t result, const std::string& doing) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // or the next call of this thread would report it again
  throw Error{result == cudaErrorMemoryAllocation ? HPS_RESOURCE_EXHAUSTED : HPS_INTERNAL,
              "CUDA failed to " + doing + ": " + cudaGetErrorString(result)};
}

inline void check_launch(const char* kernel) {
  check(cudaPeekAtLastError(), std::string("launch ") + kernel);
}

// Makes `device` the calling thread's current one, and takes that back. Meanwhile another thread may
// capture a graph: nothing here is on a stream of its.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    check(cudaGetDevice(&before_), "tell the current GPU");
    changed_ = before_ != device;
    if (changed_) check(cudaSetDevice(device), "use GPU " + std::to_string(device));
    check(cudaThreadExchangeStreamCaptureMode(&mode_), "let other threads capture graphs");
  }
  ~DeviceScope() {
    cudaThreadExchangeStreamCaptureMode(&mode_);
    if (changed_) cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

enum class Place { kDevice, kHost };  // kHost is page-locked, and kernels may use it

template <class T, Place kPlace>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(uint64_t count) : count_(count) {
    if (count == 0) return;
    void* memory;
    if constexpr (kPlace == Place::kDevice) {
      check(cudaMalloc(&memory, num_bytes()),
            "take " + std::to_string(num_bytes()) + " bytes of GPU memory");
    } else {
      check(cudaHostAlloc(&memory, num_bytes(), cudaHostAllocPortable | cudaHostAllocMapped),
            "take " + std::to_string(num_bytes()) + " bytes of page-locked host memory");
    }
    memory_ = static_cast<T*>(memory);
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~Buffer() {
    if (memory_ == nullptr) return;
    if constexpr (kPlace == Place::kDevice) {
      cudaFree(memory_);
    } else {
      cudaFreeHost(memory_);
    }
  }

  T* get() const { return memory_; }
  T& operator[](uint64_t i) const { return memory_[i]; }
  uint64_t count() const { return count_; }
  uint64_t num_bytes() const { return count_ * sizeof(T); }

 private:
  T* memory_ = nullptr;
  uint64_t count_ = 0;
};

template <class T>
using DeviceBuffer = Buffer<T, Place::kDevice>;
template <class T>
using HostBuffer = Buffer<T, Place::kHost>;

class Event {
 public:
  Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "make an event"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "record an event"); }
  // Work that `stream` is given from now on waits for what was recorded last.
  void hold(cudaStream_t stream) const {
    check(cudaStreamWaitEvent(stream, event_), "make a stream wait");
  }
  void wait() const { check(cudaEventSynchronize(event_), "wait for the GPU"); }
  // Whether what was recorded last has come; not if that cannot be told.
  bool is_over() const {
    const bool over = cudaEventQuery(event_) == cudaSuccess;
    cudaGetLastError();  // "not ready" is no failure, and must not be found as one
    return over;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// Records an event when it goes out of scope, however that comes about.
class RecordAtEnd {
 public:
  RecordAtEnd(Event& event, cudaStream_t stream) : event_(event), stream_(stream) {}
  ~RecordAtEnd() {
    try {
      event_.record(stream_);
    } catch (const Error&) {  // the next call of CUDA fails as well, and says so
    }
  }
  RecordAtEnd(const RecordAtEnd&) = delete;
  RecordAtEnd& operator=(const RecordAtEnd&) = delete;

 private:
  Event& event_;
  cudaStream_t stream_;
};

class Stream {
 public:
  enum Priority { kUsual, kUrgent };

  explicit Stream(Priority priority = kUsual) {
    int least = 0;
    int greatest = 0;
    check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "tell the priorities of streams");
    check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking,
                                       priority == kUrgent ? greatest : 0),
          "make a stream");
  }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t get() const { return stream_; }
  void wait() const { check(cudaStreamSynchronize(stream_), "finish a stream's work"); }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace hps::gpu

#endif  // HPSBENCH_HPS_NATIVE_GPU_MEMORY_H_
