// What the operations' kernels share: their attributes, their model, their outputs, and lookups on
// the host.
#ifndef HPSBENCH_HPS_NATIVE_LOOKUP_KERNEL_H_
#define HPSBENCH_HPS_NATIVE_LOOKUP_KERNEL_H_

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "Eigen/Core"
#include "claimed_ranges.h"
#include "core.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace hps {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

using ModelReference = std::shared_ptr<hps_model>;

template <class Key, class Row>
class LookupKernel : public OpKernel {
 public:
  explicit LookupKernel(OpKernelConstruction* ctx)
      : OpKernel(ctx),
        operation_(type_string() == "HpsLookup"        ? "hps_lookup"
                   : type_string() == "HpsMultiLookup" ? "hps_multi_lookup"
                                                       : "hps_concat_lookup") {
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
                  absl::InvalidArgumentError(
                      absl::StrCat(operation(), ": table_ids needs one id per input")));
      OP_REQUIRES(ctx, static_cast<int>(emb_vec_sizes_.size()) == num_inputs(),
                  absl::InvalidArgumentError(
                      absl::StrCat(operation(), ": emb_vec_sizes needs one size per input")));
    }
  }

 protected:
  // The operation's, as Python calls it.
  const std::string& operation() const { return operation_; }

  // The ids of one input, and where their rows go.
  struct Part {
    int64_t first_key;  // of all inputs, one after another
    int64_t num_keys;
    const Key* keys;
    Row* out;
  };

  // Allocates all outputs, and describes what is to be looked up.
  absl::Status allocate_outputs(OpKernelContext* ctx, std::vector<Part>* parts) const {
    int64_t num_keys = 0;
    for (int i = 0; i < num_inputs(); ++i) {
      const Tensor& ids = ctx->input(i);
      if (ids.dims() < 1) {
        return absl::InvalidArgumentError(
            absl::StrCat(operation(), ": ids must have at least one dimension, got ",
                         ids.shape().DebugString(), "; pass [batch] or [batch, hotness]"));
      }
      TensorShape shape = ids.shape();
      TF_RETURN_IF_ERROR(shape.AddDimWithStatus(emb_vec_sizes_[i]));
      Tensor* embeddings;
      TF_RETURN_IF_ERROR(ctx->allocate_output(i, shape, &embeddings));
      parts->push_back({num_keys, ids.NumElements(), ids.flat<Key>().data(),
                        embeddings->flat<Row>().data()});
      num_keys += ids.NumElements();
    }
    return absl::OkStatus();
  }

  // Looks all parts up, whose keys and outputs are in host memory.
  void look_up(OpKernelContext* ctx, hps_model* model, const std::vector<Part>& parts) const {
    const int64_t num_keys = parts.back().first_key + parts.back().num_keys;
    if (num_keys == 0) return;
    const ClaimedRanges::Work work = [&](int64_t begin, int64_t end) {
      for (size_t i = 0; i < parts.size(); ++i) {
        const Part& part = parts[i];
        const int64_t first = std::max(begin, part.first_key);
        const int64_t last = std::min(end, part.first_key + part.num_keys);
        if (first >= last) continue;
        const int64_t skip = first - part.first_key;
        write_rows(model, static_cast<int>(i), part.keys + skip, last - first,
                   part.out + skip * emb_vec_sizes_[i], skip != 0);
      }
    };
    share_out(ctx, num_keys, kGrain, work);
  }

  // Calls `work` for ranges that cover [0, total), each at least `grain` long where possible: on the
  // calling thread, and on those of TensorFlow that come to help.
  static void share_out(OpKernelContext* ctx, int64_t total, int64_t grain,
                        const ClaimedRanges::Work& work) {
    const auto* workers = ctx->device()->tensorflow_cpu_worker_threads();
    const int64_t num_threads = workers->num_threads;
    if (total < 2 * grain || num_threads == 1) {
      work(0, total);
      return;
    }
    const int64_t step =
        std::max(grain, (total + kRangesPerThread * num_threads - 1) / (kRangesPerThread * num_threads));
    const auto ranges = std::make_shared<ClaimedRanges>(work, total, step);
    const int64_t num_helpers = std::min<int64_t>(num_threads, ranges->num_ranges()) - 1;
    for (int64_t i = 0; i < num_helpers; ++i) {
      workers->workers->Schedule([ranges] { ranges->help(); });
    }
    ranges->finish();
  }

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
    // Another thread may take away at once what is initialised, and be about to do so again.
    for (int attempt = 0; !found && attempt < kInitializations; ++attempt) {
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

  static void lookup(hps_model* model, int64_t table, const int64_t* keys, int64_t n,
                     const hps_destination& out, bool continued) {
    hps_lookup_int64(model, static_cast<int32_t>(table), keys, n, &out, continued);
  }
  static void lookup(hps_model* model, int64_t table, const int32_t* keys, int64_t n,
                     const hps_destination& out, bool continued) {
    hps_lookup_int32(model, static_cast<int32_t>(table), keys, n, &out, continued);
  }

  std::vector<int64_t> table_ids_;
  std::vector<int64_t> emb_vec_sizes_;

 private:
  static constexpr int kInitializations = 100;
  // Keys per piece of work: enough to pay for handing it to another thread.
  static constexpr int64_t kGrain = 512;
  // Pieces of work per thread: who starts late or is interrupted leaves the rest to others.
  static constexpr int64_t kRangesPerThread = 8;

  // Bytes of float32 rows that are looked up before they are converted: they stay in the cache.
  static constexpr int64_t kConvertedAtOnce = 64 << 10;

  static hps_destination one_after_another(float* rows, int64_t num_keys) {
    return {rows, static_cast<uint64_t>(num_keys), 0, 0};
  }
  void write_rows(hps_model* model, int input, const Key* keys, int64_t n, float* out,
                  bool continued) const {
    lookup(model, table_ids_[input], keys, n, one_after_another(out, n), continued);
  }
  void write_rows(hps_model* model, int input, const Key* keys, int64_t n, Eigen::half* out,
                  bool continued) const {
    using Halves = Eigen::Array<Eigen::half, Eigen::Dynamic, 1>;
    const int64_t dim = emb_vec_sizes_[input];
    const int64_t at_once =
        std::max<int64_t>(1, kConvertedAtOnce / (dim * static_cast<int64_t>(sizeof(float))));
    Eigen::ArrayXf rows(std::min(n, at_once) * dim);
    for (int64_t begin = 0; begin < n; begin += at_once) {
      const int64_t count = std::min(at_once, n - begin);
      lookup(model, table_ids_[input], keys + begin, count, one_after_another(rows.data(), count),
             continued || begin != 0);
      Eigen::Map<Halves>(out + begin * dim, count * dim) =
          rows.head(count * dim).template cast<Eigen::half>();
    }
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

  const std::string operation_;
  std::string model_name_;
  std::string ps_config_file_;
  int64_t global_batch_size_;
  tensorflow::mutex mutex_;  // guards what follows; held for a copy of the reference only
  ModelReference model_;
  uint64_t generation_ = 0;
};

}  // namespace hps

#endif  // HPSBENCH_HPS_NATIVE_LOOKUP_KERNEL_H_
