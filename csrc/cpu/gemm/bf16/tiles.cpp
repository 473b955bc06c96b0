// The kernels by tiles: four of the output, of two of a and two of b, so that each that is loaded is
// multiplied twice.
#include "cpu/simd/tiles.h"

#include "cpu/gemm/bf16/pack.h"

#if defined(__AVX512F__)

namespace pyops::cpu {
namespace {

constexpr int64_t kTileColumns = 16;
constexpr int64_t kTilePairRows = 2 * kTileRows;

// c[16 * across, 16 * along] (+)= a @ b, of `steps` times kTileDepth terms.
template <class Tiles, int across, int along>
void micro_kernel(int64_t steps, const PairRows& a, const char* left, const uint32_t* b, float* c,
                  int64_t ldc, bool adds) {
  constexpr int64_t b_stride = kPairColumns * sizeof(uint32_t);
  const int64_t c_stride = ldc * static_cast<int64_t>(sizeof(float));
  float* const lower = c + kTileRows * ldc;
  if (adds) {
    Tiles::template load<0>(c, c_stride);
    if constexpr (along > 1) Tiles::template load<1>(c + kTileColumns, c_stride);
    if constexpr (across > 1) Tiles::template load<2>(lower, c_stride);
    if constexpr (across > 1 && along > 1) Tiles::template load<3>(lower + kTileColumns, c_stride);
  } else {
    Tiles::template zero<0>();
    if constexpr (along > 1) Tiles::template zero<1>();
    if constexpr (across > 1) Tiles::template zero<2>();
    if constexpr (across > 1 && along > 1) Tiles::template zero<3>();
  }
  for (int64_t step = 0; step < steps; ++step) {
    Tiles::template load<4>(left, a.row_bytes);
    Tiles::template load<6>(b, b_stride);
    Tiles::template multiply_add<0, 4, 6>();
    if constexpr (along > 1) {
      Tiles::template load<7>(b + kTileColumns, b_stride);
      Tiles::template multiply_add<1, 4, 7>();
    }
    if constexpr (across > 1) {
      Tiles::template load<5>(left + a.tile_bytes, a.row_bytes);
      Tiles::template multiply_add<2, 5, 6>();
      if constexpr (along > 1) Tiles::template multiply_add<3, 5, 7>();
    }
    left += a.step_bytes;
    b += kTileDepth / 2 * kPairColumns;
  }
  Tiles::template store<0>(c, c_stride);
  if constexpr (along > 1) Tiles::template store<1>(c + kTileColumns, c_stride);
  if constexpr (across > 1) Tiles::template store<2>(lower, c_stride);
  if constexpr (across > 1 && along > 1) Tiles::template store<3>(lower + kTileColumns, c_stride);
}

// c[rows, columns] = from, between a micro-tile with edges and a whole one.
void copy_block(int64_t rows, int64_t columns, const float* from, int64_t ld_from, float* to, int64_t ld_to) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; j += kTileColumns) {
      const __mmask16 lanes = pair_lanes(columns - j);
      _mm512_mask_storeu_ps(to + i * ld_to + j, lanes, _mm512_maskz_loadu_ps(lanes, from + i * ld_from + j));
    }
  }
}

template <class Tiles>
void micro_tile(int64_t rows, int64_t columns, int64_t steps, const PairRows& a, const char* left,
                const uint32_t* b, float* c, int64_t ldc, bool adds) {
  const bool low = rows > kTileRows, wide = columns > kTileColumns;
  const auto kernel = low    ? wide ? micro_kernel<Tiles, 2, 2> : micro_kernel<Tiles, 2, 1>
                      : wide ? micro_kernel<Tiles, 1, 2>
                             : micro_kernel<Tiles, 1, 1>;
  if (rows % kTileRows == 0 && columns % kTileColumns == 0) {
    return kernel(steps, a, left, b, c, ldc, adds);
  }
  alignas(64) float whole[kTilePairRows * kPairColumns];
  if (adds) {
    memset(whole, 0, sizeof(whole));
    copy_block(rows, columns, c, ldc, whole, kPairColumns);
  }
  kernel(steps, a, left, b, whole, kPairColumns, adds);
  copy_block(rows, columns, whole, kPairColumns, c, ldc);
}

