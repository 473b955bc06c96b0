// Products over all steps of a recurrent layer.
//
// The vendor's library forms them, through torch. But it knows torch's switch for matrix products alone:
// where that lets float32 round to TF32 and the switch for recurrent layers does not, a plain kernel does it.
#include "binding/matmul.h"
#include "cuda/device/blocks.cuh"
#include "cuda/recurrent/recurrent.cuh"

namespace pyops::cuda {
namespace {

constexpr int kProductThreads = 256;
constexpr int kProductTile = 64;   // rows and columns of a block's tile
constexpr int kProductDepth = 16;  // terms that it adds up in a round
constexpr int kProductCell = 4;    // rows and columns of a thread's part: 16 x 16 threads

struct Factor {
  const float* at;
  int64_t stride;        // from a row (of the right factor: a column) to the next
  int64_t depth_stride;  // from a term to the next
  int64_t size;          // rows or columns

  // Lays 64 rows, from `first`, of the terms from `k` on in `to`, [term][row], with zeros beyond the ends.
  __device__ __forceinline__ void load(float* to, int64_t first, int64_t k, int64_t depth) const {
    for (int i = static_cast<int>(threadIdx.x); i < kProductTile * kProductDepth; i += kProductThreads) {
      // Neighbouring threads read neighbouring addresses.
      const bool terms_first = depth_stride == 1;
      const int row = terms_first ? i / kProductDepth : i % kProductTile;
      const int term = terms_first ? i % kProductDepth : i / kProductTile;
      const bool exists = first + row < size && k + term < depth;
      to[term * (kProductTile + 1) + row] =
          exists ? at[(first + row) * stride + (k + term) * depth_stride] : 0.f;
    }
  }
};

// out[M, N] = a @ b in float32, `out` contiguous.
__global__ void __launch_bounds__(kProductThreads)
    exact_product_kernel(float* out, Factor a, Factor b, int64_t depth) {
  PYOPS_SHARED_ARRAY(float, a_terms, kProductDepth*(kProductTile + 1));
  PYOPS_SHARED_ARRAY(float, b_terms, kProductDepth*(kProductTile + 1));
  constexpr int kAcross = kProductTile / kProductCell;
  const int row = static_cast<int>(threadIdx.x) / kAcross, column = static_cast<int>(threadIdx.x) % kAcross;
  const int64_t tiles_n = ceil_div(b.size, kProductTile), tiles = ceil_div(a.size, kProductTile) * tiles_n;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first_m = tile / tiles_n * kProductTile, first_n = tile % tiles_n * kProductTile;
    float sums[kProductCell][kProductCell] = {};
    for (int64_t k = 0; k < depth; k += kProductDepth) {
      __syncthreads();
      a.load(a_terms, first_m, k, depth);
      b.load(b_terms, first_n, k, depth);
      __syncthreads();
#pragma unroll
      for (int term = 0; term < kProductDepth; ++term) {
        const float* const left = a_terms + term * (kProductTile + 1) + row;
        const float* const right = b_terms + term * (kProductTile + 1) + column;
#pragma unroll
        for (int i = 0; i < kProductCell; ++i) {
#pragma unroll
          for (int j = 0; j < kProductCell; ++j) sums[i][j] += left[i * kAcross] * right[j * kAcross];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kProductCell; ++i) {
#pragma unroll
      for (int j = 0; j < kProductCell; ++j) {
        const int64_t m = first_m + row + i * kAcross, n = first_n + column + j * kAcross;
        if (m < a.size && n < b.size) out[m * b.size + n] = sums[i][j];
      }
    }
  }
}

}  // namespace

RecurrentProducts::RecurrentProducts(ScalarType dtype, int64_t steps)
    : tf32(dtype == ScalarType::Float && ask("pyops::recurrent_allows_tf32", steps)),
      library_rounds(dtype == ScalarType::Float && !tf32 && library_allows_tf32()) {}

void product(const Tensor& out, const Tensor& a, const Tensor& b, const RecurrentProducts& how,
             cudaStream_t stream) {
  if (!how.library_rounds) return library_mm(out, a, b);
  const int64_t m = a.size(0), n = b.size(1), tiles = ceil_div(m, kProductTile) * ceil_div(n, kProductTile);
  if (tiles == 0) return;
  launch(exact_product_kernel, blocks_for(tiles, 1), kProductThreads, 0, stream, mutable_data<float>(out),
         Factor{data<float>(a), a.stride(0), a.stride(1), m},
         Factor{data<float>(b), b.stride(1), b.stride(0), n}, a.size(1));
}

}  // namespace pyops::cuda
