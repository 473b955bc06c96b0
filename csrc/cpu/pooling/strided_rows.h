// Rows whose elements are used `stride` apart, as pooling windows and convolutions use them.
//
// A row of blocks (one element, or the channels of a pixel) is split by block index modulo the stride. Then
// what one tap of neighbouring windows needs is contiguous, whatever stride and dilation are, and vectors run
// along the windows. The padding is part of the split row, so that no window is a special case. A gradient is
// merged the same way back.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/integers.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/loops.h"
#include "math/pooling.h"

namespace pyops::cpu {

// Up to a vector of elements from x + at of a row of `size`, `fill` behind its end.
template <class Acc, class T>
PYOPS_HD Vec<Acc> load_within(const T* x, int64_t at, int64_t size, Acc fill) {
  constexpr int kLanes = Vec<Acc>::kLanes;
  const int64_t left = size - at;
  if (left >= kLanes) return load<Acc>(x + at);
  return left <= 0 ? Vec<Acc>(fill) : load_partial<Acc>(x + at, static_cast<int>(left), fill);
}

// Two vectors' worth of neighbouring elements, those at even and those at odd places. bfloat16 is widened and
// rounded like that anyway.
template <class T>
using Alternating = TwoVectors<T, true>;

// The first `count` of them, zeros behind.
template <class T>
PYOPS_HD Alternating<T> load_alternating(const T* p, int64_t count) {
  using Acc = acc_t<T>;
  constexpr int64_t n = Vec<Acc>::kLanes;
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (count >= 2 * n) return Alternating<T>::load(p);
#if defined(__AVX512F__)
    const __mmask32 there = (__mmask32(1) << std::max<int64_t>(count, 0)) - 1u;
    const Words pairs = (Words)_mm512_maskz_loadu_epi16(there, p);
    return {Vec<float>::Native(pairs << 16), Vec<float>::Native(pairs & 0xffff0000u)};
#endif
  }
  const Vec<Acc> a = load_within(p, 0, count, Acc(0)), b = load_within(p, n, count, Acc(0));
  return {every_other<0>(a, b), every_other<1>(a, b)};
}

// The first `count` of them.
template <class T>
PYOPS_HD void store_alternating(T* p, const Alternating<T>& x, int64_t count) {
  constexpr int64_t n = Vec<acc_t<T>>::kLanes;
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (count >= 2 * n) return x.store(p);
  }
  store_lanes(p, interleave<0>(x.first, x.second), static_cast<int>(std::min(n, count)));
  if (count > n) {
    store_lanes(p + n, interleave<1>(x.first, x.second), static_cast<int>(std::min(n, count - n)));
  }
}

// How the split rows of one axis lie in memory: an array ("phase") per residue of the padded block index that
// any tap needs.
template <class Acc>
struct SplitLayout {
  static constexpr int kSlack = Vec<Acc>::kLanes;  // behind a phase: vectors may read and write past its end

  math::SlidingAxis axis;
  int64_t inner;
  std::vector<int64_t> residues;  // by phase: those of taps 0, 1, ... until they repeat
  int64_t reach;                  // windows from a tap's phase start to its use: shift of the last tap
  int64_t phase_elements;

  SplitLayout(const math::SlidingAxis& along, int64_t block) : axis(along), inner(block) {
    int64_t residue = 0;
    do {
      residues.push_back(residue);
      residue = (residue + axis.dilation) % axis.stride;
    } while (residue != 0 && static_cast<int64_t>(residues.size()) < axis.kernel);
    reach = shift(axis.kernel - 1);
    phase_elements = (axis.out + reach) * inner + kSlack;
  }

  int64_t phases() const { return static_cast<int64_t>(residues.size()); }
  int64_t elements() const { return phases() * phase_elements; }
  int64_t phase(int64_t tap) const { return tap % phases(); }
  int64_t shift(int64_t tap) const { return tap * axis.dilation / axis.stride; }
  bool alternates() const { return axis.stride == 2 && inner == 1 && phases() == 2; }

  // Where the blocks of window 0, 1, ... lie for each tap.
  std::vector<int64_t> offsets() const {
    std::vector<int64_t> offsets;
    for (int64_t tap = 0; tap < axis.kernel; ++tap)
      offsets.push_back(phase(tap) * phase_elements + shift(tap) * inner);
    return offsets;
  }

  // The taps whose elements are in a phase, last first, so that their windows come in order. `offset`: from
  // an element of block 0 to window 0 of a row that begins with `reach` blocks of margin.
  struct PhaseTap {
    int64_t tap;
    int64_t offset;
  };
  std::vector<PhaseTap> taps_of(int64_t phase) const {
    std::vector<PhaseTap> taps;
    for (int64_t tap = axis.kernel - 1; tap >= 0; --tap)
      if (this->phase(tap) == phase) taps.push_back({tap, (reach - shift(tap)) * inner});
    return taps;
  }

