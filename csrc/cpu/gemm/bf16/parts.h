// Operands as sums of bfloat16, for kernels that multiply those (kernels.h): bfloat16 as it is, and float32
// in three parts.
//
// A float32 has 24 bits of significand, a bfloat16 8: x = high + middle + low exactly, each the rest before
// it rounded. Of the nine products of parts six are formed; the three that are left out are below 2^-26 of
// the whole, which float32 sums do not hold. docs/inside/gemm.md has the errors, measured.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/gemm/pack.h"
#include "cpu/runtime/scratch.h"
#include "cpu/simd/features.h"
#include "cpu/simd/loops.h"

namespace pyops::cpu {

struct PartProduct {
  int a, b;
};

// How many parts a number of T has, the products that are formed, the smallest first, and a block of an
// operand whose parts they multiply.
template <class T>
struct PartsOf;

template <>
struct PartsOf<bfloat16> {
  static constexpr int kCount = 1;
  static constexpr PartProduct kProducts[] = {{0, 0}};

  PartsOf(Scratch&, int64_t) {}
  void set(const Operand<bfloat16>& x, int64_t, int64_t) { whole_ = x; }
  Operand<bfloat16> operator[](int) const { return whole_; }

 private:
  Operand<bfloat16> whole_;
};

template <>
struct PartsOf<float> {
  static constexpr int kCount = 3;
  static constexpr PartProduct kProducts[] = {{2, 0}, {1, 1}, {0, 2}, {1, 0}, {0, 1}, {0, 0}};

  // For blocks of at most `numbers` numbers.
  PartsOf(Scratch& scratch, int64_t numbers) {
    for (bfloat16*& part : parts_) part = scratch.take<bfloat16>(numbers);
  }
  // The parts lie as x does: contiguous along its rows if those are, else along its terms.
  void set(const Operand<float>& x, int64_t rows, int64_t depth) {
    along_rows_ = x.row_stride == 1 && x.depth_stride != 1;
    const int64_t lines = along_rows_ ? depth : rows;
    length_ = along_rows_ ? rows : depth;
    for (int64_t i = 0; i < lines; ++i) split(x, i, i * length_);
  }
  Operand<bfloat16> operator[](int part) const {
    return {parts_[part], along_rows_ ? 1 : length_, along_rows_ ? length_ : 1};
  }

 private:
  // Line i of x to place `to` of each part.
  void split(const Operand<float>& x, int64_t i, int64_t to) {
    const float* const from = x.data + i * (along_rows_ ? x.depth_stride : x.row_stride);
    const int64_t stride = along_rows_ ? x.row_stride : x.depth_stride;
    for_each_vector<float>(length_, [&](int64_t j, int lanes) {
      Vec<float> rest;
      if (stride == 1) {
        rest = load_lanes(from + j, lanes);
      } else {
        float copied[Vec<float>::kLanes] = {};
        for (int lane = 0; lane < lanes; ++lane) copied[lane] = from[(j + lane) * stride];
        rest = load<float>(copied);
      }
      for (bfloat16* const part : parts_) {
        store_lanes(part + to + j, rest, lanes);
        rest = rest - Vec<float>(Vec<float>::Native(bfloat16_in_high_bits(rest) & 0xffff0000u));
      }
    });
  }

  bfloat16* parts_[kCount];
  bool along_rows_ = false;
  int64_t length_ = 0;
};

// The powers of two of a matrix's largest number and its smallest that is not zero.
struct Exponents {
  int least = 0, most = 0;
  bool finite = true;

  // Of the magnitudes' bits: `most`, and one less than the least that is not zero.
  static Exponents of(uint32_t most, uint32_t least_less_one) {
    if (most == 0) return {};
    return {exponent(least_less_one + 1), exponent(most), most < 0x7f800000u};
  }

 private:
  static int exponent(uint32_t bits) {
    float magnitude;
    memcpy(&magnitude, &bits, sizeof(bits));
    return std::ilogb(magnitude);
  }
};

// Of `rows` rows of `depth` terms.
template <class Parallel>
Exponents exponents_of(const Operand<float>& x, int64_t rows, int64_t depth, const Parallel& parallel) {
  const bool along_rows = x.row_stride == 1 && x.depth_stride != 1;
  const int64_t lines = along_rows ? depth : rows, length = along_rows ? rows : depth;
  const int64_t line_stride = along_rows ? x.depth_stride : x.row_stride;
  const int64_t stride = along_rows ? x.row_stride : x.depth_stride;
  const EvenSplit shares(lines, std::clamp<int64_t>(parallel.threads(), 1, lines));
  std::vector<uint32_t> most(shares.parts), least(shares.parts);
  parallel(shares.parts, [&](int64_t share) {
    uint32_t high = 0, low = ~uint32_t{0};
    for (int64_t i = shares.begin(share); i < shares.begin(share) + shares.size(share); ++i) {
      const float* const line = x.data + i * line_stride;
      const auto see = [&](int64_t step) {
        for (int64_t j = 0; j < length; ++j) {
          uint32_t bits;
          memcpy(&bits, line + j * step, sizeof(bits));
          bits &= 0x7fffffffu;
          high = std::max(high, bits);
          low = std::min(low, bits - 1);  // of a zero it is the largest
        }
      };
      stride == 1 ? see(1) : see(stride);
    }
    most[share] = high, least[share] = low;
  });
  return Exponents::of(*std::max_element(most.begin(), most.end()),
                       *std::min_element(least.begin(), least.end()));
}

template <class Parallel>
bool multiplies_parts(int64_t, int64_t, int64_t, const Operand<bfloat16>&, const Operand<bfloat16>&,
                      const Parallel&) {
  return true;
}

// Whether a[M, K] @ b[K, N] is to be formed of parts, and loses nothing by it: no part and no product of
// parts is infinite, or so small that it would count as zero and be missed.
template <class Parallel>
bool multiplies_parts(int64_t M, int64_t N, int64_t K, const Operand<float>& a, const Operand<float>& b,
                      const Parallel& parallel) {
  if (!cpu_features().amx_float32 || K < 1) return false;
  // Six products of tiles take as long as 0.4 of one of float32, and splitting and packing a number as long
  // as about 32: counted, not measured.
  constexpr int64_t kNarrow = 64;
  if (M * N < kNarrow * (M + N)) return false;
  const Exponents x = exponents_of(a, M, K, parallel), y = exponents_of(b, N, K, parallel);
  constexpr int kHighest = 126, kLowest = -126, kBits = 23, kSpare = 9;
  return x.finite && y.finite && std::max(x.most, y.most) < kHighest &&
         std::min(x.least, y.least) >= kLowest + kBits && x.least + y.least >= kLowest + kBits + kSpare &&
         x.most + y.most + 2 + std::ilogb(double(K)) < kHighest;
}

}  // namespace pyops::cpu
