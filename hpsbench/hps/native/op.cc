// The TensorFlow operations: ids in, embeddings out, from the models in the core's registry.
//
// HpsLookup asks one table, HpsMultiLookup several at once. An operation that runs for the first
// time has its model initialised; until then it knows only the attributes it was traced with.
// Tables are shared out among TensorFlow's intra-op threads, and no operation waits for another.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "core.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace hps {

using tensorflow::OpInputList;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

namespace {

// Keys per piece of work: enough to pay for handing it to another thread.
constexpr int64_t kGrain = 512;
// Bytes from which an output may be memory fresh from the system.
constexpr size_t kFreshMemory = 4 << 20;

absl::Status embedding_shape(InferenceContext* c, int input, int64_t emb_vec_size) {
  ShapeHandle shape;
  TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(input), 1, &shape));
  TF_RETURN_IF_ERROR(c->Concatenate(shape, c->Vector(emb_vec_size), &shape));
  c->set_output(input, shape);
  return absl::OkStatus();
}

// Not stateful, although the rows come from outside the graph: TensorFlow runs stateful operations
// of a function one after another, and a model's tables do not change while the process lives.
REGISTER_OP("HpsLookup")
    .Input("ids: Tkeys")
    .Output("embeddings: float")
    .Attr("Tkeys: {int32, int64}")
    .Attr("model_name: string")
    .Attr("table_id: int >= 0")
    .Attr("emb_vec_size: int >= 1")
    .Attr("ps_config_file: string = ''")
    .Attr("global_batch_size: int = 1")
    .SetShapeFn([](InferenceContext* c) {
      int64_t emb_vec_size;
      TF_RETURN_IF_ERROR(c->GetAttr("emb_vec_size", &emb_vec_size));
      return embedding_shape(c, 0, emb_vec_size);
    });

REGISTER_OP("HpsMultiLookup")
    .Input("ids: num_tables * Tkeys")
    .Output("embeddings: num_tables * float")
    .Attr("num_tables: int >= 1")
    .Attr("Tkeys: {int32, int64}")
    .Attr("model_name: string")
    .Attr("table_ids: list(int)")
    .Attr("emb_vec_sizes: list(int)")
    .Attr("ps_config_file: string = ''")
    .Attr("global_batch_size: int = 1")
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

void lookup(hps_model* model, int64_t table, const int64_t* keys, int64_t n, float* out,
            bool continued) {
  hps_lookup_int64(model, static_cast<int32_t>(table), keys, n, out, continued);
}

void lookup(hps_model* model, int64_t table, const int32_t* keys, int64_t n, float* out,
            bool continued) {
  hps_lookup_int32(model, static_cast<int32_t>(table), keys, n, out, continued);
}

// Asks the kernel for huge pages below a large output. It is often fresh memory at that size, and
// without them the page faults of the first write take longer than the lookup.
void use_huge_pages(const Tensor& tensor) {
  constexpr uintptr_t kHugePage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.data());
  const uintptr_t first = (begin + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t last = (begin + tensor.TotalBytes()) & ~(kHugePage - 1);
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

using ModelReference = std::shared_ptr<hps_model>;

}  // namespace

