// What the kernels of HpsConcatLookup share: its layout, and lookups on the host into it.
#ifndef HPSBENCH_HPS_NATIVE_CONCAT_LOOKUP_KERNEL_H_
#define HPSBENCH_HPS_NATIVE_CONCAT_LOOKUP_KERNEL_H_

#include <algorithm>
#include <vector>

#include "absl/strings/str_join.h"
#include "lookup_kernel.h"

namespace hps {

// Fails unless a sample's `width` values can be of this shape; the empty one stands for [width].
inline absl::Status check_sample_shape(const std::vector<int64_t>& shape, int64_t width) {
  // An output has the samples' axis too, and a product of any numbers could overflow.
  bool fits = shape.size() + 1 < TensorShape::MaxDimensions();
  int64_t rest = width;
  for (const int64_t size : shape) {
    fits = fits && size > 0 && rest % size == 0;
    if (fits) rest /= size;
  }
  if (shape.empty() || (fits && rest == 1)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("hps_concat_lookup: sample_shape [",
                                                 absl::StrJoin(shape, ","),
                                                 "] is not one of width ", width));
}

// The output is a matrix with a row per sample, or has the same values in a `sample_shape`. In the
// matrix a table has as many columns as its width: the vectors of one or more keys, one after
// another. There may be columns of no table.
template <class Key>
class ConcatLookupKernel : public LookupKernel<Key, float> {
 public:
  explicit ConcatLookupKernel(OpKernelConstruction* ctx) : LookupKernel<Key, float>(ctx) {
    OP_REQUIRES_OK(ctx, ctx->status());  // of the class above
    std::vector<int64_t> widths;
    std::vector<int64_t> first_columns;
    int64_t width;
    std::vector<int64_t> sample_shape;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("widths", &widths));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("first_columns", &first_columns));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("width", &width));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("sample_shape", &sample_shape));
    const auto invalid = [this](const auto&... what) {
      return absl::InvalidArgumentError(absl::StrCat(this->operation(), ": ", what...));
    };
    const size_t num_tables = this->table_ids_.size();
    OP_REQUIRES(ctx, widths.size() == num_tables, invalid("widths needs one per input"));
    OP_REQUIRES(ctx, first_columns.empty() || first_columns.size() == num_tables,
                invalid("first_columns needs one per input"));
    int64_t end = 0;
    int64_t of_tables = 0;
    for (size_t t = 0; t < num_tables; ++t) {
      OP_REQUIRES(ctx, widths[t] > 0 && widths[t] % this->emb_vec_sizes_[t] == 0,
                  invalid("width ", widths[t], " is no multiple of emb_vec_size ",
                          this->emb_vec_sizes_[t]));
      const int64_t first = first_columns.empty() ? end : first_columns[t];
      OP_REQUIRES(ctx, first >= end,
                  invalid("columns of ids ", t, " begin at ", first, ", before those that end at ",
                          end));
      blocks_.push_back({static_cast<int>(t), widths[t], first,
                         widths[t] / this->emb_vec_sizes_[t]});
      end = first + widths[t];
      of_tables += widths[t];
    }
    width_ = width == 0 ? end : width;
    OP_REQUIRES(ctx, end <= width_, invalid("columns end at ", end, ", beyond width ", width_));
    has_gaps_ = of_tables < width_;
    OP_REQUIRES_OK(ctx, check_sample_shape(sample_shape, width_));
    if (sample_shape.empty()) sample_shape = {width_};
    for (const int64_t size : sample_shape) sample_shape_.AddDim(size);
  }

 protected:
  // Columns of the matrix.
  struct Block {
    int input;
    int64_t width;
    int64_t first_column;
    int64_t keys_per_sample;
  };

  bool has_gaps() const { return has_gaps_; }

  TensorShape output_shape(int64_t num_samples) const {
    TensorShape shape({num_samples});
    shape.AppendShape(sample_shape_);
    return shape;
  }

  // Fails unless all ids are of as many samples.
  absl::Status count_samples(OpKernelContext* ctx, int64_t* num_samples) const {
    for (const Block& block : blocks_) {
      const Tensor& ids = ctx->input(block.input);
      const int64_t values = ids.NumElements() * this->emb_vec_sizes_[block.input];
      if (block.input == 0) *num_samples = values / block.width;
      if (values != *num_samples * block.width) {
        return absl::InvalidArgumentError(absl::StrCat(
            this->operation(), ": ids ", block.input, " of shape ", ids.shape().DebugString(),
            " give ", values, " values, which are not ", *num_samples, " samples of ",
            block.width));
      }
    }
    return absl::OkStatus();
  }

  // Looks up keys in host memory, one pointer per table, and writes the matrix `out` there.
  void look_up_side_by_side(OpKernelContext* ctx, hps_model* model,
                            const std::vector<const Key*>& keys, int64_t num_samples,
                            float* out) const {
    const bool streamed = num_samples * width_ >= kStreamedFloats;
    // Of the values of one block after another, a range writes the samples that begin in it.
    const ClaimedRanges::Work work = [&](int64_t begin, int64_t end) {
      for (const Block& block : blocks_) {
        const int64_t before = num_samples * block.first_column;
        const int64_t first = first_sample(block, begin - before, num_samples);
        const int64_t count = first_sample(block, end - before, num_samples) - first;
        if (count == 0) continue;
        const hps_destination to = {out + first * width_ + block.first_column,
                                    static_cast<uint64_t>(block.keys_per_sample),
                                    static_cast<uint64_t>(width_), streamed};
        this->lookup(model, this->table_ids_[block.input],
                     keys[block.input] + first * block.keys_per_sample,
                     count * block.keys_per_sample, to, first != 0);
      }
    };
    this->share_out(ctx, num_samples * width_, kGrainFloats, work);
  }

  std::vector<Block> blocks_;  // in the order of their columns
  int64_t width_ = 0;

 private:
  // Values per piece of work: enough to pay for handing it to another thread.
  static constexpr int64_t kGrainFloats = 1 << 14;
  // From this size on an output goes past the caches: it would push out the tables' rows, and not
  // stay itself.
  static constexpr int64_t kStreamedFloats = 2 << 20;

  // The first sample of a block that begins at one of its values from number `value` on.
  static int64_t first_sample(const Block& block, int64_t value, int64_t num_samples) {
    const int64_t sample = (value + block.width - 1) / block.width;
    return std::clamp<int64_t>(sample, 0, num_samples);
  }

  bool has_gaps_ = false;
  TensorShape sample_shape_;
};

}  // namespace hps

#endif  // HPSBENCH_HPS_NATIVE_CONCAT_LOOKUP_KERNEL_H_
