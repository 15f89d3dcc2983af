// The operations on a GPU: ids and embeddings are in its memory, and work is put on TensorFlow's
// stream. The model's cache on that GPU answers; where it has none, the tables on the host do.
//
// Nothing here needs CUDA, so that one library serves TensorFlow with and without GPUs.
#include <type_traits>
#include <vector>

#include "lookup_kernel.h"
#include "register_kernels.h"
#include "xla/stream_executor/device_address.h"
#include "xla/stream_executor/stream.h"
#include "xla/stream_executor/stream_executor.h"

namespace hps {

namespace {

using stream_executor::DeviceAddressBase;
using stream_executor::Stream;

template <class Key, class Row>
class GpuLookupKernel : public LookupKernel<Key, Row> {
 public:
  using LookupKernel<Key, Row>::LookupKernel;

  void Compute(OpKernelContext* ctx) override {
    ModelReference model;
    OP_REQUIRES_OK(ctx, this->find_model(&model));
    std::vector<Part> parts;
    OP_REQUIRES_OK(ctx, this->allocate_outputs(ctx, &parts));
    if (parts.back().first_key + parts.back().num_keys == 0) return;
    auto* const context = ctx->op_device_context();
    OP_REQUIRES(ctx, context != nullptr && context->stream() != nullptr,
                absl::InternalError("hps_lookup: TensorFlow gave no stream of the GPU"));
    Stream* const stream = context->stream();
    const hps_gpu_functions* functions;
    hps_gpu_cache* const cache =
        hps_model_gpu(model.get(), stream->parent()->device_ordinal(), &functions);
    if (cache == nullptr) {
      OP_REQUIRES_OK(ctx, look_up_on_host(ctx, stream, model.get(), parts));
      return;
    }
    std::vector<hps_gpu_part> gpu_parts;
    for (size_t i = 0; i < parts.size(); ++i) {
      gpu_parts.push_back({static_cast<int32_t>(this->table_ids_[i]), parts[i].keys,
                           static_cast<uint64_t>(parts[i].num_keys), parts[i].out});
    }
    hps_error error;
    const hps_status status =
        functions->lookup(cache, gpu_parts.data(), static_cast<int32_t>(gpu_parts.size()),
                          sizeof(Key), 0, kRowType, stream->platform_specific_handle().stream,
                          &error);
    OP_REQUIRES(ctx, status == HPS_OK,
                absl::Status(static_cast<absl::StatusCode>(status),
                             absl::StrCat("hps_lookup: ", error.text)));
  }

 private:
  using Part = typename LookupKernel<Key, Row>::Part;
  static constexpr hps_row_type kRowType =
      std::is_same_v<Row, float> ? HPS_FLOAT32 : HPS_FLOAT16;

  absl::Status look_up_on_host(OpKernelContext* ctx, Stream* stream, hps_model* model,
                               const std::vector<Part>& parts) const {
    tensorflow::AllocatorAttributes page_locked;
    page_locked.set_on_host(true);
    page_locked.set_gpu_compatible(true);
    std::vector<Tensor> keys(parts.size());
    std::vector<Tensor> rows(parts.size());
    std::vector<Part> host_parts;
    for (size_t i = 0; i < parts.size(); ++i) {
      const Tensor& ids = ctx->input(i);
      TF_RETURN_IF_ERROR(ctx->allocate_temp(ids.dtype(), ids.shape(), &keys[i], page_locked));
      TF_RETURN_IF_ERROR(ctx->allocate_temp(tensorflow::DataTypeToEnum<Row>::value,
                                            ctx->mutable_output(i)->shape(), &rows[i],
                                            page_locked));
      host_parts.push_back({parts[i].first_key, parts[i].num_keys, keys[i].flat<Key>().data(),
                            rows[i].flat<Row>().data()});
      if (keys[i].TotalBytes() == 0) continue;
      const DeviceAddressBase from(const_cast<Key*>(parts[i].keys), keys[i].TotalBytes());
      TF_RETURN_IF_ERROR(stream->Memcpy(keys[i].data(), from, keys[i].TotalBytes()));
    }
    TF_RETURN_IF_ERROR(stream->BlockHostUntilDone());
    this->look_up(ctx, model, host_parts);
    for (size_t i = 0; i < parts.size(); ++i) {
      if (rows[i].TotalBytes() == 0) continue;
      DeviceAddressBase to(parts[i].out, rows[i].TotalBytes());
      TF_RETURN_IF_ERROR(stream->Memcpy(&to, rows[i].data(), rows[i].TotalBytes()));
    }
    return stream->BlockHostUntilDone();  // the temporary tensors end with this call
  }
};

HPS_REGISTER_LOOKUPS(tensorflow::DEVICE_GPU, GpuLookupKernel);

}  // namespace

}  // namespace hps
