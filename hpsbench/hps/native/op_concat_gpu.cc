// HpsConcatLookup on a GPU: one lookup for all tables, and one kernel that joins what it gives.
#include <type_traits>
#include <vector>

#include "concat_lookup_kernel.h"
#include "register_kernels.h"
#include "xla/stream_executor/device_address.h"
#include "xla/stream_executor/stream.h"
#include "xla/stream_executor/stream_executor.h"

namespace hps {

namespace {

using stream_executor::DeviceAddressBase;
using stream_executor::Stream;

// In floats: rows of every table begin at an address that is 16-byte aligned.
constexpr int64_t kAlignment = 4;

template <class Key>
class GpuConcatLookupKernel : public ConcatLookupKernel<Key> {
 public:
  using ConcatLookupKernel<Key>::ConcatLookupKernel;

  // As registered. With one of TensorFlow's copies for each of 100 tables, the operation is hardly
  // faster than 100 lookups.
  static constexpr bool kIdsOnHost = std::is_same_v<Key, int32_t>;

  void Compute(OpKernelContext* ctx) override {
    ModelReference model;
    OP_REQUIRES_OK(ctx, this->find_model(&model));
    int64_t num_samples;
    OP_REQUIRES_OK(ctx, this->count_samples(ctx, &num_samples));
    Tensor* embeddings;
    OP_REQUIRES_OK(
        ctx, ctx->allocate_output(0, TensorShape({num_samples, this->width_}), &embeddings));
    if (num_samples == 0) return;
    auto* const context = ctx->op_device_context();
    OP_REQUIRES(ctx, context != nullptr && context->stream() != nullptr,
                absl::InternalError("hps_lookup: TensorFlow gave no stream of the GPU"));
    Stream* const stream = context->stream();
    const hps_gpu_functions* functions;
    hps_gpu_cache* const cache =
        hps_model_gpu(model.get(), stream->parent()->device_ordinal(), &functions);
    float* const out = embeddings->flat<float>().data();
    OP_REQUIRES_OK(ctx, cache == nullptr
                            ? look_up_on_host(ctx, stream, model.get(), num_samples, out)
                            : look_up(ctx, stream, cache, functions, num_samples, out));
  }

 private:
  absl::Status look_up(OpKernelContext* ctx, Stream* stream, hps_gpu_cache* cache,
                       const hps_gpu_functions* functions, int64_t num_samples, float* out) const {
    std::vector<int64_t> offsets;
    int64_t total = 0;
    for (const int64_t width : this->widths_) {
      offsets.push_back(total);
      total += (num_samples * width + kAlignment - 1) / kAlignment * kAlignment;
    }
    // The allocator of the GPU gives it to others in the order of the stream.
    Tensor rows;
    TF_RETURN_IF_ERROR(
        ctx->allocate_temp(tensorflow::DT_FLOAT, TensorShape({total}), &rows));
    float* const base = rows.flat<float>().data();
    std::vector<hps_gpu_part> parts;
    std::vector<hps_gpu_columns> columns;
    for (size_t t = 0; t < offsets.size(); ++t) {
      const Tensor& ids = ctx->input(static_cast<int>(t));
      parts.push_back({static_cast<int32_t>(this->table_ids_[t]), ids.flat<Key>().data(),
                       static_cast<uint64_t>(ids.NumElements()), base + offsets[t]});
      columns.push_back({base + offsets[t], static_cast<uint64_t>(this->widths_[t])});
    }
    void* const cuda_stream = stream->platform_specific_handle().stream;
    const auto num_tables = static_cast<int32_t>(parts.size());
    hps_error error;
    hps_status status = functions->lookup(cache, parts.data(), num_tables, sizeof(Key), kIdsOnHost,
                                          HPS_FLOAT32, cuda_stream, &error);
    if (status == HPS_OK) {
      status = functions->join(cache, columns.data(), num_tables,
                               static_cast<uint64_t>(num_samples), out, cuda_stream, &error);
    }
    return status == HPS_OK ? absl::OkStatus()
                            : absl::Status(static_cast<absl::StatusCode>(status),
                                           absl::StrCat("hps_lookup: ", error.text));
  }

  absl::Status look_up_on_host(OpKernelContext* ctx, Stream* stream, hps_model* model,
                               int64_t num_samples, float* out) const {
    tensorflow::AllocatorAttributes page_locked;
    page_locked.set_on_host(true);
    page_locked.set_gpu_compatible(true);
    std::vector<Tensor> ids(this->widths_.size());
    std::vector<const Key*> keys;
    for (size_t t = 0; t < ids.size(); ++t) {
      const Tensor& given = ctx->input(static_cast<int>(t));
      if (kIdsOnHost) {
        keys.push_back(given.flat<Key>().data());
        continue;
      }
      TF_RETURN_IF_ERROR(
          ctx->allocate_temp(given.dtype(), given.shape(), &ids[t], page_locked));
      const DeviceAddressBase from(const_cast<Key*>(given.flat<Key>().data()), given.TotalBytes());
      TF_RETURN_IF_ERROR(stream->Memcpy(ids[t].data(), from, given.TotalBytes()));
      keys.push_back(ids[t].flat<Key>().data());
    }
    Tensor rows;
    TF_RETURN_IF_ERROR(ctx->allocate_temp(tensorflow::DT_FLOAT,
                                          TensorShape({num_samples, this->width_}), &rows,
                                          page_locked));
    TF_RETURN_IF_ERROR(stream->BlockHostUntilDone());
    this->look_up_side_by_side(ctx, model, keys, num_samples, rows.flat<float>().data());
    DeviceAddressBase to(out, rows.TotalBytes());
    TF_RETURN_IF_ERROR(stream->Memcpy(&to, rows.data(), rows.TotalBytes()));
    return stream->BlockHostUntilDone();  // the temporary tensors end with this call
  }
};

HPS_REGISTER_CONCAT_LOOKUPS(tensorflow::DEVICE_GPU, GpuConcatLookupKernel);

}  // namespace

}  // namespace hps
