// HpsConcatLookup: the rows of several tables side by side in one matrix.
//
// What a lookup per table, its reshape to [samples, width] and a concatenation along the last axis
// give, in one pass: a row goes where it ends up. The kernel for GPUs is in op_concat_gpu.cc.
#include <vector>

#include "concat_lookup_kernel.h"
#include "output_memory.h"
#include "register_kernels.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace hps {

namespace {

using tensorflow::shape_inference::InferenceContext;

// Not stateful, as HpsLookup is not.
REGISTER_OP("HpsConcatLookup")
    .Input("ids: num_tables * Tkeys")
    .Output("embeddings: float")
    .Attr("num_tables: int >= 1")
    .Attr("Tkeys: {int32, int64}")
    .Attr("model_name: string")
    .Attr("table_ids: list(int)")
    .Attr("emb_vec_sizes: list(int)")
    .Attr("widths: list(int)")
    .Attr("ps_config_file: string = ''")
    .Attr("global_batch_size: int = 1")
    .SetShapeFn([](InferenceContext* c) {
      std::vector<int64_t> widths;
      TF_RETURN_IF_ERROR(c->GetAttr("widths", &widths));
      int64_t width = 0;
      for (const int64_t w : widths) width += w;
      c->set_output(0, c->Matrix(InferenceContext::kUnknownDim, width));
      return absl::OkStatus();
    });

template <class Key>
class CpuConcatLookupKernel : public ConcatLookupKernel<Key> {
 public:
  using ConcatLookupKernel<Key>::ConcatLookupKernel;

  void Compute(OpKernelContext* ctx) override {
    ModelReference model;
    OP_REQUIRES_OK(ctx, this->find_model(&model));
    int64_t num_samples;
    OP_REQUIRES_OK(ctx, this->count_samples(ctx, &num_samples));
    Tensor embeddings;
    OP_REQUIRES_OK(ctx,
                   memory_.take(ctx, TensorShape({num_samples, this->width_}), &embeddings));
    ctx->set_output(0, embeddings);
    if (num_samples == 0) return;
    std::vector<const Key*> keys;
    for (int t = 0; t < ctx->num_inputs(); ++t) keys.push_back(ctx->input(t).flat<Key>().data());
    this->look_up_side_by_side(ctx, model.get(), keys, num_samples,
                               embeddings.flat<float>().data());
  }

 private:
  OutputMemory memory_;
};

HPS_REGISTER_CONCAT_LOOKUPS(tensorflow::DEVICE_CPU, CpuConcatLookupKernel);

}  // namespace

}  // namespace hps
