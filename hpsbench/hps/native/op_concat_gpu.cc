// HpsConcatLookup on a GPU: one lookup for all tables, and one kernel that joins what it gives.
#include <vector>

#include "concat_lookup_kernel.h"
#include "gpu_kernel.h"
#include "register_kernels.h"

namespace hps {

namespace {

// In floats: rows of every table begin at an address that is 16-byte aligned.
constexpr int64_t kAlignment = 4;

template <class Key>
class GpuConcatLookupKernel : public ConcatLookupKernel<Key> {
 public:
  using ConcatLookupKernel<Key>::ConcatLookupKernel;

  void Compute(OpKernelContext* ctx) override {
    ModelReference model;
    OP_REQUIRES_OK(ctx, this->find_model(&model));
    int64_t num_samples;
    OP_REQUIRES_OK(ctx, this->count_samples(ctx, &num_samples));
    Tensor* embeddings;
    OP_REQUIRES_OK(
        ctx, ctx->allocate_output(0, TensorShape({num_samples, this->width_}), &embeddings));
    if (num_samples == 0) return;
    GpuCall call(ctx, this->operation());
    OP_REQUIRES_OK(ctx, call.find(model.get()));
    float* const out = embeddings->flat<float>().data();
    OP_REQUIRES_OK(ctx, call.has_cache()
                            ? ask_cache(ctx, call, num_samples, out)
                            : ask_host(ctx, call, model.get(), num_samples, out));
  }

 private:
  absl::Status ask_cache(OpKernelContext* ctx, const GpuCall& call, int64_t num_samples,
                         float* out) const {
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
    TF_RETURN_IF_ERROR(call.look_up<Key>(parts, HPS_FLOAT32));
    return call.join(columns, num_samples, out);
  }

  absl::Status ask_host(OpKernelContext* ctx, const GpuCall& call, hps_model* model,
                        int64_t num_samples, float* out) const {
    std::vector<Tensor> copied(this->widths_.size());
    std::vector<const Key*> keys(copied.size());
    for (size_t t = 0; t < copied.size(); ++t) {
      TF_RETURN_IF_ERROR(call.ids_on_host(static_cast<int>(t), &copied[t], &keys[t]));
    }
    Tensor rows;
    TF_RETURN_IF_ERROR(call.allocate_on_host(
        tensorflow::DT_FLOAT, TensorShape({num_samples, this->width_}), &rows));
    if (!kIdsOnHost<Key>) TF_RETURN_IF_ERROR(call.wait());
    this->look_up_side_by_side(ctx, model, keys, num_samples, rows.flat<float>().data());
    TF_RETURN_IF_ERROR(call.send(rows, out));
    return call.wait();  // the temporary tensors end with this call
  }
};

HPS_REGISTER_CONCAT_LOOKUPS(tensorflow::DEVICE_GPU, GpuConcatLookupKernel);

}  // namespace

}  // namespace hps
