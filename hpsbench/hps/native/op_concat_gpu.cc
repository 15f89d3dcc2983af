// HpsConcatLookup on a GPU: one lookup for all tables, whose rows go where they end up.
#include <vector>

#include "concat_lookup_kernel.h"
#include "gpu_kernel.h"
#include "register_kernels.h"

namespace hps {

namespace {

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
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, this->output_shape(num_samples), &embeddings));
    if (num_samples == 0) return;
    GpuCall call(ctx, this->operation());
    OP_REQUIRES_OK(ctx, call.find(model.get()));
    float* const out = embeddings->flat<float>().data();
    OP_REQUIRES_OK(ctx, call.has_cache()
                            ? ask_cache(ctx, call, out)
                            : ask_host(ctx, call, model.get(), num_samples, out));
  }

 private:
  absl::Status ask_cache(OpKernelContext* ctx, const GpuCall& call, float* out) const {
    std::vector<hps_gpu_part> parts;
    for (const auto& block : this->blocks_) {
      const Tensor& ids = ctx->input(block.input);
      parts.push_back({static_cast<int32_t>(this->table_ids_[block.input]), ids.flat<Key>().data(),
                       static_cast<uint64_t>(ids.NumElements()), out + block.first_column,
                       static_cast<uint64_t>(block.keys_per_sample),
                       static_cast<uint64_t>(this->width_)});
    }
    return call.look_up<Key>(parts, HPS_FLOAT32);
  }

  absl::Status ask_host(OpKernelContext* ctx, const GpuCall& call, hps_model* model,
                        int64_t num_samples, float* out) const {
    std::vector<Tensor> copied(ctx->num_inputs());
    std::vector<const Key*> keys(copied.size());
    for (int t = 0; t < ctx->num_inputs(); ++t) {
      TF_RETURN_IF_ERROR(call.ids_on_host(t, &copied[t], &keys[t]));
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
