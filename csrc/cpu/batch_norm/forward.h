// The forward pass of a batch normalisation as a whole: statistics, then the output.
#pragma once

#include <vector>

#include "cpu/batch_norm/columns.h"
#include "cpu/batch_norm/runs.h"
#include "cpu/batch_norm/strips.h"

namespace pyops::cpu {

template <class T>
struct Forward {
  using Acc = acc_t<T>;
  const BatchNormShape& s;
  const BatchNormArguments& given;
  const T* x;
  T* y;
  uint8_t* mask;
  double* mean;
  Acc* rstd;
  bool batch_statistics;
  double eps;
  bool stream;
  std::vector<Acc> weight, bias;
  std::vector<Moments> moments;
  ChannelTable<T> table;

  // Mean and rstd of channels [begin, end): of the batch, given, or running.
  void finish(int64_t begin, int64_t end) {
    const double* const statistics = data_or_null<double>(given.statistics);
    for (int64_t c = begin; c < end; ++c) {
      if (statistics) {
        mean[c] = statistics[c];
        rstd[c] = static_cast<Acc>(math::reciprocal_deviation(statistics[s.channels + c], eps));
      } else if (batch_statistics) {
        mean[c] = moments[c].mean;
        rstd[c] = static_cast<Acc>(math::reciprocal_deviation(moments[c].variance(), eps));
      }
      table.set(c, math::NormMap<Acc>::of(mean[c], rstd[c], weight[c], bias[c]));
    }
  }

  // From element `at`, whose bit is the lowest of the mask's byte `bit`.
  NormElements<T> elements(int64_t at, int64_t bit) const {
    const T* const residual = data_or_null<T>(given.residual);
    return {x + at,        residual ? residual + at : nullptr, y + at, mask ? mask + bit : nullptr, s.width(),
            s.mask_bytes()};
  }
  // From a column of a row, the column's number a multiple of 8.
  NormElements<T> of_row(int64_t row, int64_t column) const {
    return elements(row * s.width() + column, row * s.mask_bytes() + column / 8);
  }

  // A block of channels [begin, end).
  template <class Activation>
  void apply(const Runs& runs, const Activation& activation, int64_t begin, int64_t end,
             int64_t block) const {
    const T* const residual = data_or_null<T>(given.residual);
    OneChannel<Acc> channels[Runs::kGroup];
    for (int64_t c = begin; c < end; ++c) channels[c - begin] = OneChannel<Acc>::of(table.view(), c, false);
    runs.for_each_run(begin, end, block, [&](int64_t c, int64_t at, int64_t n, int64_t bit, int64_t ahead) {
      if (ahead > 0 && !batch_statistics) fetch(x + at + ahead, n);
      if (ahead > 0 && residual) fetch(residual + at + ahead, n);
      if (ahead > 0 && !stream) fetch(y + at + ahead, n);
      normalize_elements<1>(activation, channels[c - begin], elements(at, bit), n, stream);
    });
    if (stream) end_of_streams();
  }

  template <class Activation>
  void apply(const Columns& columns, const Activation& activation) const {
    columns.for_each_piece(batch_statistics, [&](int64_t, int64_t row, int64_t end, int64_t column,
                                                 int64_t n) {
      const EachColumn<Acc> channels{table.view(), column};
      for_each_pair(end - row, [&](auto rows, int64_t r) {
        normalize_elements<decltype(rows)::value>(activation, channels, of_row(row + r, column), n, stream);
      });
      if (stream) end_of_streams();
    });
  }

  // Channels [begin, end), which are one strip: mean to output, rows backwards where it was read before.
  template <class Activation>
  void normalize(const Strips& strips, const Activation& activation, int64_t begin, int64_t end) {
    if (batch_statistics) strip_moments(strips, x, begin, end, moments.data());
    finish(begin, end);
    Scratch scratch;
    const int64_t n = (end - begin) * s.inner, first = begin * s.inner;
    Acc* const values = scratch.take<Acc>(3 * n);
    const EachColumn<Acc> columns{strips.columns(table.view(), begin, end, values, 3), 0};
    for_each_pair_backwards(s.outer, [&](auto rows, int64_t row) {
      normalize_elements<decltype(rows)::value>(activation, columns, of_row(row, first), n, stream);
    });
    if (stream) end_of_streams();
  }

  template <class Activation>
  void normalize(const Activation& activation) {
    if (Strips::suit(s, sizeof(T))) {
      const Strips strips = Strips::of(s, sizeof(T));
      return strips.for_each(2,
                             [&](int64_t begin, int64_t end) { normalize(strips, activation, begin, end); });
    }
    if (!s.has_runs()) {
      const Columns columns = Columns::of(s);
      if (batch_statistics) column_moments(columns, x, moments.data());
      finish(0, s.channels);
      return apply(columns, activation);
    }
    const Runs runs = Runs::of(s);
    if (runs.by_channel()) {
      return runs.for_each_group(2, [&](int64_t begin, int64_t end) {
        if (batch_statistics) channel_moments(runs, x, begin, end, moments.data());
        finish(begin, end);
        for (int64_t block = runs.blocks; block-- > 0;) apply(runs, activation, begin, end, block);
      });
    }
    if (batch_statistics) run_moments(runs, x, moments.data());
    finish(0, s.channels);
    runs.for_each_block(batch_statistics,
                        [&](int64_t c, int64_t block) { apply(runs, activation, c, c + 1, block); });
  }
};

}  // namespace pyops::cpu
