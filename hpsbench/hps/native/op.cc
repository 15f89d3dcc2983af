// The TensorFlow operations: ids in, embeddings out, from the models in the core's registry.
//
// HpsLookup asks one table, HpsMultiLookup several at once. An operation that runs for the first
// time has its model initialised; until then it knows only the attributes it was traced with.
// Tables are shared out among TensorFlow's intra-op threads, and no operation waits for another.
// The kernels for GPUs are in op_gpu.cc.
#include <vector>

#include "lookup_kernel.h"
#include "output_memory.h"
#include "register_kernels.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace hps {

using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

namespace {

absl::Status embedding_shape(InferenceContext* c, int input, int64_t emb_vec_size) {
  ShapeHandle shape;
  TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(input), 1, &shape));
  TF_RETURN_IF_ERROR(c->Concatenate(shape, c->Vector(emb_vec_size), &shape));
  c->set_output(input, shape);
  return absl::OkStatus();
}

// Not stateful, although the rows come from outside the graph: TensorFlow runs stateful operations
// of a function one after another. Lookups of constant ids would be made once and kept, though rows
// can be updated: the layers see to that.
REGISTER_OP("HpsLookup")
    .Input("ids: Tkeys")
    .Output("embeddings: Trows")
    .Attr("Tkeys: {int32, int64}")
    .Attr("model_name: string")
    .Attr("table_id: int >= 0")
    .Attr("emb_vec_size: int >= 1")
    .Attr("ps_config_file: string = ''")
    .Attr("global_batch_size: int = 1")
    .Attr("Trows: {float, half} = DT_FLOAT")
    .SetShapeFn([](InferenceContext* c) {
      int64_t emb_vec_size;
      TF_RETURN_IF_ERROR(c->GetAttr("emb_vec_size", &emb_vec_size));
      return embedding_shape(c, 0, emb_vec_size);
    });

REGISTER_OP("HpsMultiLookup")
    .Input("ids: num_tables * Tkeys")
    .Output("embeddings: num_tables * Trows")
    .Attr("num_tables: int >= 1")
    .Attr("Tkeys: {int32, int64}")
    .Attr("model_name: string")
    .Attr("table_ids: list(int)")
    .Attr("emb_vec_sizes: list(int)")
    .Attr("ps_config_file: string = ''")
    .Attr("global_batch_size: int = 1")
    .Attr("Trows: {float, half} = DT_FLOAT")
    .SetShapeFn([](InferenceContext* c) {
      std::vector<int64_t> emb_vec_sizes;
      TF_RETURN_IF_ERROR(c->GetAttr("emb_vec_sizes", &emb_vec_sizes));
      if (static_cast<int>(emb_vec_sizes.size()) != c->num_inputs()) {
        return absl::InvalidArgumentError("hps_multi_lookup: emb_vec_sizes needs one size per input");
      }
      for (int i = 0; i < c->num_inputs(); ++i) {
        TF_RETURN_IF_ERROR(embedding_shape(c, i, emb_vec_sizes[i]));
      }
      return absl::OkStatus();
    });

}  // namespace

template <class Key, class Row>
class CpuLookupKernel : public LookupKernel<Key, Row> {
 public:
  using LookupKernel<Key, Row>::LookupKernel;

  void Compute(OpKernelContext* ctx) override {
    ModelReference model;
    OP_REQUIRES_OK(ctx, this->find_model(&model));
    std::vector<typename LookupKernel<Key, Row>::Part> parts;
    OP_REQUIRES_OK(ctx, this->allocate_outputs(ctx, &parts));
    for (int i = 0; i < ctx->num_outputs(); ++i) {
      const Tensor& embeddings = *ctx->mutable_output(i);
      if (embeddings.TotalBytes() >= kFreshMemory) use_huge_pages(embeddings);
    }
    this->look_up(ctx, model.get(), parts);
  }
};

HPS_REGISTER_LOOKUPS(tensorflow::DEVICE_CPU, CpuLookupKernel);

}  // namespace hps