template <class Tiles>
void multiply_by(int64_t rows, int64_t columns, int64_t depth, const PairRows& a, const uint32_t* b, float* c,
                 int64_t ldc, bool adds) {
  [[maybe_unused]] typename Tiles::Scope scope;
  const int64_t steps = ceil_div(depth, kTileDepth);
  for (int64_t column = 0; column < columns; column += kPairColumns) {
    const int64_t count = std::min(kPairColumns, columns - column);
    const char* left = static_cast<const char*>(a.data);
    for (int64_t row = 0; row < rows; row += kTilePairRows, left += 2 * a.tile_bytes) {
      micro_tile<Tiles>(std::min(kTilePairRows, rows - row), count, steps, a, left, b, c + row * ldc + column,
                        ldc, adds);
    }
    b += steps * (kTileDepth / 2) * kPairColumns;
  }
}

int64_t rows_size(int64_t rows, int64_t depth) {
  return round_up(rows, kTileRows) * round_up(depth, kTileDepth) / 2;
}

bool reads_in_place(const Operand<bfloat16>& a, int64_t depth, int64_t columns) {
  // Beyond, the caches' prefetchers make up for packing, which follow one stream but not sixteen.
  constexpr int64_t kMostColumns = 8 * kPairColumns;
  return a.depth_stride == 1 && depth % kTileDepth == 0 && columns <= kMostColumns &&
         reinterpret_cast<uintptr_t>(a.data) % kTileRowBytes == 0 && a.row_stride % kTileDepth == 0 &&
         a.row_stride > 0;
}

// A tile of packed rows is contiguous, and behind it comes that of the next terms. Rows that do not fill a
// tile are packed with zeros.
PairRows rows_of_tiles(const Operand<bfloat16>& a, int64_t rows, int64_t depth, int64_t columns,
                       uint32_t* packed) {
  if (rows % kTileRows == 0 && reads_in_place(a, depth, columns)) {
    const int64_t stride = a.row_stride * static_cast<int64_t>(sizeof(bfloat16));
    return {a.data, stride, kTileRowBytes, kTileRows * stride};
  }
  const int64_t padded = round_up(depth, kTileDepth);
  const auto pack = [&](int64_t row, int64_t k) {
    PairSquare square;
    load_square<false>({a.data + row * a.row_stride + k * a.depth_stride, a.row_stride, a.depth_stride},
                       std::min<int64_t>(rows - row, kTileRows), std::min(depth - k, kTileDepth), square);
    uint32_t* const tile = packed + (row * padded + k * kTileRows) / 2;
    for (int i = 0; i < kTileRows; ++i) square.store_line(i, tile + i * kTileColumns);
  };
  if (a.row_stride == 1) {
    for (int64_t k = 0; k < depth; k += kTileDepth) {
      for (int64_t row = 0; row < rows; row += kTileRows) pack(row, k);
    }
  } else {
    for (int64_t row = 0; row < rows; row += kTileRows) {
      for (int64_t k = 0; k < depth; k += kTileDepth) pack(row, k);
    }
  }
  return {packed, kTileRowBytes, kTileBytes, kTileRows * padded * static_cast<int64_t>(sizeof(bfloat16))};
}

void pack_columns(const Operand<bfloat16>& b, int64_t columns, int64_t depth, uint32_t* packed) {
  pack_pair_columns(b, columns, depth, round_up(depth, kTileDepth), packed);
}

void multiply(int64_t rows, int64_t columns, int64_t depth, const PairRows& a, const uint32_t* b, float* c,
              int64_t ldc, bool adds) {
  with_tiles([&](auto tiles) { multiply_by<decltype(tiles)>(rows, columns, depth, a, b, c, ldc, adds); });
}

}  // namespace

const PairKernels& tile_pair_kernels() {
  static constexpr PairKernels kernels{kTilePairRows, kTilePairRows, kTileDepth,   512,     reads_in_place,
                                       rows_size,     rows_of_tiles, pack_columns, multiply};
  return kernels;
}

}  // namespace pyops::cpu

#endif
