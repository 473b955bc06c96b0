#include "cpu/gemm/bf16/pack.h"

#include "cpu/simd/features.h"
#include "cpu/simd/tiles.h"

namespace pyops::cpu {

#if defined(__AVX512F__)

void pack_pair_columns(const Operand<bfloat16>& b, int64_t columns, int64_t depth, int64_t padded,
                       uint32_t* packed) {
  const auto pack = [&](int64_t column, int64_t k) {
    uint32_t* const panel = packed + column / kPairColumns * padded / 2 * kPairColumns;
    const int64_t in_panel = column % kPairColumns;
    PairSquare square;
    load_square<true>({b.data + column * b.row_stride + k * b.depth_stride, b.row_stride, b.depth_stride},
                      std::min<int64_t>(columns - column, kSquare),
                      std::min<int64_t>(depth - k, kSquareTerms), square);
    const int pairs = static_cast<int>(std::min<int64_t>((padded - k) / 2, kSquare));
    for (int i = 0; i < pairs; ++i) square.store_line(i, panel + (k / 2 + i) * kPairColumns + in_panel);
  };
  // Where terms lie pages apart, a few of them across all panels; see packing_depth().
  if (b.row_stride == 1) {
    for (int64_t k = 0; k < padded; k += kSquareTerms) {
      for (int64_t column = 0; column < columns; column += kSquare) pack(column, k);
    }
  } else {
    for (int64_t column = 0; column < columns; column += kSquare) {
      for (int64_t k = 0; k < padded; k += kSquareTerms) pack(column, k);
    }
  }
}

const PairKernels* pair_kernels() {
  static const PairKernels* const best = has_tiles()                  ? &tile_pair_kernels()
                                         : cpu_features().avx512_bf16 ? &vector_pair_kernels()
                                                                      : nullptr;
  return best;
}

#else

const PairKernels* pair_kernels() { return nullptr; }

#endif

}  // namespace pyops::cpu
