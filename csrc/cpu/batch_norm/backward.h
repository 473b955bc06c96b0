// The backward pass of a batch normalisation as a whole: sums, then the gradients of input and residual.
#pragma once

#include <vector>

#include "cpu/batch_norm/columns.h"
#include "cpu/batch_norm/runs.h"
#include "cpu/batch_norm/strips.h"

namespace pyops::cpu {

template <class T>
struct Backward {
  using Acc = acc_t<T>;
  const BatchNormShape& s;
  const BatchNormSaved& saved;
  GradientInputs<T> all;
  AnyActivation<Acc> activation;
  std::vector<Acc> weight;
  std::vector<GradientSums> sums;
  ChannelTable<T> table;

  static Backward of(const BatchNormShape& s, const BatchNormSaved& saved, const Tensor& grad,
                     const Tensor& x, const math::ActivationParams& params) {
    Backward backward{s,
                      saved,
                      {data<T>(grad), data<T>(x), data_or_null<T>(saved.residual),
                       data_or_null<uint8_t>(saved.mask), s.width(), s.mask_bytes()},
                      {params},
                      channel_values<T>(saved.weight, s.channels, 1),
                      std::vector<GradientSums>(s.channels),
                      ChannelTable<T>(s, !s.has_runs() && !Strips::suit(s, sizeof(T)))};
    const auto bias = channel_values<T>(saved.bias, s.channels, 0);
    for (int64_t c = 0; c < s.channels; ++c) {
      backward.table.set(
          c, math::NormMap<Acc>::of(backward.mean(c), backward.rstd(c), backward.weight[c], bias[c]));
      backward.table.set(c, math::NormGradient<Acc>{0, 0, 0});
    }
    return backward;
  }

  static GradientSums joined(GradientSums sums, const GradientSums& more) { return sums += more; }

  double mean(int64_t c) const { return data<double>(saved.mean)[c]; }
  Acc rstd(int64_t c) const { return data<Acc>(saved.rstd)[c]; }

  // Calls f with GradientOf as a constant.
  template <class F>
  void with_kind(const F& f) const {
    switch (static_cast<math::ActivationKind>(activation.params.kind)) {
      case math::ActivationKind::kIdentity:
        return f(std::integral_constant<GradientOf, GradientOf::kIdentity>{});
      case math::ActivationKind::kRelu:
        if (all.mask) return f(std::integral_constant<GradientOf, GradientOf::kMaskedRelu>{});
        return f(std::integral_constant<GradientOf, GradientOf::kRelu>{});
      default:
        return f(std::integral_constant<GradientOf, GradientOf::kOther>{});
    }
  }

  // Makes the sums of products with x - center those with x - mean.
  void finish_sums(int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      sums[c].product -= (mean(c) - static_cast<double>(static_cast<Acc>(mean(c)))) * sums[c].grad;
    }
  }

  // The part of the gradient that goes through the batch's statistics.
  void set_gradients(int64_t begin, int64_t end) {
    const double* const means = data_or_null<double>(saved.mean_gradients);
    const double count = static_cast<double>(s.count());
    for (int64_t c = begin; c < end; ++c) {
      const double grad = means ? means[c] : sums[c].grad / count;
      const double product = means ? means[s.channels + c] : sums[c].product / count;
      table.set(c, math::NormGradient<Acc>::of(mean(c), rstd(c), weight[c], grad, product));
    }
  }

  template <GradientOf kOf>
  auto sums_of_block(const Runs& runs) const {
    return [this, &runs](int64_t begin, int64_t end, int64_t block, GradientSums* to) {
      block_gradient_sums<kOf>(runs, activation, table.view(), all, begin, end, block, to);
    };
  }
  template <GradientOf kOf>
  void sum(const Runs& runs, int64_t begin, int64_t end) {
    sum_blocks_of(runs, begin, end, sums.data(), joined, sums_of_block<kOf>(runs));
    finish_sums(begin, end);
  }
  template <GradientOf kOf>
  void sum(const Runs& runs) {
    if (runs.by_channel()) {
      return runs.for_each_group(2, [&](int64_t begin, int64_t end) { sum<kOf>(runs, begin, end); });
    }
    sum_blocks(runs, sums.data(), joined, sums_of_block<kOf>(runs));
    finish_sums(0, s.channels);
  }
  template <GradientOf kOf>
  void sum(const Columns& columns) {
    column_gradient_sums<kOf>(columns, activation, table.view(), all, sums.data());
    finish_sums(0, s.channels);
  }
  template <GradientOf kOf>
  void sum_all() {
    if (s.numel() == 0) return;
    if (s.has_runs()) return sum<kOf>(Runs::of(s));
    if (Strips::suit(s, sizeof(T))) return compute<kOf>({nullptr, nullptr, false, false}, true);
    sum<kOf>(Columns::of(s));
  }

