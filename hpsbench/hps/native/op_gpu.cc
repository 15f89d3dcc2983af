// The operations on a GPU: embeddings are in its memory, and work is put on TensorFlow's stream.
// The model's cache on that GPU answers; where it has none, the tables on the host do.
#include <type_traits>
#include <vector>

#include "gpu_kernel.h"
#include "lookup_kernel.h"
#include "register_kernels.h"

namespace hps {

namespace {

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
    GpuCall call(ctx, this->operation());
    OP_REQUIRES_OK(ctx, call.find(model.get()));
    OP_REQUIRES_OK(ctx, call.has_cache() ? ask_cache(call, parts)
                                         : ask_host(ctx, call, model.get(), parts));
  }

 private:
  using Part = typename LookupKernel<Key, Row>::Part;
  static constexpr hps_row_type kRowType =
      std::is_same_v<Row, float> ? HPS_FLOAT32 : HPS_FLOAT16;

  absl::Status ask_cache(const GpuCall& call, const std::vector<Part>& parts) const {
    std::vector<hps_gpu_part> gpu_parts;
    for (size_t i = 0; i < parts.size(); ++i) {
      gpu_parts.push_back({static_cast<int32_t>(this->table_ids_[i]), parts[i].keys,
                           static_cast<uint64_t>(parts[i].num_keys), parts[i].out, 0, 0});
    }
    return call.look_up<Key>(gpu_parts, kRowType);
  }

  absl::Status ask_host(OpKernelContext* ctx, const GpuCall& call, hps_model* model,
                        const std::vector<Part>& parts) const {
    std::vector<Tensor> copied(parts.size());
    std::vector<Tensor> rows(parts.size());
    std::vector<Part> host_parts = parts;
    for (size_t i = 0; i < parts.size(); ++i) {
      const int input = static_cast<int>(i);
      TF_RETURN_IF_ERROR(call.ids_on_host(input, &copied[i], &host_parts[i].keys));
      TF_RETURN_IF_ERROR(call.allocate_on_host(tensorflow::DataTypeToEnum<Row>::value,
                                               ctx->mutable_output(input)->shape(), &rows[i]));
      host_parts[i].out = rows[i].flat<Row>().data();
    }
    if (!kIdsOnHost<Key>) TF_RETURN_IF_ERROR(call.wait());
    this->look_up(ctx, model, host_parts);
    for (size_t i = 0; i < parts.size(); ++i) {
      TF_RETURN_IF_ERROR(call.send(rows[i], parts[i].out));
    }
    return call.wait();  // the temporary tensors end with this call
  }
};

HPS_REGISTER_LOOKUPS(tensorflow::DEVICE_GPU, GpuLookupKernel);

}  // namespace

}  // namespace hps
