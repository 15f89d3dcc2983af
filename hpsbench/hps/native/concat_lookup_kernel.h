// What the kernels of HpsConcatLookup share: its layout, and lookups on the host into it.
#ifndef HPSBENCH_HPS_NATIVE_CONCAT_LOOKUP_KERNEL_H_
#define HPSBENCH_HPS_NATIVE_CONCAT_LOOKUP_KERNEL_H_

#include <algorithm>
#include <vector>

#include "lookup_kernel.h"

namespace hps {

// The output is a matrix with a row per sample. In it a table has as many columns as its width:
// the vectors of one or more keys, one after another.
template <class Key>
class ConcatLookupKernel : public LookupKernel<Key, float> {
 public:
  explicit ConcatLookupKernel(OpKernelConstruction* ctx) : LookupKernel<Key, float>(ctx) {
    OP_REQUIRES_OK(ctx, ctx->status());  // of the class above
    OP_REQUIRES_OK(ctx, ctx->GetAttr("widths", &widths_));
    OP_REQUIRES(ctx, static_cast<int>(widths_.size()) == this->num_inputs(),
                absl::InvalidArgumentError(
                    absl::StrCat(this->operation(), ": widths needs one per input")));
    for (size_t t = 0; t < widths_.size(); ++t) {
      OP_REQUIRES(ctx, widths_[t] > 0 && widths_[t] % this->emb_vec_sizes_[t] == 0,
                  absl::InvalidArgumentError(absl::StrCat(
                      this->operation(), ": width ", widths_[t], " is no multiple of emb_vec_size ",
                      this->emb_vec_sizes_[t])));
      first_column_.push_back(width_);
      width_ += widths_[t];
    }
  }

 protected:
  // Fails unless all ids are of as many samples.
  absl::Status count_samples(OpKernelContext* ctx, int64_t* num_samples) const {
    for (int t = 0; t < this->num_inputs(); ++t) {
      const int64_t values = ctx->input(t).NumElements() * this->emb_vec_sizes_[t];
      if (t == 0) *num_samples = values / widths_[0];
      if (values != *num_samples * widths_[t]) {
        return absl::InvalidArgumentError(absl::StrCat(
            this->operation(), ": ids ", t, " of shape ", ctx->input(t).shape().DebugString(),
            " give ", values, " values, which are not ", *num_samples, " samples of ", widths_[t]));
      }
    }
    return absl::OkStatus();
  }

  // Looks up keys in host memory, one pointer per table, and writes the matrix `out` there.
  void look_up_side_by_side(OpKernelContext* ctx, hps_model* model,
                            const std::vector<const Key*>& keys, int64_t num_samples,
                            float* out) const {
    const bool streamed = num_samples * width_ >= kStreamedFloats;
    // Of the values of one table after another, a range writes the samples that begin in it.
    const ClaimedRanges::Work work = [&](int64_t begin, int64_t end) {
      for (size_t t = 0; t < widths_.size(); ++t) {
        const int64_t before = num_samples * first_column_[t];
        const int64_t first = first_sample(t, begin - before, num_samples);
        const int64_t count = first_sample(t, end - before, num_samples) - first;
        if (count == 0) continue;
        const int64_t keys_per_sample = widths_[t] / this->emb_vec_sizes_[t];
        const hps_destination to = {out + first * width_ + first_column_[t],
                                    static_cast<uint64_t>(keys_per_sample),
                                    static_cast<uint64_t>(width_), streamed};
        this->lookup(model, this->table_ids_[t], keys[t] + first * keys_per_sample,
                     count * keys_per_sample, to, first != 0);
      }
    };
    this->share_out(ctx, num_samples * width_, kGrainFloats, work);
  }

  std::vector<int64_t> widths_;
  int64_t width_ = 0;  // of all tables

 private:
  // Values per piece of work: enough to pay for handing it to another thread.
  static constexpr int64_t kGrainFloats = 1 << 14;
  // From this size on an output goes past the caches: it would push out the tables' rows, and not
  // stay itself.
  static constexpr int64_t kStreamedFloats = 2 << 20;

  // The first sample of a table that begins at one of its values from number `value` on.
  int64_t first_sample(size_t t, int64_t value, int64_t num_samples) const {
    const int64_t sample = (value + widths_[t] - 1) / widths_[t];
    return std::clamp<int64_t>(sample, 0, num_samples);
  }

  std::vector<int64_t> first_column_;
};

}  // namespace hps

#endif  // HPSBENCH_HPS_NATIVE_CONCAT_LOOKUP_KERNEL_H_
