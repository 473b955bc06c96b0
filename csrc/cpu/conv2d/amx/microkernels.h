// Sums of products of tiles (cpu/simd/tiles.h): up to 2 x 2 tiles of sums stay where they are while the tiles
// of both operands pass by, one step after the other. A step of 2 x 2 takes 4 loads for 4 products.
#pragma once

#include <cstdint>

#include "cpu/simd/tiles.h"

#if defined(__AVX512F__)

namespace pyops::cpu::amx {

// One or two tiles, side by side, that move from step to step.
struct TileOperand {
  const char* from[2];
  int64_t stride;          // of a tile's rows, in bytes
  const int64_t* offsets;  // of each step's tiles, in bytes
  int64_t place[2];        // of the tiles in the sums
};

// sums[a's place + b's place] = the products of a's tiles and b's, summed over the steps; or added to them.
template <class Tiles, int rows, int columns>
void multiply_tiles(int64_t steps, const TileOperand& a, const TileOperand& b, float* sums, int64_t ld,
                    bool accumulate) {
  const int64_t stride = ld * static_cast<int64_t>(sizeof(float));
  float* const first = sums + a.place[0];
  float* const second = sums + a.place[1];
  if (accumulate) {
    Tiles::template load<0>(first + b.place[0], stride);
    if constexpr (columns > 1) Tiles::template load<1>(first + b.place[1], stride);
    if constexpr (rows > 1) Tiles::template load<2>(second + b.place[0], stride);
    if constexpr (rows > 1 && columns > 1) Tiles::template load<3>(second + b.place[1], stride);
  } else {
    Tiles::template zero<0>();
    if constexpr (columns > 1) Tiles::template zero<1>();
    if constexpr (rows > 1) Tiles::template zero<2>();
    if constexpr (rows > 1 && columns > 1) Tiles::template zero<3>();
  }
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t left = a.offsets[step], right = b.offsets[step];
    Tiles::template load<4>(a.from[0] + left, a.stride);
    Tiles::template load<6>(b.from[0] + right, b.stride);
    Tiles::template multiply_add<0, 4, 6>();
    if constexpr (columns > 1) {
      Tiles::template load<7>(b.from[1] + right, b.stride);
      Tiles::template multiply_add<1, 4, 7>();
    }
    if constexpr (rows > 1) {
      Tiles::template load<5>(a.from[1] + left, a.stride);
      Tiles::template multiply_add<2, 5, 6>();
    }
    if constexpr (rows > 1 && columns > 1) Tiles::template multiply_add<3, 5, 7>();
  }
  Tiles::template store<0>(first + b.place[0], stride);
  if constexpr (columns > 1) Tiles::template store<1>(first + b.place[1], stride);
  if constexpr (rows > 1) Tiles::template store<2>(second + b.place[0], stride);
  if constexpr (rows > 1 && columns > 1) Tiles::template store<3>(second + b.place[1], stride);
}

// The same for 1 or 2 tiles of each operand.
template <class Tiles>
void multiply_tiles(int64_t rows, int64_t columns, int64_t steps, const TileOperand& a, const TileOperand& b,
                    float* sums, int64_t ld, bool accumulate) {
  if (rows > 1) {
    columns > 1 ? multiply_tiles<Tiles, 2, 2>(steps, a, b, sums, ld, accumulate)
                : multiply_tiles<Tiles, 2, 1>(steps, a, b, sums, ld, accumulate);
  } else {
    columns > 1 ? multiply_tiles<Tiles, 1, 2>(steps, a, b, sums, ld, accumulate)
                : multiply_tiles<Tiles, 1, 1>(steps, a, b, sums, ld, accumulate);
  }
}

}  // namespace pyops::cpu::amx

#endif
