// What the kernels of HpsConcatLookup share: its layout, and lookups on the host into it.
#ifndef HPSBENCH_HPS_NATIVE_CONCAT_LOOKUP_KERNEL_H_
#define HPSBENCH_HPS_NATIVE_CONCAT_LOOKUP_KERNEL_H_

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstring>
#include <vector>

#include "lookup_kernel.h"

namespace hps {

// The output is a matrix with a row per sample. In it a table has as many columns as its width:
// the vectors of one or more keys, one after another.
template <class Key>
class ConcatLookupKernel : public LookupKernel<Key, float> {
 public:
  explicit ConcatLookupKernel(OpKernelConstruction* ctx) : LookupKernel<Key, float>(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("widths", &widths_));
    OP_REQUIRES(ctx, static_cast<int>(widths_.size()) == this->num_inputs(),
                absl::InvalidArgumentError("hps_concat_lookup: widths needs one per input"));
    for (size_t t = 0; t < widths_.size(); ++t) {
      OP_REQUIRES(ctx, widths_[t] > 0 && widths_[t] % this->emb_vec_sizes_[t] == 0,
                  absl::InvalidArgumentError(absl::StrCat(
                      "hps_concat_lookup: width ", widths_[t], " is no multiple of emb_vec_size ",
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
            "hps_concat_lookup: ids ", t, " of shape ", ctx->input(t).shape().DebugString(),
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
    // A piece is as many samples of a table as fit the scratch memory, and at least one.
    const size_t num_tables = widths_.size();
    std::vector<int64_t> first_piece(num_tables + 1);
    for (size_t t = 0; t < num_tables; ++t) {
      const int64_t samples = samples_of_piece(t);
      first_piece[t + 1] = first_piece[t] + (num_samples + samples - 1) / samples;
    }
    const auto work = [&](int64_t begin, int64_t end) {
      size_t t = 0;
      for (int64_t piece = begin; piece < end; ++piece) {
        while (piece >= first_piece[t + 1]) ++t;
        const int64_t first = (piece - first_piece[t]) * samples_of_piece(t);
        const int64_t count = std::min(samples_of_piece(t), num_samples - first);
        write_piece(model, t, keys[t], first, count, out, streamed);
      }
#ifdef __AVX2__
      if (streamed) _mm_sfence();
#endif
    };
    const auto* workers = ctx->device()->tensorflow_cpu_worker_threads();
    const int64_t num_pieces = first_piece.back();
    const int64_t block =
        std::max<int64_t>(2, (num_pieces + 8 * workers->num_threads - 1) / (8 * workers->num_threads));
    workers->workers->ParallelFor(
        num_pieces, tsl::thread::ThreadPool::SchedulingParams::Fixed(block), work);
  }

  std::vector<int64_t> widths_;
  int64_t width_ = 0;  // of all tables

 private:
  // Rows of a piece, before they go to where they belong: half of an L1 cache.
  static constexpr int64_t kScratchFloats = 4096;
  // From this size on an output goes past the caches: it would push out the tables' rows, and not
  // stay itself.
  static constexpr int64_t kStreamedFloats = 2 << 20;

  int64_t samples_of_piece(size_t t) const {
    return std::max<int64_t>(1, kScratchFloats / widths_[t]);
  }

  void write_piece(hps_model* model, size_t t, const Key* keys, int64_t first, int64_t count,
                   float* out, bool streamed) const {
    const int64_t width = widths_[t];
    const int64_t keys_per_sample = width / this->emb_vec_sizes_[t];
    keys += first * keys_per_sample;
    out += first * width_ + first_column_[t];
    if (width > kScratchFloats) {
      this->lookup(model, this->table_ids_[t], keys, keys_per_sample, out, first != 0);
      return;
    }
    alignas(64) float scratch[kScratchFloats];
    this->lookup(model, this->table_ids_[t], keys, count * keys_per_sample, scratch, first != 0);
    for (int64_t s = 0; s < count; ++s, out += width_) {
      if (streamed) {
        stream(out, scratch + s * width, width);
      } else {
        std::memcpy(out, scratch + s * width, width * sizeof(float));
      }
    }
  }

  static void stream(float* out, const float* values, int64_t count) {
#ifdef __AVX2__
    if (count % 8 == 0 && reinterpret_cast<uintptr_t>(out) % 32 == 0) {
      for (int64_t i = 0; i < count; i += 8) {
        _mm256_stream_ps(out + i, _mm256_loadu_ps(values + i));
      }
      return;
    }
#endif
    std::memcpy(out, values, count * sizeof(float));
  }

  std::vector<int64_t> first_column_;
};

}  // namespace hps

#endif  // HPSBENCH_HPS_NATIVE_CONCAT_LOOKUP_KERNEL_H_
