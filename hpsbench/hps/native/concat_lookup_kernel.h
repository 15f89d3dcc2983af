// What the kernels of HpsConcatLookup share: its layout, and lookups on the host into it.
#ifndef HPSBENCH_HPS_NATIVE_CONCAT_LOOKUP_KERNEL_H_
#define HPSBENCH_HPS_NATIVE_CONCAT_LOOKUP_KERNEL_H_

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "lookup_kernel.h"

namespace hps {

// The output is a matrix with a row per sample, made of blocks of columns, one per input. In the
// block of ids are the vectors of one or more keys, one after another; in that of a given tensor are
// its values.
template <class Key>
class ConcatLookupKernel : public LookupKernel<Key, float> {
 public:
  explicit ConcatLookupKernel(OpKernelConstruction* ctx) : LookupKernel<Key, float>(ctx) {
    OP_REQUIRES_OK(ctx, ctx->status());  // of the class above
    std::vector<int64_t> widths;
    std::vector<int64_t> order;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("widths", &widths));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("order", &order));
    OP_REQUIRES(ctx, static_cast<int>(widths.size()) == this->num_inputs(),
                absl::InvalidArgumentError(
                    absl::StrCat(this->operation(), ": widths needs one per input")));
    std::vector<int64_t> numbers(widths.size());
    std::iota(numbers.begin(), numbers.end(), 0);
    if (order.empty()) order = numbers;
    OP_REQUIRES(ctx,
                order.size() == numbers.size() &&
                    std::is_permutation(order.begin(), order.end(), numbers.begin()),
                absl::InvalidArgumentError(absl::StrCat(
                    this->operation(), ": order needs the number of each input once")));
    for (const int64_t input : order) {
      const int64_t width = widths[input];
      const bool is_given = input >= num_tables();
      const int64_t unit = is_given ? 1 : this->emb_vec_sizes_[input];
      OP_REQUIRES(ctx, width > 0 && width % unit == 0,
                  absl::InvalidArgumentError(absl::StrCat(
                      this->operation(), ": width ", width,
                      is_given ? " is below 1" : " is no multiple of emb_vec_size ",
                      is_given ? "" : absl::StrCat(unit))));
      blocks_.push_back({static_cast<int>(input), width, width_, is_given ? 0 : width / unit});
      width_ += width;
    }
  }

 protected:
  // Columns of the matrix.
  struct Block {
    int input;
    int64_t width;
    int64_t first_column;
    int64_t keys_per_sample;  // 0 where the input is given

    bool is_given() const { return keys_per_sample == 0; }
  };

  int num_tables() const { return static_cast<int>(this->table_ids_.size()); }

  // Fails unless all inputs are of as many samples.
  absl::Status count_samples(OpKernelContext* ctx, int64_t* num_samples) const {
    bool is_first = true;
    for (const Block& block : blocks_) {
      const Tensor& input = ctx->input(block.input);
      const int64_t values =
          input.NumElements() * (block.is_given() ? 1 : this->emb_vec_sizes_[block.input]);
      if (std::exchange(is_first, false)) *num_samples = values / block.width;
      if (values != *num_samples * block.width) {
        const auto name = block.is_given() ? absl::StrCat("given ", block.input - num_tables())
                                           : absl::StrCat("ids ", block.input);
        return absl::InvalidArgumentError(absl::StrCat(
            this->operation(), ": ", name, " of shape ", input.shape().DebugString(), " give ",
            values, " values, which are not ", *num_samples, " samples of ", block.width));
      }
    }
    return absl::OkStatus();
  }

  // Writes the matrix `out`, in host memory. There are the inputs too: `keys` by number of the table,
  // and `given` values by number of the tensor.
  void look_up_side_by_side(OpKernelContext* ctx, hps_model* model,
                            const std::vector<const Key*>& keys,
                            const std::vector<const float*>& given, int64_t num_samples,
                            float* out) const {
    const bool streamed = num_samples * width_ >= kStreamedFloats;
    // Of the values of one block after another, a range writes the samples that begin in it.
    const ClaimedRanges::Work work = [&](int64_t begin, int64_t end) {
      for (const Block& block : blocks_) {
        const int64_t before = num_samples * block.first_column;
        const int64_t first = first_sample(block, begin - before, num_samples);
        const int64_t count = first_sample(block, end - before, num_samples) - first;
        if (count == 0) continue;
        float* const to = out + first * width_ + block.first_column;
        if (block.is_given()) {
          copy(given[block.input - num_tables()] + first * block.width, block.width, count, to);
        } else {
          const hps_destination rows = {to, static_cast<uint64_t>(block.keys_per_sample),
                                        static_cast<uint64_t>(width_), streamed};
          this->lookup(model, this->table_ids_[block.input],
                       keys[block.input] + first * block.keys_per_sample,
                       count * block.keys_per_sample, rows, first != 0);
        }
      }
    };
    this->share_out(ctx, num_samples * width_, kGrainFloats, work);
  }

  std::vector<Block> blocks_;  // in the order of their columns
  int64_t width_ = 0;          // of all blocks

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

  void copy(const float* values, int64_t width, int64_t num_samples, float* to) const {
    for (int64_t i = 0; i < num_samples; ++i) {
      std::memcpy(to + i * width_, values + i * width, width * sizeof(float));
    }
  }
};

}  // namespace hps

#endif  // HPSBENCH_HPS_NATIVE_CONCAT_LOOKUP_KERNEL_H_