  // Splits `row` into `split`, which is filled with `fill` where a row has no elements.
  template <class T>
  void split_row(const T* row, Acc* split, Acc fill) const {
    if (alternates()) return split_alternating(row, split, fill);
    const int64_t blocks = axis.out + reach;
    for (int64_t k = 0; k < phases(); ++k) {
      Acc* to = split + k * phase_elements;
      const int64_t residue = residues[k];
      int64_t q = residue < axis.padding ? ceil_div(axis.padding - residue, axis.stride) : 0;
      int64_t at = q * axis.stride + residue - axis.padding;
      if (axis.stride == 1) {
        const int64_t n = std::min(axis.in, blocks - q) * inner;
        for (int64_t i = 0; i < n; i += kSlack) store(to + q * inner + i, load_within(row, i, n, fill));
        continue;
      }
      for (; at < axis.in && q < blocks; ++q, at += axis.stride)
        for (int64_t c = 0; c < inner; ++c) to[q * inner + c] = to_acc(row[at * inner + c]);
    }
  }

  // The way back for gradients: element `at` of the row from its block in `split`, whose phases begin with
  // padded block 0. Elements that no tap reaches become zero.
  template <class T>
  void merge_row(const Acc* split, int64_t split_phase_elements, T* row) const {
    if (alternates()) return merge_alternating(split, split + split_phase_elements, row);
    if (axis.stride == 1) {
      return for_each_vector<Acc>(axis.in * inner, [&](int64_t i, int lanes) {
        store_lanes(row + i, load<Acc>(split + axis.padding * inner + i), lanes);
      });
    }
    if (phases() < axis.stride) std::fill(row, row + axis.in * inner, from_acc<T>(Acc(0)));
    for (int64_t k = 0; k < phases(); ++k) {
      const Acc* from = split + k * split_phase_elements;
      const int64_t residue = residues[k];
      int64_t q = residue < axis.padding ? ceil_div(axis.padding - residue, axis.stride) : 0;
      int64_t at = q * axis.stride + residue - axis.padding;
      for (; at < axis.in; ++q, at += axis.stride)
        for (int64_t c = 0; c < inner; ++c) row[at * inner + c] = from_acc<T>(from[q * inner + c]);
    }
  }

 private:
  template <class T>
  void split_alternating(const T* row, Acc* even, Acc fill) const {
    Acc* odd = even + phase_elements;
    const int64_t blocks = axis.out + reach;
    int64_t q = (axis.padding + 1) / 2;
    if (axis.padding % 2) odd[q - 1] = to_acc(row[0]);
    for (int64_t at = 2 * q - axis.padding; at < axis.in && q <= blocks; q += kSlack, at += 2 * kSlack) {
      Alternating<T> x;
      if (axis.in - at >= 2 * kSlack) {
        x = load_alternating(row + at, 2 * kSlack);
      } else {
        const Vec<Acc> a = load_within(row, at, axis.in, fill),
                       b = load_within(row, at + kSlack, axis.in, fill);
        x = {every_other<0>(a, b), every_other<1>(a, b)};
      }
      store(even + q, x.first);
      store(odd + q, x.second);
    }
  }

  template <class T>
  void merge_alternating(const Acc* even, const Acc* odd, T* row) const {
    const bool odd_first = axis.padding % 2;
    const Acc* first = (odd_first ? odd : even) + axis.padding / 2;
    const Acc* second = odd_first ? even + axis.padding / 2 + 1 : odd + axis.padding / 2;
    for (int64_t i = 0; 2 * i < axis.in; i += kSlack) {
      const Alternating<T> x{load<Acc>(first + i), load<Acc>(second + i)};
      store_alternating(row + 2 * i, x, axis.in - 2 * i);
    }
  }
};

// Rows that were prepared and are kept while windows come back to them. Rows that are used together must be
// less than `rows` apart.
template <class Element>
class RowRing {
 public:
  RowRing(int64_t rows, int64_t elements, Element fill)
      : elements_(elements), data_(rows * elements, fill), row_(rows, -1) {}

  // Row number `row`, after prepare(memory) if it is not there.
  template <class F>
  Element* get(int64_t row, const F& prepare) {
    const int64_t slot = row % static_cast<int64_t>(row_.size());
    Element* memory = data_.data() + slot * elements_;
    if (row_[slot] != row) {
      prepare(memory);
      row_[slot] = row;
    }
    return memory;
  }

 private:
  int64_t elements_;
  std::vector<Element> data_;
  std::vector<int64_t> row_;
};

}  // namespace pyops::cpu
