// DLRM's dot interaction in one pass: every vector is read once, every product written once.
//
// A warp computes one sample, [rows, dim] times its transpose, on tensor cores, from registers. It
// needs no shared memory for that: a dot product does not depend on the order of its terms, so 16
// bytes of a row, as a thread loads them, may stand for whichever terms the thread has in an
// instruction's operands, where all rows do the same. And a thread has the same terms of row r in
// the left operand as of column r in the right one, so one load serves both. Only products on and
// below the diagonal are computed, in tiles of 16 rows by 8 columns.
#include "gpu_interaction.h"

#include <string>

#include "gpu_attached.h"
#include "gpu_rows.cuh"

namespace hps::gpu {

namespace {

constexpr int kTileRows = 16;
constexpr int kBlockRows = 8;    // two blocks of rows make a tile's rows, one makes its columns
constexpr int kPiecesAcross = 4;  // pieces of 16 bytes of one row, in a warp's load
constexpr int kMaxTiles = 4;
constexpr uint64_t kWord = sizeof(uint4);
constexpr uint64_t kMaxRowBytes = (48 << 10) / kWarpsPerBlock;  // shared memory of any block

// A thread's terms of one row in one instruction.
struct Terms {
  uint32_t low, high;
};
// float32 values as sums of two of TensorFloat-32's precision.
struct FloatTerms {
  Terms big, small;
};

__device__ inline Terms terms(uint32_t low, uint32_t high, const __half*) {
  return {low, high};
}

__device__ inline uint32_t as_tensor_float(float value) {
  uint32_t rounded = 0;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
#endif
  return rounded;
}

__device__ inline uint32_t rest_of(uint32_t value, uint32_t big) {
  return as_tensor_float(__uint_as_float(value) - __uint_as_float(big));
}

__device__ inline FloatTerms terms(uint32_t low, uint32_t high, const float*) {
  const Terms big = {as_tensor_float(__uint_as_float(low)),
                     as_tensor_float(__uint_as_float(high))};
  return {big, {rest_of(low, big.low), rest_of(high, big.high)}};
}

// Adds the products of a tile: of rows `top` (0 to 7) and `bottom` (8 to 15) with columns `column`.
__device__ inline void multiply(float (&sums)[4], Terms top, Terms bottom, Terms column) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(top.low), "r"(bottom.low), "r"(top.high), "r"(bottom.high), "r"(column.low),
        "r"(column.high));
#endif
}

__device__ inline void multiply_tensor_floats(float (&sums)[4], Terms top, Terms bottom,
                                              Terms column) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(top.low), "r"(bottom.low), "r"(top.high), "r"(bottom.high), "r"(column.low),
        "r"(column.high));
#endif
}

__device__ inline void multiply(float (&sums)[4], const FloatTerms& top, const FloatTerms& bottom,
                                const FloatTerms& column) {
  float some[4] = {};  // tensor cores cut where they add, and these are shorter sums
  multiply_tensor_floats(some, top.small, bottom.small, column.big);
  multiply_tensor_floats(some, top.big, bottom.big, column.small);
  multiply_tensor_floats(some, top.big, bottom.big, column.big);
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i] += some[i];
}

// Where a tile of 16 rows begins among the tiles of 8 columns that are computed.
__host__ __device__ constexpr int first_tile(int rows_tile) { return rows_tile * (rows_tile + 1); }

__device__ inline float from_sum(float sum, const float*) { return sum; }
__device__ inline __half from_sum(float sum, const __half*) { return __float2half_rn(sum); }

__host__ __device__ constexpr uint64_t words(uint64_t num_bytes) {
  return (num_bytes + kWord - 1) / kWord;
}

