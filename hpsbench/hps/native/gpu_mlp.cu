// The ends of a multilayer perceptron: small beside its products, and bound by memory.
#include "gpu_mlp.h"

#include <string>

#include "gpu_attached.h"
#include "gpu_rows.cuh"

namespace hps::gpu {

namespace {

__device__ inline float as_float(float value) { return value; }
__device__ inline float as_float(__half value) { return __half2float(value); }

// A thread computes one value.
template <class Value>
__global__ void __launch_bounds__(kThreads) widen(const hps_gpu_widening in) {
  const uint64_t i = blockIdx.x * uint64_t{kThreads} + threadIdx.x;
  const uint64_t sample = i / in.out_width, column = i % in.out_width;
  if (sample >= in.num_samples) return;
  Value* const out = static_cast<Value*>(in.out);
  const float value =
      column < in.num_features ? in.features[sample * in.num_features + column] : 0.0f;
  out[i] = as_output(value, out);
}

// A warp computes one sample, in pieces of Word.
template <class Value, class Word>
__global__ void __launch_bounds__(kThreads) logistic(const hps_gpu_last_unit in) {
  constexpr int kWordValues = sizeof(Word) / sizeof(Value);
  const uint64_t sample = warp_number();
  if (sample >= in.num_samples) return;
  const Word* const hidden =
      reinterpret_cast<const Word*>(static_cast<const Value*>(in.hidden) + sample * in.width);
  const Word* const kernel = static_cast<const Word*>(in.kernel);
  float sum = 0;
  for (int i = lane_number(); i < in.width / kWordValues; i += kWarp) {
    const Word left = __ldg(hidden + i), right = __ldg(kernel + i);
#pragma unroll
    for (int k = 0; k < kWordValues; ++k) {
      sum += as_float(reinterpret_cast<const Value*>(&left)[k]) *
             as_float(reinterpret_cast<const Value*>(&right)[k]);
    }
  }
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, distance);
  }
  if (lane_number() == 0) in.out[sample] = 1 / (1 + expf(-(sum + in.bias)));
}

template <class Value>
void launch_widen(const hps_gpu_widening& in, cudaStream_t stream) {
  const uint64_t blocks = (in.num_samples * in.out_width + kThreads - 1) / kThreads;
  widen<Value><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(in);
  check_launch("widen");
}

template <class Value>
void launch_logistic(const hps_gpu_last_unit& in, cudaStream_t stream) {
  const unsigned blocks = num_blocks(in.num_samples);
  if (in.width * sizeof(Value) % sizeof(uint4) == 0 && is_aligned(in.hidden) &&
      is_aligned(in.kernel)) {
    logistic<Value, uint4><<<blocks, kThreads, 0, stream>>>(in);
  } else {
    logistic<Value, Value><<<blocks, kThreads, 0, stream>>>(in);
  }
  check_launch("logistic");
}

void check_widths(bool fits, const std::string& problem) {
  if (!fits) throw Error{HPS_INVALID_ARGUMENT, "multilayer perceptron: " + problem};
}

}  // namespace

}  // namespace hps::gpu

hps_status hps_gpu_widen(int32_t device, const hps_gpu_widening* widening, void* stream,
                         hps_error* error) {
  return hps::gpu::guarded(error, [&] {
    using namespace hps::gpu;
    const hps_gpu_widening& in = *widening;
    check_widths(in.num_features >= 1 && in.num_features <= in.out_width,
                 std::to_string(in.num_features) + " features do not fit a width of " +
                     std::to_string(in.out_width));
    if (in.num_samples == 0) return;
    const DeviceScope scope(device);
    const auto its_stream = static_cast<cudaStream_t>(stream);
    in.type == HPS_FLOAT16 ? launch_widen<__half>(in, its_stream)
                           : launch_widen<float>(in, its_stream);
  });
}

hps_status hps_gpu_logistic(int32_t device, const hps_gpu_last_unit* unit, void* stream,
                            hps_error* error) {
  return hps::gpu::guarded(error, [&] {
    using namespace hps::gpu;
    const hps_gpu_last_unit& in = *unit;
    check_widths(in.width >= 1, "the last unit has " + std::to_string(in.width) + " inputs");
    if (in.num_samples == 0) return;
    const DeviceScope scope(device);
    const auto its_stream = static_cast<cudaStream_t>(stream);
    in.type == HPS_FLOAT16 ? launch_logistic<__half>(in, its_stream)
                           : launch_logistic<float>(in, its_stream);
  });
}
