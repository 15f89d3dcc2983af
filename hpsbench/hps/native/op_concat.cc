// HpsConcatLookup: the rows of several tables side by side in one tensor.
//
// What a lookup per table, its reshape to [samples, width] and a concatenation along the last axis
// give, in one pass: a row goes where it ends up. The kernel for GPUs is in op_concat_gpu.cc.
#include <numeric>
#include <vector>

#include "concat_lookup_kernel.h"
#include "output_memory.h"
#include "register_kernels.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace hps {

namespace {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;

// `widths` has the values per sample of each table, which begin at its number of `first_columns`: one
// behind the other where that is empty. Columns of `width` that are no table's have any values; an
// operation behind this one is to write them. A sample's values are of `sample_shape`, or [width]
// where that is empty. Not stateful, as HpsLookup is not.
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
    .Attr("first_columns: list(int) = []")
    .Attr("width: int >= 0 = 0")
    .Attr("sample_shape: list(int) = []")
    .SetShapeFn([](InferenceContext* c) {
      int64_t width;
      std::vector<int64_t> widths;
      std::vector<int64_t> sample_shape;
      TF_RETURN_IF_ERROR(c->GetAttr("width", &width));
      TF_RETURN_IF_ERROR(c->GetAttr("widths", &widths));
      TF_RETURN_IF_ERROR(c->GetAttr("sample_shape", &sample_shape));
      if (width == 0) width = std::accumulate(widths.begin(), widths.end(), int64_t{0});
      TF_RETURN_IF_ERROR(check_sample_shape(sample_shape, width));
      if (sample_shape.empty()) sample_shape = {width};
      std::vector<DimensionHandle> sizes = {c->UnknownDim()};
      for (const int64_t size : sample_shape) sizes.push_back(c->MakeDim(size));
      c->set_output(0, c->MakeShape(sizes));
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
    OP_REQUIRES_OK(ctx, take(ctx, this->output_shape(num_samples), &embeddings));
    ctx->set_output(0, embeddings);
    if (num_samples == 0) return;
    std::vector<const Key*> keys;
    for (int t = 0; t < ctx->num_inputs(); ++t) keys.push_back(ctx->input(t).flat<Key>().data());
    this->look_up_side_by_side(ctx, model.get(), keys, num_samples,
                               embeddings.flat<float>().data());
  }

 private:
  absl::Status take(OpKernelContext* ctx, const TensorShape& shape, Tensor* out) {
    if (!this->has_gaps()) return memory_.take(ctx, shape, out);
    // Memory that is kept could not be written in place by who fills the gaps.
    TF_RETURN_IF_ERROR(ctx->allocate_temp(tensorflow::DT_FLOAT, shape, out));
    if (out->TotalBytes() >= kFreshMemory) use_huge_pages(*out);
    return absl::OkStatus();
  }

  OutputMemory memory_;
};

HPS_REGISTER_CONCAT_LOOKUPS(tensorflow::DEVICE_CPU, CpuConcatLookupKernel);

}  // namespace

}  // namespace hps
