// Forward and backward of a batch normalisation as a whole: which passes there are, and what they need of
// each channel.
#pragma once

#include <atomic>
#include <vector>

#include "cpu/batch_norm/blocks.h"
#include "cpu/runtime/output_cache.h"

namespace pyops::cpu {

// Outputs of at least as many bytes are not found in a cache by whoever reads them next.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

inline bool streams(const Tensor& output) {
  return output.numel() * static_cast<int64_t>(output.element_size()) >= kStreamBytes;
}

// Makes streamed stores visible before another thread is told about them.
inline void end_of_streams() { std::atomic_thread_fence(std::memory_order_seq_cst); }

// A vector of the parameters' dtype, T or what it accumulates in, in the latter; `fill` where there is none.
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

// to[c] = f(to[c], c) for a vector of the parameters' dtype, computed in float64.
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

// The numbers that elements need, as a table of channels or, where channels alternate, of columns.
template <class T>
class Table {
 public:
  using Acc = acc_t<T>;
  explicit Table(const BatchNormShape& s)
      : repeats_(s.has_runs() ? 1 : s.inner),
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

// ---- forward --------------------------------------------------------------------------------------------

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
  Table<T> table;

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

  template <class Activation>
  void apply(const Runs& runs, const Activation& activation, int64_t begin, int64_t end) const {
    const T* const residual = data_or_null<T>(given.residual);
    runs.for_each_block(begin, end, batch_statistics, [&](int64_t channel, int64_t block) {
      const auto of_channel = OneChannel<Acc>::of(table.view(), channel, false);
      runs.for_each_run(channel, block, [&](int64_t at, int64_t n, int64_t bit) {
        normalize_run(activation, of_channel, x + at, residual ? residual + at : nullptr, y + at,
                      mask ? mask + bit : nullptr, n, stream);
      });
      if (stream) end_of_streams();
    });
  }

  template <class Activation>
  void apply(const Columns& columns, const Activation& activation) const {
    const T* const residual = data_or_null<T>(given.residual);
    columns.for_each_piece(
        batch_statistics, [&](int64_t, int64_t row, int64_t end, int64_t column, int64_t n) {
          const EachColumn<Acc> channels{table.view(), column};
          for (int64_t r = row; r < end; ++r) {
            const int64_t at = r * columns.width + column;
            normalize_run(activation, channels, x + at, residual ? residual + at : nullptr, y + at,
                          mask ? mask + r * s.mask_bytes() + column / 8 : nullptr, n, stream);
          }
          if (stream) end_of_streams();
        });
  }

  template <class Activation>
  void run(const Activation& activation) {
    if (!s.has_runs()) {
      const Columns columns = Columns::of(s);
      if (batch_statistics) column_moments(columns, x, moments.data());
      finish(0, s.channels);
      return apply(columns, activation);
    }
    const Runs runs = Runs::of(s);
    runs.for_each_group(sizeof(T), [&](int64_t begin, int64_t end) {
      if (batch_statistics) run_moments(runs, x, begin, end, moments.data());
      finish(begin, end);
      apply(runs, activation, begin, end);
    });
  }
};

// ---- backward -------------------------------------------------------------------------------------------

template <class T>
struct Backward {
  using Acc = acc_t<T>;
  const BatchNormShape& s;
  const BatchNormSaved& saved;
  GradientRun<T> all;
  AnyActivation<Acc> activation;
  std::vector<Acc> weight;
  std::vector<GradientSums> sums;
  Table<T> table;

  static Backward of(const BatchNormShape& s, const BatchNormSaved& saved, const Tensor& grad,
                     const Tensor& x, const math::ActivationParams& params) {
    Backward backward{
        s,
        saved,
        {data<T>(grad), data<T>(x), data_or_null<T>(saved.residual), data_or_null<uint8_t>(saved.mask)},
        {params},
        channel_values<T>(saved.weight, s.channels, 1),
        std::vector<GradientSums>(s.channels),
        Table<T>(s)};
    const auto bias = channel_values<T>(saved.bias, s.channels, 0);
    for (int64_t c = 0; c < s.channels; ++c) {
      backward.table.set(
          c, math::NormMap<Acc>::of(backward.mean(c), backward.rstd(c), backward.weight[c], bias[c]));
      backward.table.set(c, math::NormGradient<Acc>{0, 0, 0});
    }
    return backward;
  }

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

  // Of products with x - mean, once those with x - center are summed.
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
  void sum(const Runs& runs, int64_t begin, int64_t end) {
    run_gradient_sums<kOf>(runs, activation, table.view(), all, begin, end, sums.data());
    finish_sums(begin, end);
  }
  template <GradientOf kOf>
  void sum(const Columns& columns) {
    column_gradient_sums<kOf>(columns, activation, table.view(), all, sums.data());
    finish_sums(0, s.channels);
  }
  template <GradientOf kOf>
  void sum_all() {
    if (s.numel() == 0) return;
    if (s.has_runs()) return sum<kOf>(Runs::of(s), 0, s.channels);
    sum<kOf>(Columns::of(s));
  }

  template <GradientOf kOf>
  void write(const Runs& runs, const GradientOutputs<T>& to, int64_t begin, int64_t end) const {
    runs.for_each_block(begin, end, true, [&](int64_t channel, int64_t block) {
      const auto of_channel = OneChannel<Acc>::of(table.view(), channel, true);
      runs.for_each_run(channel, block, [&](int64_t at, int64_t n, int64_t bit) {
        gradient_run<kOf>(activation, of_channel, all.from(at, bit), to.from(at), n);
      });
      if (to.stream) end_of_streams();
    });
  }

  template <GradientOf kOf>
  void write(const Columns& columns, const GradientOutputs<T>& to) const {
    columns.for_each_piece(true, [&](int64_t, int64_t row, int64_t end, int64_t column, int64_t n) {
      const EachColumn<Acc> channels{table.view(), column};
      for (int64_t r = row; r < end; ++r) {
        const int64_t at = r * columns.width + column;
        gradient_run<kOf>(activation, channels, all.from(at, r * s.mask_bytes() + column / 8), to.from(at),
                          n);
      }
      if (to.stream) end_of_streams();
    });
  }

  // `sums_needed`: by the parameters' gradients, or by that of the input.
  template <GradientOf kOf>
  void run(const GradientOutputs<T>& to, bool sums_needed) {
    const bool writes = to.dx || to.dresidual;
    if (s.numel() == 0) return;
    if (!s.has_runs()) {
      const Columns columns = Columns::of(s);
      if (sums_needed) sum<kOf>(columns);
      if (to.through_statistics) set_gradients(0, s.channels);
      if (writes) write<kOf>(columns, to);
      return;
    }
    const Runs runs = Runs::of(s);
    runs.for_each_group(2 * sizeof(T), [&](int64_t begin, int64_t end) {
      if (sums_needed) sum<kOf>(runs, begin, end);
      if (to.through_statistics) set_gradients(begin, end);
      if (writes) write<kOf>(runs, to, begin, end);
    });
  }
};

}  // namespace pyops::cpu
