// The way of a table's rows and keys to the GPU, when it is made.
#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "gpu_table.h"

namespace hps::gpu {

namespace {

constexpr uint64_t kUploadPiece = 8 << 20;
constexpr unsigned kUploadThreads = 8;
// Bytes up to which page-locking memory takes longer than the copy.
constexpr uint64_t kSmallUpload = 4 << 20;

void upload_part(char* device_memory, const char* host_memory, uint64_t num_bytes, int device) {
  const DeviceScope scope(device);
  const HostBuffer<char> pieces[2] = {HostBuffer<char>(kUploadPiece),
                                      HostBuffer<char>(kUploadPiece)};
  Event done[2];
  const Stream stream;
  int turn = 0;
  for (uint64_t begin = 0; begin < num_bytes; begin += kUploadPiece, turn ^= 1) {
    const uint64_t size = std::min(kUploadPiece, num_bytes - begin);
    done[turn].wait();
    std::memcpy(pieces[turn].get(), host_memory + begin, size);
    check(cudaMemcpyAsync(device_memory + begin, pieces[turn].get(), size, cudaMemcpyHostToDevice,
                          stream.get()),
          "copy rows to the GPU");
    done[turn].record(stream.get());
  }
  stream.wait();
}

}  // namespace

void upload(void* device_memory, const void* host_memory, uint64_t num_bytes, int device) {
  if (num_bytes <= kSmallUpload) {
    check(cudaMemcpy(device_memory, host_memory, num_bytes, cudaMemcpyHostToDevice),
          "copy rows to the GPU");
    return;
  }
  const unsigned num_threads = static_cast<unsigned>(std::min<uint64_t>(
      {kUploadThreads, std::max(1u, std::thread::hardware_concurrency()),
       (num_bytes + 4 * kUploadPiece - 1) / (4 * kUploadPiece)}));
  if (num_threads == 0) return;
  const uint64_t part = (num_bytes + num_threads - 1) / num_threads;
  std::mutex mutex;
  std::exception_ptr failure;
  const auto run = [&](unsigned i) {
    try {
      const uint64_t begin = std::min(num_bytes, i * part);
      upload_part(static_cast<char*>(device_memory) + begin,
                  static_cast<const char*>(host_memory) + begin,
                  std::min(part, num_bytes - begin), device);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 1; i < num_threads; ++i) {
    try {
      threads.emplace_back(run, i);
    } catch (const std::system_error&) {
      run(i);
    }
  }
  run(0);
  for (auto& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace hps::gpu
