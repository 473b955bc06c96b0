// How the ops over rows of classes share their work.
//
// Where a row's classes are contiguous, vectors run along the classes. Otherwise the classes of a row are
// `inner` elements apart and the same class of neighbouring rows is contiguous: vectors run across a panel
// of rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "binding/class_rows.h"
#include "common/integers.h"
#include "cpu/runtime/parallel.h"
#include "cpu/simd/loops.h"

namespace pyops::cpu {

// A number for each of the rows that vectors run across.
template <class Acc>
struct Panel {
  static constexpr int kRows = kUnroll * Vec<Acc>::kLanes;
  alignas(kVectorBytes) Acc rows[kRows];

  Acc& operator[](int64_t i) { return rows[i]; }
  const Acc& operator[](int64_t i) const { return rows[i]; }
  Vec<Acc> vec(int64_t i) const { return load<Acc>(rows + i); }
  void set(int64_t i, Vec<Acc> v) { store(rows + i, v); }
  void fill(Acc value) { std::fill(rows, rows + kRows, value); }
};

// A group of `width` neighbouring rows: rows first_row .. first_row + width - 1; the first class of the first
// row is at element `offset`, that of the next `classes` further when classes are contiguous, else 1 further.
struct RowGroup {
  int64_t first_row;
  int64_t offset;
  int64_t width;
};

// The steps of a row wait for each other: maximum, sum, log, gradient. Several short rows side by side fill
// these waits; long rows wait little, and several of them would not stay in cache.
constexpr int64_t kShortRow = 4096;
constexpr int64_t kShortRows = 4;

template <class Acc>
class RowGroups {
 public:
  // `panels`: contiguous rows, too, are taken as many at a time as fill a panel.
  explicit RowGroups(int64_t classes, int64_t inner, int64_t outer, bool panels = false)
      : classes_(classes),
        inner_(inner),
        outer_(outer),
        width_(inner > 1 || panels    ? Panel<Acc>::kRows
               : classes <= kShortRow ? kShortRows
                                      : 1),
        per_outer_(ceil_div(inner, width_)),
        count_(inner == 1 ? ceil_div(outer, width_) : outer * per_outer_) {}

  int64_t count() const { return count_; }
  // An exponential takes as long as copying three elements.
  int64_t cost() const { return std::max<int64_t>(1, classes_) * width_ * 3; }

  RowGroup operator[](int64_t g) const {
    if (inner_ == 1) return {g * width_, g * width_ * classes_, std::min(width_, outer_ - g * width_)};
    const int64_t outer = g / per_outer_;
    const int64_t l = g % per_outer_ * width_;
    return {outer * inner_ + l, outer * classes_ * inner_ + l, std::min(width_, inner_ - l)};
  }

  template <class F>
  void for_each(const F& f) const {
    parallel_for(count(), cost(), [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) f((*this)[g]);
    });
  }

  // Sums f(sum, group) over all groups in a fixed order.
  template <class Sum, class F>
  Sum sum(const F& f) const {
    return parallel_sum<Sum>(count(), cost(), [&](int64_t begin, int64_t end) {
      Sum sum{};
      for (int64_t g = begin; g < end; ++g) f(sum, (*this)[g]);
      return sum;
    });
  }

 private:
  int64_t classes_;
  int64_t inner_;
  int64_t outer_;
  int64_t width_;
  int64_t per_outer_;
  int64_t count_;
};

// What a loss adds up over rows. The first target in row order that is no class is remembered, so that the
// caller can be told; an exception from inside a parallel region would end the process.
struct LossSum {
  double loss = 0;
  double weight = 0;
  bool has_bad_target = false;
  int64_t bad_target = 0;

  void reject(int64_t target) {
    if (!has_bad_target) bad_target = target;
    has_bad_target = true;
  }

  LossSum& operator+=(const LossSum& other) {
    loss += other.loss;
    weight += other.weight;
    if (other.has_bad_target) reject(other.bad_target);
    return *this;
  }
};

}  // namespace pyops::cpu