// For up to 16 * kTiles rows.
template <class Value, int kTiles>
__global__ void __launch_bounds__(kThreads) interact(const hps_gpu_interaction in) {
  constexpr Value* kType = nullptr;
  constexpr int kBlocks = 2 * kTiles;
  constexpr int kPieceValues = kWord / sizeof(Value);
  constexpr int kLoads = kTiles <= 2 ? 4 : 2;  // of each row before the first is needed
  extern __shared__ uint4 outputs[];

  const uint64_t sample = warp_number();
  if (sample >= in.num_samples) return;
  const int lane = lane_number(), group = lane / kPiecesAcross, across = lane % kPiecesAcross;
  const int num_rows = 1 + in.slots, num_pieces = in.dim / kPieceValues;
  const uint64_t out_words = words(in.out_width * sizeof(Value));
  uint4* const staged = outputs + threadIdx.x / kWarp * out_words;
  Value* const staged_values = reinterpret_cast<Value*>(staged);

  const uint4* rows[kBlocks];
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const int row = block * kBlockRows + group;
    const Value* values = nullptr;
    if (row == 0) {
      values = static_cast<const Value*>(in.dense) + sample * in.dense_stride;
    } else if (row < num_rows) {
      values = static_cast<const Value*>(in.vectors) + (sample * in.slots + row - 1) * in.dim;
    }
    rows[block] = reinterpret_cast<const uint4*>(values);
  }

  float sums[first_tile(kTiles)][4] = {};
  for (int first = 0; first < num_pieces; first += kLoads * kPiecesAcross) {
    uint4 pieces[kLoads][kBlocks];
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const int piece = first + load * kPiecesAcross + across;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        pieces[load][block] = rows[block] != nullptr && piece < num_pieces
                                  ? __ldg(rows[block] + piece)
                                  : uint4{0, 0, 0, 0};
      }
    }
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const int piece = first + load * kPiecesAcross + across;
      if (group == 0 && piece < num_pieces) staged[piece] = pieces[load][0];  // the dense vector
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        decltype(terms(0, 0, kType)) of[kBlocks];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          const uint4& four = pieces[load][block];
          of[block] = half == 0 ? terms(four.x, four.y, kType) : terms(four.z, four.w, kType);
        }
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int column = 0; column < 2 * tile + 2; ++column) {
            multiply(sums[first_tile(tile) + column], of[2 * tile], of[2 * tile + 1], of[column]);
          }
        }
      }
    }
  }

  // A thread has two neighbours in a row, and the two that are 8 rows below.
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int block = 0; block < 2 * tile + 2; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = tile * kTileRows + i / 2 * kBlockRows + group;
        const int column = block * kBlockRows + across * 2 + i % 2;
        if (column < row && row < num_rows) {
          staged_values[in.dim + row * (row - 1) / 2 + column] =
              from_sum(sums[first_tile(tile) + block][i], kType);
        }
      }
    }
  }
  for (int i = in.dim + num_rows * (num_rows - 1) / 2 + lane; i < in.out_width; i += kWarp) {
    staged_values[i] = from_sum(0, kType);
  }
  __syncwarp();

  Value* const out = static_cast<Value*>(in.out) + sample * in.out_width;
  if (in.out_width % kPieceValues == 0) {
    for (int i = lane; i < in.out_width / kPieceValues; i += kWarp) {
      reinterpret_cast<uint4*>(out)[i] = staged[i];
    }
  } else {
    for (int i = lane; i < in.out_width; i += kWarp) out[i] = staged_values[i];
  }
}

template <class Value, int kTiles = 1>
void launch(const hps_gpu_interaction& in, cudaStream_t stream) {
  if constexpr (kTiles < kMaxTiles) {
    if (1 + in.slots > kTiles * kTileRows) return launch<Value, kTiles + 1>(in, stream);
  }
  const uint64_t blocks = (in.num_samples + kWarpsPerBlock - 1) / kWarpsPerBlock;
  const uint64_t shared_bytes = kWarpsPerBlock * kWord * words(in.out_width * sizeof(Value));
  interact<Value, kTiles><<<static_cast<unsigned>(blocks), kThreads, shared_bytes, stream>>>(in);
  check_launch("interact");
}

void check_shape(const hps_gpu_interaction& in) {
  const uint64_t bytes = in.type == HPS_FLOAT16 ? sizeof(__half) : sizeof(float);
  const auto fail = [](const std::string& text) {
    throw Error{HPS_INVALID_ARGUMENT, "dot interaction: " + text};
  };
  if (in.slots < 1 || in.slots >= kMaxTiles * kTileRows) {
    fail("1 to 63 slots, not " + std::to_string(in.slots));
  }
  if (in.dim < 1 || in.dim * bytes % kWord != 0 || in.dense_stride * bytes % kWord != 0) {
    fail("rows must begin at multiples of 16 bytes; the vectors have " + std::to_string(in.dim) +
         " values, and the dense ones are " + std::to_string(in.dense_stride) + " values apart");
  }
  const int least = in.dim + in.slots * (in.slots + 1) / 2;
  if (in.out_width < least || in.out_width * bytes > kMaxRowBytes) {
    fail(std::to_string(least) + " to " + std::to_string(kMaxRowBytes / bytes) +
         " output values per sample, not " + std::to_string(in.out_width));
  }
  if (!is_aligned(in.dense) || !is_aligned(in.vectors) || !is_aligned(in.out)) {
    fail("memory must begin at a multiple of 16 bytes");
  }
}

void check_tensor_cores(int device) {
  int major;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "tell the GPU's compute capability");
  if (major < 8) {
    throw Error{HPS_FAILED_PRECONDITION,
                "dot interaction: GPU " + std::to_string(device) +
                    " has no tensor cores of compute capability 8.0 or above"};
  }
}

}  // namespace

}  // namespace hps::gpu

hps_status hps_gpu_interact(int32_t device, const hps_gpu_interaction* interaction, void* stream,
                            hps_error* error) {
  return hps::gpu::guarded(error, [&] {
    using namespace hps::gpu;
    check_shape(*interaction);
    check_tensor_cores(device);
    if (interaction->num_samples == 0) return;
    const DeviceScope scope(device);
    const auto its_stream = static_cast<cudaStream_t>(stream);
    if (interaction->type == HPS_FLOAT16) {
      launch<__half>(*interaction, its_stream);
    } else {
      launch<float>(*interaction, its_stream);
    }
  });
}