  // A block of channels [begin, end).
  template <GradientOf kOf>
  void write(const Runs& runs, const GradientOutputs<T>& to, int64_t begin, int64_t end,
             int64_t block) const {
    OneChannel<Acc> channels[Runs::kGroup];
    for (int64_t c = begin; c < end; ++c) channels[c - begin] = OneChannel<Acc>::of(table.view(), c, true);
    runs.for_each_run(begin, end, block, [&](int64_t c, int64_t at, int64_t n, int64_t bit, int64_t ahead) {
      if (ahead > 0 && !to.stream) {
        if (to.dx) fetch(to.dx + at + ahead, n);
        if (to.dresidual) fetch(to.dresidual + at + ahead, n);
      }
      write_gradients<kOf, 1>(activation, channels[c - begin], all.from(at, bit), to.from(at), n);
    });
    if (to.stream) end_of_streams();
  }

  // n columns of kRows rows, the first column's number a multiple of 8.
  template <GradientOf kOf, int kRows>
  void write_row(const EachColumn<Acc>& channels, const GradientOutputs<T>& to, int64_t row, int64_t column,
                 int64_t n) const {
    const int64_t at = row * s.width() + column;
    write_gradients<kOf, kRows>(activation, channels, all.from(at, row * s.mask_bytes() + column / 8),
                                to.from(at), n);
  }

  template <GradientOf kOf>
  void write(const Columns& columns, const GradientOutputs<T>& to) const {
    columns.for_each_piece(true, [&](int64_t, int64_t row, int64_t end, int64_t column, int64_t n) {
      const EachColumn<Acc> channels{table.view(), column};
      for_each_pair(end - row, [&](auto rows, int64_t r) {
        write_row<kOf, decltype(rows)::value>(channels, to, row + r, column, n);
      });
      if (to.stream) end_of_streams();
    });
  }

  // Channels [begin, end), which are one strip: sums to gradients, rows backwards after they have been read.
  template <GradientOf kOf>
  void compute(const Strips& strips, const GradientOutputs<T>& to, bool sums_needed, int64_t begin,
               int64_t end) {
    Scratch scratch;
    const int64_t n = (end - begin) * s.inner, first = begin * s.inner;
    Acc* const values = scratch.take<Acc>(NormTable<Acc>::kArrays * n);
    const auto columns = [&](int arrays) {
      return EachColumn<Acc>{strips.columns(table.view(), begin, end, values, arrays), 0};
    };
    if (sums_needed) {
      strip_gradient_sums<kOf>(strips, activation, columns(3), all, begin, end, sums.data());
      finish_sums(begin, end);
    }
    if (to.through_statistics) set_gradients(begin, end);
    if (!to.dx && !to.dresidual) return;
    const EachColumn<Acc> each = columns(NormTable<Acc>::kArrays);
    for_each_pair_backwards(s.outer, [&](auto rows, int64_t row) {
      write_row<kOf, decltype(rows)::value>(each, to, row, first, n);
    });
    if (to.stream) end_of_streams();
  }

  // `sums_needed`: the gradients of the parameters, or that of the input, need the sums.
  template <GradientOf kOf>
  void compute(const GradientOutputs<T>& to, bool sums_needed) {
    const bool writes = to.dx || to.dresidual;
    if (s.numel() == 0) return;
    if (Strips::suit(s, sizeof(T))) {
      const Strips strips = Strips::of(s, sizeof(T));
      return strips.for_each(
          4, [&](int64_t begin, int64_t end) { compute<kOf>(strips, to, sums_needed, begin, end); });
    }
    if (!s.has_runs()) {
      const Columns columns = Columns::of(s);
      if (sums_needed) sum<kOf>(columns);
      if (to.through_statistics) set_gradients(0, s.channels);
      if (writes) write<kOf>(columns, to);
      return;
    }
    const Runs runs = Runs::of(s);
    if (runs.by_channel()) {
      return runs.for_each_group(4, [&](int64_t begin, int64_t end) {
        if (sums_needed) sum<kOf>(runs, begin, end);
        if (to.through_statistics) set_gradients(begin, end);
        for (int64_t block = runs.blocks; writes && block-- > 0;) write<kOf>(runs, to, begin, end, block);
      });
    }
    if (sums_needed) sum<kOf>(runs);
    if (to.through_statistics) set_gradients(0, s.channels);
    if (!writes) return;
    runs.for_each_block(true, [&](int64_t c, int64_t block) { write<kOf>(runs, to, c, c + 1, block); });
  }
};

}  // namespace pyops::cpu
