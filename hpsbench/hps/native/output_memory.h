// Memory for large outputs.
#ifndef HPSBENCH_HPS_NATIVE_OUTPUT_MEMORY_H_
#define HPSBENCH_HPS_NATIVE_OUTPUT_MEMORY_H_

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tensorflow/core/framework/op_kernel.h"

namespace hps {

// Bytes from which an output may be memory fresh from the system.
constexpr size_t kFreshMemory = 4 << 20;

// Asks the kernel for huge pages below a large output. It is often fresh memory at that size, and
// without them the page faults of the first write take longer than the lookup.
inline void use_huge_pages(const tensorflow::Tensor& tensor) {
  constexpr uintptr_t kHugePage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.data());
  const uintptr_t first = (begin + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t last = (begin + tensor.TotalBytes()) & ~(kHugePage - 1);
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

// Keeps the memory of an operation's large outputs, and gives it to the next ones once nobody uses
// it any more: fresh memory would have to be cleared by the system first.
//
// It keeps as many as were in use at one time, and at most kMostKept.
class OutputMemory {
 public:
  // Sets `out` to a float32 tensor of this shape, in host memory. Its values are undefined.
  absl::Status take(tensorflow::OpKernelContext* ctx, const tensorflow::TensorShape& shape,
                    tensorflow::Tensor* out) {
    const int64_t count = shape.num_elements();
    if (count * sizeof(float) < kFreshMemory) {
      return ctx->allocate_temp(tensorflow::DT_FLOAT, shape, out);
    }
    tensorflow::mutex_lock lock(mutex_);
    tensorflow::Tensor* free = nullptr;
    for (tensorflow::Tensor& kept : kept_) {
      if (!kept.RefCountIsOne()) continue;
      free = &kept;
      // Of much larger batches, memory is not kept for small ones.
      if (kept.NumElements() >= count && kept.NumElements() <= 2 * count) {
        return out->BitcastFrom(kept.Slice(0, count), tensorflow::DT_FLOAT, shape);
      }
    }
    tensorflow::Tensor fresh;
    TF_RETURN_IF_ERROR(
        ctx->allocate_temp(tensorflow::DT_FLOAT, tensorflow::TensorShape({count}), &fresh));
    use_huge_pages(fresh);
    TF_RETURN_IF_ERROR(out->BitcastFrom(fresh, tensorflow::DT_FLOAT, shape));
    if (free != nullptr) {
      *free = fresh;
    } else if (kept_.size() < kMostKept) {
      kept_.push_back(fresh);
    }
    return absl::OkStatus();
  }

 private:
  static constexpr size_t kMostKept = 8;

  tensorflow::mutex mutex_;
  std::vector<tensorflow::Tensor> kept_;  // flat
};

}  // namespace hps

#endif  // HPSBENCH_HPS_NATIVE_OUTPUT_MEMORY_H_
