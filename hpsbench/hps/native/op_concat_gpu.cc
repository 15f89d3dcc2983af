// HpsConcatLookup on a GPU: one lookup for all tables, whose rows go where they end up, and one kernel
// that copies what is given.
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
    std::vector<hps_gpu_part> parts;
    std::vector<hps_gpu_columns> columns;
    for (const auto& block : this->blocks_) {
      const Tensor& input = ctx->input(block.input);
      float* const to = out + block.first_column;
      if (block.is_given()) {
        columns.push_back(
            {input.flat<float>().data(), static_cast<uint64_t>(block.width), to});
      } else {
        parts.push_back({static_cast<int32_t>(this->table_ids_[block.input]),
                         input.flat<Key>().data(), static_cast<uint64_t>(input.NumElements()), to,
                         static_cast<uint64_t>(block.keys_per_sample),
                         static_cast<uint64_t>(this->width_)});
      }
    }
    // First, so that the GPU has work while the host waits to know which keys a cache lacks.
    if (!columns.empty()) {
      TF_RETURN_IF_ERROR(call.copy_columns(columns, num_samples, this->width_));
    }
    return call.look_up<Key>(parts, HPS_FLOAT32);
  }

  absl::Status ask_host(OpKernelContext* ctx, const GpuCall& call, hps_model* model,
                        int64_t num_samples, float* out) const {
    std::vector<Tensor> copied(ctx->num_inputs());
    std::vector<const Key*> keys(this->num_tables());
    std::vector<const float*> given(ctx->num_inputs() - this->num_tables());
    for (int i = 0; i < ctx->num_inputs(); ++i) {
      const int number = i - this->num_tables();
      TF_RETURN_IF_ERROR(number < 0 ? call.ids_on_host(i, &copied[i], &keys[i])
                                    : call.values_on_host(i, &copied[i], &given[number]));
    }
    Tensor rows;
    TF_RETURN_IF_ERROR(call.allocate_on_host(
        tensorflow::DT_FLOAT, TensorShape({num_samples, this->width_}), &rows));
    if (!kIdsOnHost<Key> || !given.empty()) TF_RETURN_IF_ERROR(call.wait());
    this->look_up_side_by_side(ctx, model, keys, given, num_samples, rows.flat<float>().data());
    TF_RETURN_IF_ERROR(call.send(rows, out));
    return call.wait();  // the temporary tensors end with this call
  }
};

HPS_REGISTER_CONCAT_LOOKUPS(tensorflow::DEVICE_GPU, GpuConcatLookupKernel);

}  // namespace

}  // namespace hps
