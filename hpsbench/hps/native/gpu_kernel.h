// What the operations' kernels for GPUs share: where ids are, TensorFlow's stream and memory, and
// the model's cache.
//
// Nothing here needs CUDA, so that one library serves TensorFlow with and without GPUs.
#ifndef HPSBENCH_HPS_NATIVE_GPU_KERNEL_H_
#define HPSBENCH_HPS_NATIVE_GPU_KERNEL_H_

#include <string>
#include <type_traits>
#include <vector>

#include "core.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "xla/stream_executor/device_address.h"
#include "xla/stream_executor/stream.h"
#include "xla/stream_executor/stream_executor.h"

namespace hps {

using stream_executor::DeviceAddressBase;
using stream_executor::Stream;

// Whether ids come in host memory, as registered (register_kernels.h).
template <class Key>
constexpr bool kIdsOnHost = std::is_same_v<Key, int32_t>;

// One call of an operation on a GPU.
class GpuCall {
 public:
  // `name` is that of the operation, for errors.
  GpuCall(tensorflow::OpKernelContext* ctx, const std::string& name) : ctx_(ctx), name_(name) {}

  // Finds TensorFlow's stream, and the cache on its GPU: none where the tables on the host are to
  // answer.
  absl::Status find(const hps_model* model) {
    auto* const context = ctx_->op_device_context();
    if (context == nullptr || context->stream() == nullptr) {
      return absl::InternalError(absl::StrCat(name_, ": TensorFlow gave no stream of the GPU"));
    }
    stream_ = context->stream();
    cache_ = hps_model_gpu(model, stream_->parent()->device_ordinal(), &functions_);
    return absl::OkStatus();
  }
  bool has_cache() const { return cache_ != nullptr; }

  // Looks keys up in the cache, in the order of the stream.
  template <class Key>
  absl::Status look_up(const std::vector<hps_gpu_part>& parts, hps_row_type row_type) const {
    hps_error error;
    return status(functions_->lookup(cache_, parts.data(), static_cast<int32_t>(parts.size()),
                                     sizeof(Key), kIdsOnHost<Key>, row_type, cuda_stream(), &error),
                  error);
  }

  // Takes page-locked memory on the host.
  absl::Status allocate_on_host(tensorflow::DataType type, const tensorflow::TensorShape& shape,
                                tensorflow::Tensor* out) const {
    tensorflow::AllocatorAttributes page_locked;
    page_locked.set_on_host(true);
    page_locked.set_gpu_compatible(true);
    return ctx_->allocate_temp(type, shape, out, page_locked);
  }

  // Sets `keys` to where an input's ids are on the host: once `wait` returned, if they have to be
  // copied, to `copied`, which must live until then.
  template <class Key>
  absl::Status ids_on_host(int input, tensorflow::Tensor* copied, const Key** keys) const {
    const tensorflow::Tensor& ids = ctx_->input(input);
    *keys = ids.flat<Key>().data();
    if (kIdsOnHost<Key> || ids.TotalBytes() == 0) return absl::OkStatus();
    TF_RETURN_IF_ERROR(allocate_on_host(ids.dtype(), ids.shape(), copied));
    const DeviceAddressBase from(const_cast<Key*>(*keys), ids.TotalBytes());
    *keys = copied->flat<Key>().data();
    return stream_->Memcpy(copied->data(), from, ids.TotalBytes());
  }

  // Copies rows to GPU memory, in the order of the stream.
  absl::Status send(const tensorflow::Tensor& rows, void* out) const {
    if (rows.TotalBytes() == 0) return absl::OkStatus();
    DeviceAddressBase to(out, rows.TotalBytes());
    return stream_->Memcpy(&to, rows.data(), rows.TotalBytes());
  }

  absl::Status wait() const { return stream_->BlockHostUntilDone(); }

 private:
  void* cuda_stream() const { return stream_->platform_specific_handle().stream; }

  absl::Status status(hps_status status, const hps_error& error) const {
    if (status == HPS_OK) return absl::OkStatus();
    return absl::Status(static_cast<absl::StatusCode>(status),
                        absl::StrCat(name_, ": ", error.text));
  }

  tensorflow::OpKernelContext* const ctx_;
  const std::string& name_;
  Stream* stream_ = nullptr;
  hps_gpu_cache* cache_ = nullptr;
  const hps_gpu_functions* functions_ = nullptr;
};

}  // namespace hps

#endif  // HPSBENCH_HPS_NATIVE_GPU_KERNEL_H_
