// HpsConcatLookup: the rows of several tables, and tensors that are given, side by side in one matrix.
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

// `widths` has the values per sample of each input, and `order` their numbers from left to right, as
// they are where it is empty. Not stateful, as HpsLookup is not.
REGISTER_OP("HpsConcatLookup")
    .Input("ids: num_tables * Tkeys")
    .Input("given: num_given * float")
    .Output("embeddings: float")
    .Attr("num_tables: int >= 1")
    .Attr("Tkeys: {int32, int64}")
    .Attr("model_name: string")
    .Attr("table_ids: list(int)")
    .Attr("emb_vec_sizes: list(int)")
    .Attr("widths: list(int)")
    .Attr("ps_config_file: string = ''")
    .Attr("global_batch_size: int = 1")
    .Attr("num_given: int >= 0 = 0")
    .Attr("order: list(int) = []")
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
    std::vector<const float*> given;
    for (int i = 0; i < ctx->num_inputs(); ++i) {
      if (i < this->num_tables()) {
        keys.push_back(ctx->input(i).flat<Key>().data());
      } else {
        given.push_back(ctx->input(i).flat<float>().data());
      }
    }
    this->look_up_side_by_side(ctx, model.get(), keys, given, num_samples,
                               embeddings.flat<float>().data());
  }

 private:
  OutputMemory memory_;
};

HPS_REGISTER_CONCAT_LOOKUPS(tensorflow::DEVICE_CPU, CpuConcatLookupKernel);

}  // namespace

}  // namespace hps