template <class Key>
class LookupKernel : public OpKernel {
 public:
  explicit LookupKernel(OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("model_name", &model_name_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("ps_config_file", &ps_config_file_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("global_batch_size", &global_batch_size_));
    if (type_string() == "HpsLookup") {
      table_ids_.resize(1);
      emb_vec_sizes_.resize(1);
      OP_REQUIRES_OK(ctx, ctx->GetAttr("table_id", &table_ids_[0]));
      OP_REQUIRES_OK(ctx, ctx->GetAttr("emb_vec_size", &emb_vec_sizes_[0]));
    } else {
      OP_REQUIRES_OK(ctx, ctx->GetAttr("table_ids", &table_ids_));
      OP_REQUIRES_OK(ctx, ctx->GetAttr("emb_vec_sizes", &emb_vec_sizes_));
      OP_REQUIRES(ctx, static_cast<int>(table_ids_.size()) == num_inputs(),
                  absl::InvalidArgumentError("hps_multi_lookup: table_ids needs one id per input"));
    }
  }

  void Compute(OpKernelContext* ctx) override {
    ModelReference model;
    OP_REQUIRES_OK(ctx, find_model(&model));
    std::vector<Part> parts(num_inputs());
    int64_t num_keys = 0;
    for (int i = 0; i < num_inputs(); ++i) {
      const Tensor& ids = ctx->input(i);
      OP_REQUIRES(ctx, ids.dims() >= 1,
                  absl::InvalidArgumentError(absl::StrCat(
                      "hps_lookup: ids must have at least one dimension, got ",
                      ids.shape().DebugString(), "; pass [batch] or [batch, hotness]")));
      TensorShape shape = ids.shape();
      OP_REQUIRES_OK(ctx, shape.AddDimWithStatus(emb_vec_sizes_[i]));
      Tensor* embeddings;
      OP_REQUIRES_OK(ctx, ctx->allocate_output(i, shape, &embeddings));
      parts[i] = {num_keys, ids.NumElements(), ids.flat<Key>().data(),
                  embeddings->flat<float>().data()};
      num_keys += ids.NumElements();
      if (embeddings->TotalBytes() >= kFreshMemory) use_huge_pages(*embeddings);
    }
    if (num_keys == 0) return;
    const auto work = [&](int64_t begin, int64_t end) {
      for (size_t i = 0; i < parts.size(); ++i) {
        const Part& part = parts[i];
        const int64_t first = std::max(begin, part.first_key);
        const int64_t last = std::min(end, part.first_key + part.num_keys);
        if (first >= last) continue;
        const int64_t skip = first - part.first_key;
        lookup(model.get(), table_ids_[i], part.keys + skip, last - first,
               part.out + skip * emb_vec_sizes_[i], skip != 0);
      }
    };
    const auto* workers = ctx->device()->tensorflow_cpu_worker_threads();
    if (num_keys < 2 * kGrain || workers->num_threads == 1) {
      work(0, num_keys);
      return;
    }
    const int64_t block =
        std::max(kGrain, (num_keys + 4 * workers->num_threads - 1) / (4 * workers->num_threads));
    workers->workers->ParallelFor(
        num_keys, tsl::thread::ThreadPool::SchedulingParams::Fixed(block), work);
  }

 private:
  struct Part {
    int64_t first_key;
    int64_t num_keys;
    const Key* keys;
    float* out;
  };

  // The model of this operation, initialised where it was not, and checked against the attributes.
  absl::Status find_model(ModelReference* model) {
    const uint64_t generation = hps_registry_generation();
    {
      tensorflow::tf_shared_lock lock(mutex_);
      if (model_ && generation_ == generation) {
        *model = model_;
        return absl::OkStatus();
      }
    }
    hps_error error;
    ModelReference found;
    // A file that the layer names is compared with what the process was initialised from.
    if (ps_config_file_.empty()) found = get_model();
    if (!found) {
      const hps_status status =
          hps_initialize(model_name_.c_str(), ps_config_file_.c_str(), global_batch_size_, &error);
      if (status != HPS_OK) {
        return absl::Status(static_cast<absl::StatusCode>(status),
                            absl::StrCat("hps: model ", model_name_, ": ", error.text));
      }
      found = get_model();
    }
    if (!found) {
      return absl::InternalError(absl::StrCat("hps: model ", model_name_, " was not registered"));
    }
    TF_RETURN_IF_ERROR(check(found.get()));
    tensorflow::mutex_lock lock(mutex_);
    model_ = found;
    generation_ = generation;
    *model = std::move(found);
    return absl::OkStatus();
  }

  ModelReference get_model() const {
    hps_model* const model = hps_registry_get(model_name_.c_str());
    return model == nullptr ? nullptr : ModelReference(model, hps_model_release);
  }

  absl::Status check(const hps_model* model) const {
    for (size_t i = 0; i < table_ids_.size(); ++i) {
      const int32_t num_tables = hps_model_num_tables(model);
      if (table_ids_[i] < 0 || table_ids_[i] >= num_tables) {
        return absl::InvalidArgumentError(absl::StrCat(
            "hps: model ", model_name_, " has ", num_tables, " tables, and table_id is ",
            table_ids_[i], "; it must be in [0, ", num_tables - 1, "]"));
      }
      hps_table_facts facts;
      hps_model_table_facts(model, static_cast<int32_t>(table_ids_[i]), &facts);
      if (static_cast<int64_t>(facts.embedding_dim) != emb_vec_sizes_[i]) {
        return absl::InvalidArgumentError(absl::StrCat(
            "hps: table ", table_ids_[i], " of model ", model_name_, " has vectors of ",
            facts.embedding_dim, " values, and emb_vec_size is ", emb_vec_sizes_[i]));
      }
    }
    return absl::OkStatus();
  }

  std::string model_name_;
  std::string ps_config_file_;
  int64_t global_batch_size_;
  std::vector<int64_t> table_ids_;
  std::vector<int64_t> emb_vec_sizes_;
  tensorflow::mutex mutex_;  // guards what follows; held for a copy of the reference only
  ModelReference model_;
  uint64_t generation_ = 0;
};

#define REGISTER_LOOKUP(Key)                                                               \
  REGISTER_KERNEL_BUILDER(                                                                 \
      Name("HpsLookup").Device(tensorflow::DEVICE_CPU).TypeConstraint<Key>("Tkeys"),       \
      LookupKernel<Key>);                                                                  \
  REGISTER_KERNEL_BUILDER(                                                                 \
      Name("HpsMultiLookup").Device(tensorflow::DEVICE_CPU).TypeConstraint<Key>("Tkeys"),  \
      LookupKernel<Key>)
REGISTER_LOOKUP(int32_t);
REGISTER_LOOKUP(int64_t);
#undef REGISTER_LOOKUP

}  // namespace hps
