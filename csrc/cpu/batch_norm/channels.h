// What the elements of a batch normalisation need of their channels.
#pragma once

#include <cstdint>
#include <vector>

#include "binding/batch_norm.h"
#include "cpu/simd/vec.h"

namespace pyops::cpu {

template <class Acc>
struct NormVectors {
  Vec<Acc> center, scale, shift, slope, offset;
};

// Numbers of all channels, or of all columns of a row, one array after another.
template <class Acc>
struct NormTable {
  static constexpr int kArrays = 5;  // as in NormVectors; a forward leaves out the last two
  int64_t width;
  const Acc* values;

  Acc at(int array, int64_t i) const { return values[array * width + i]; }
  Vec<Acc> load(int array, int64_t i, int lanes) const {
    return load_lanes(values + array * width + i, lanes);
  }
};

// A run of one channel.
template <class Acc>
struct OneChannel {
  NormVectors<Acc> same;

  static OneChannel of(const NormTable<Acc>& table, int64_t channel, bool gradient) {
    const auto at = [&](int array) { return Vec<Acc>(table.at(array, channel)); };
    NormVectors<Acc> same{at(0), at(1), at(2), Vec<Acc>(Acc(0)), Vec<Acc>(Acc(0))};
    if (gradient) same.slope = at(3), same.offset = at(4);
    return {same};
  }
  Vec<Acc> center(int64_t, int) const { return same.center; }
  Vec<Acc> scale(int64_t, int) const { return same.scale; }
  Vec<Acc> shift(int64_t, int) const { return same.shift; }
  Vec<Acc> slope(int64_t, int) const { return same.slope; }
  Vec<Acc> offset(int64_t, int) const { return same.offset; }
};

// Columns of a row from number `first`.
template <class Acc>
struct EachColumn {
  NormTable<Acc> table;
  int64_t first;

  Vec<Acc> center(int64_t i, int lanes) const { return table.load(0, first + i, lanes); }
  Vec<Acc> scale(int64_t i, int lanes) const { return table.load(1, first + i, lanes); }
  Vec<Acc> shift(int64_t i, int lanes) const { return table.load(2, first + i, lanes); }
  Vec<Acc> slope(int64_t i, int lanes) const { return table.load(3, first + i, lanes); }
  Vec<Acc> offset(int64_t i, int lanes) const { return table.load(4, first + i, lanes); }
};

// The same of elements [i, i + lanes), held for as many rows as need them.
template <class Acc>
PYOPS_HD const OneChannel<Acc>& held(const OneChannel<Acc>& channel, int64_t, int, bool) {
  return channel;
}
template <class Acc>
PYOPS_HD OneChannel<Acc> held(const EachColumn<Acc>& columns, int64_t i, int lanes, bool gradient) {
  NormVectors<Acc> same{columns.center(i, lanes), columns.scale(i, lanes), columns.shift(i, lanes), {}, {}};
  if (gradient) same.slope = columns.slope(i, lanes), same.offset = columns.offset(i, lanes);
  return {same};
}

// The numbers that elements need, as a table of channels or, where channels alternate, of columns.
template <class T>
class ChannelTable {
 public:
  using Acc = acc_t<T>;
  ChannelTable(const BatchNormShape& s, bool of_columns)
      : repeats_(of_columns ? s.inner : 1),
        width_(s.channels * repeats_),
        values_(NormTable<Acc>::kArrays * width_) {}

  void set(int64_t channel, const math::NormMap<Acc>& map) {
    set(0, channel, map.center), set(1, channel, map.scale), set(2, channel, map.shift);
  }
  void set(int64_t channel, const math::NormGradient<Acc>& gradient) {
    set(3, channel, gradient.slope), set(4, channel, gradient.offset);
  }
  NormTable<Acc> view() const { return {width_, values_.data()}; }

 private:
  void set(int array, int64_t channel, Acc value) {
    for (int64_t i = 0; i < repeats_; ++i) values_[array * width_ + channel * repeats_ + i] = value;
  }

  int64_t repeats_;
  int64_t width_;
  std::vector<Acc> values_;
};

// ---- the parameters ------------------------------------------------------------------------------------

// A parameter's values, whose dtype is T or acc_t<T>, as acc_t<T>; `fill` where there is no parameter.
template <class T>
std::vector<acc_t<T>> channel_values(const std::optional<Tensor>& t, int64_t channels, acc_t<T> fill) {
  std::vector<acc_t<T>> values(channels, fill);
  if (!t) return values;
  dispatch_floating(t->scalar_type(), "batch_norm", [&](auto tag) {
    using P = decltype(tag);
    const P* const from = data<P>(*t);
    for (int64_t c = 0; c < channels; ++c) values[c] = static_cast<acc_t<T>>(to_acc(from[c]));
  });
  return values;
}

// to[c] = f(to[c], c) for a parameter's values or gradient, computed in float64.
template <class F>
void update_channels(const Tensor& to, int64_t channels, const F& f) {
  dispatch_floating(to.scalar_type(), "batch_norm", [&](auto tag) {
    using P = decltype(tag);
    P* const values = mutable_data<P>(to);
    for (int64_t c = 0; c < channels; ++c) {
      values[c] = from_acc<P>(static_cast<acc_t<P>>(f(static_cast<double>(to_acc(values[c])), c)));
    }
  });
}

}  // namespace pyops::cpu
