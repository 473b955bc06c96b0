// Average pooling on the CPU, with sliding and with adaptive windows.
//
// A window is summed first down its columns, which is contiguous work whatever the windows are, then along
// the row; backward spreads in the same two steps. So an element is added once per row of windows that holds
// it, not once per window.
#include "binding/pooling.h"
#include "cpu/pooling/average_plan.h"
#include "cpu/pooling/triples.h"
#include "cpu/runtime/output_cache.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/rows_out.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/math.h"

namespace pyops::cpu {
namespace {

// What rows of the output and of the gradient share: how a row of windows lies over a row of elements.
template <class T>
class AverageRows {
 public:
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  static constexpr int kLanes = V::kLanes;

  AverageRows(const AveragePlan& plan, int64_t inner)
      : plan_(plan), inner_(inner), divisors_(plan.width.out * inner + kLanes, 1) {
    for (int64_t window = 0; window < plan.width.out; ++window) {
      const Acc count = plan.divisor != 0 ? Acc(1) : static_cast<Acc>(plan.width.count[window]);
      std::fill_n(divisors_.begin() + window * inner, inner, count);
    }
    pairs_ = inner == 1 && plan.width.in_pairs();
    triples_ = inner == 1 && plan.width.sliding && in_triples(*plan.width.sliding);
    if (plan.width.sliding && inner < kLanes && !pairs_ && !triples_)
      layout_.emplace(*plan.width.sliding, inner);
  }

 protected:
  // The divisors of neighbouring output elements of a row.
  V divisors(int64_t row_window, int64_t i) const {
    const Acc of_row = static_cast<Acc>(plan_.divisor != 0 ? plan_.divisor : plan_.height.count[row_window]);
    return load<Acc>(divisors_.data() + i) * of_row;
  }

  // to[at] = the sum of from[k] over the blocks k of groups[at].
  template <class To, class Divide>
  void sum_blocks(const std::vector<math::Range>& groups, const Acc* from, To* to, const Divide& divide) {
    if (inner_ == 1) return sum_elements(groups, from, to, divide);
    for (size_t at = 0; at < groups.size(); ++at) {
      const math::Range blocks = groups[at];
      const int64_t first = static_cast<int64_t>(at) * inner_;
      for_each_vector<Acc>(inner_, [&](int64_t c, int lanes) {
        V sum = Acc(0);
        for (int64_t k = blocks.first; k < blocks.end; ++k) sum += load<Acc>(from + k * inner_ + c);
        store_lanes(to + first + c, divide(sum, first + c), lanes);
      });
    }
  }

  template <class To, class Divide>
  void sum_elements(const std::vector<math::Range>& groups, const Acc* from, To* to, const Divide& divide) {
    const int64_t count = static_cast<int64_t>(groups.size());
    sums_.resize(count);
    for (int64_t at = 0; at < count; ++at) {
      Acc sum = 0;
      for (int64_t k = groups[at].first; k < groups[at].end; ++k) sum += from[k];
      sums_[at] = sum;
    }
    for_each_vector<Acc>(count, [&](int64_t i, int lanes) {
      store_lanes(to + i, divide(load_lanes(sums_.data() + i, lanes, Acc(1)), i), lanes);
    });
  }

  const AveragePlan& plan_;
  int64_t inner_;
  std::vector<Acc> sums_;
  std::vector<Acc> divisors_;  // along a row of the output
  bool pairs_;                 // whether a row's windows are two neighbours each
  bool triples_;               // or three, every two
  std::optional<SplitLayout<Acc>> layout_;
};

template <class T>
class AverageForward : AverageRows<T> {
  using Base = AverageRows<T>;
  using Base::inner_, Base::plan_, Base::layout_;
  using typename Base::Acc;
  using typename Base::V;

 public:
  AverageForward(const AveragePlan& plan, int64_t inner)
      : Base(plan, inner), columns_(plan.width.in * inner + V::kLanes) {
    if (!layout_) return;
    split_.assign(layout_->elements(), Acc(0));
    offsets_ = layout_->offsets();
  }

  void row(const T* x, int64_t row, T* output) {
    const int64_t image = row / plan_.height.out, window = row % plan_.height.out;
    const int64_t width = plan_.width.in * inner_;
    const math::Range rows = plan_.height.elements[window];
    const T* const first = x + (image * plan_.height.in + rows.first) * width;
    if (this->pairs_) return row_of_pairs(first, rows.end - rows.first, window, output);
    if (this->triples_) return row_of_triples(first, rows.end - rows.first, window, output);
    for_each_vector<Acc>(width, [&](int64_t i, int lanes) {
      V sum = Acc(0);
      for (int64_t r = 0; r < rows.end - rows.first; ++r) sum += load_lanes(first + r * width + i, lanes);
      store(columns_.data() + i, sum);
    });
    const auto divide = [&](V sum, int64_t i) { return sum / this->divisors(window, i); };
    if (!layout_) return this->sum_blocks(plan_.width.elements, columns_.data(), output, divide);
    layout_->split_row(columns_.data(), split_.data(), Acc(0));
    for_each_vector<Acc>(plan_.width.out * inner_, [&](int64_t i, int lanes) {
      V sum = Acc(0);
      for (int64_t offset : offsets_) sum += load<Acc>(split_.data() + offset + i);
      store_lanes(output + i, divide(sum, i), lanes);
    });
  }

 private:
  void row_of_pairs(const T* first, int64_t rows, int64_t window, T* output) const {
    for_each_vector<Acc>(plan_.width.out, [&](int64_t i, int lanes) {
      Alternating<T> sums{V(Acc(0)), V(Acc(0))};
      for (int64_t r = 0; r < rows; ++r) {
        const Alternating<T> x = load_alternating(first + r * plan_.width.in + 2 * i, 2 * lanes);
        sums.first += x.first;
        sums.second += x.second;
      }
      store_lanes(output + i, (sums.first + sums.second) / this->divisors(window, i), lanes);
    });
  }

  void row_of_triples(const T* first, int64_t rows, int64_t window, T* output) const {
    const int64_t width = plan_.width.in, padding = plan_.width.sliding->padding;
    for_each_vector<Acc>(plan_.width.out, [&](int64_t i, int lanes) {
      V a = Acc(0), b = Acc(0), c = Acc(0);
      for (int64_t r = 0; r < rows; ++r) {
        const auto from = load_triples<Acc>(first + r * width, 2 * i - padding, width, Acc(0));
        a += from.a, b += from.b, c += from.c;
      }
      const auto taps = TripleTaps<Acc>::of(a, b, c);
      store_lanes(output + i, (taps.tap[0] + taps.tap[1] + taps.tap[2]) / this->divisors(window, i), lanes);
    });
  }

  std::vector<Acc> columns_;  // sums down the columns
  std::vector<Acc> split_;
  std::vector<int64_t> offsets_;
};

template <class T>
class AverageBackward : AverageRows<T> {
  using Base = AverageRows<T>;
  using Base::inner_, Base::plan_, Base::layout_;
  using typename Base::Acc;
  using typename Base::V;

 public:
  AverageBackward(const AveragePlan& plan, int64_t inner) : Base(plan, inner) {
    if (layout_) {
      const math::SlidingAxis& axis = *plan.width.sliding;
      blocks_ = (axis.in + axis.padding) / axis.stride + 1;
      margin_ = layout_->reach * inner;
      merged_elements_ = blocks_ * inner + 2 * V::kLanes;
      merged_.resize(layout_->phases() * merged_elements_);
      for (int64_t phase = 0; phase < layout_->phases(); ++phase) taps_.push_back(layout_->taps_of(phase));
    }
    windows_.assign(margin_ + std::max(plan.width.out, blocks_) * inner + V::kLanes, Acc(0));
    made_.resize(plan.width.in * inner);
  }

  // Rows of the same windows have the same elements.
  void row(const T* grad_output, int64_t row, T* grad_input) {
    const int64_t image = row / plan_.height.in;
    const math::Range rows = plan_.height.windows[row % plan_.height.in];
    if (image != last_image_ || !(rows == last_rows_)) {
      last_image_ = image;
      last_rows_ = rows;
      make_row(grad_output, image, rows, made_.data());
    }
    std::copy(made_.begin(), made_.end(), grad_input);
  }

 private:
  void make_row(const T* grad_output, int64_t image, math::Range rows, T* grad_input) {
    const int64_t n = plan_.width.out * inner_;
    const auto sum_of = [&](int64_t i, int lanes) {
      V sum = Acc(0);
      for (int64_t window = rows.first; window < rows.end; ++window) {
        const T* const from = grad_output + (image * plan_.height.out + window) * n + i;
        sum += load_lanes(from, lanes) / this->divisors(window, i);
      }
      return sum;
    };
    if (this->triples_) return spread_triples(sum_of, grad_input);
    for_each_vector<Acc>(n, [&](int64_t i, int lanes) {
      const V sum = sum_of(i, lanes);
      this->pairs_ ? store_alternating(grad_input + 2 * i, Alternating<T>{sum, sum}, 2 * lanes)
                   : store_lanes(windows_.data() + margin_ + i, sum, lanes);
    });
    if (this->pairs_) return;
    if (!layout_) {
      return this->sum_blocks(plan_.width.windows, windows_.data(), grad_input,
                              [](V sum, int64_t) { return sum; });
    }
    for (int64_t phase = 0; phase < layout_->phases(); ++phase) spread(phase);
    layout_->merge_row(merged_.data(), merged_elements_, grad_input);
  }

  // An element at an even place of the padded row is the last of a window and the first of the next; one at
  // an odd place is in the middle of a window.
  template <class SumOf>
  void spread_triples(const SumOf& sum_of, T* grad_input) const {
    constexpr int kLanes = V::kLanes;
    const int64_t in = plan_.width.in, out = plan_.width.out;
    const bool padded = plan_.width.sliding->padding == 1;
    const auto sums = [&](int64_t i) {
      return i < out ? sum_of(i, static_cast<int>(std::min<int64_t>(kLanes, out - i))) : V(Acc(0));
    };
    V before = Acc(0), here = sums(0);
    for (int64_t i = 0; 2 * i < in; i += kLanes) {
      const V behind = sums(i + kLanes);
      const V even =
          padded ? here + lanes_from<1>(here, behind) : lanes_from<V::kLanes - 1>(before, here) + here;
      store_alternating(grad_input + 2 * i, padded ? Alternating<T>{here, even} : Alternating<T>{even, here},
                        in - 2 * i);
      before = here;
      here = behind;
    }
  }

  void spread(int64_t phase) {
    Acc* to = merged_.data() + phase * merged_elements_;
    for (int64_t i = 0; i < blocks_ * inner_; i += V::kLanes) {
      V sum = Acc(0);
      for (const auto& tap : taps_[phase]) sum += load<Acc>(windows_.data() + tap.offset + i);
      store(to + i, sum);
    }
  }

  int64_t blocks_ = 0;  // of a phase of the padded row
  int64_t margin_ = 0;  // zeros before the first window
  int64_t merged_elements_ = 0;
  std::vector<Acc> windows_;  // gradients summed over the rows of windows
  std::vector<Acc> merged_;
  std::vector<std::vector<typename SplitLayout<Acc>::PhaseTap>> taps_;  // by phase
  std::vector<T> made_;
  int64_t last_image_ = -1;
  math::Range last_rows_{0, -1};
};

// A vector's worth of planes at a time: one division and one rounding for all of them.
template <class T>
void global_forward(const AveragePlan& plan, const T* x, T* output, int64_t planes) {
  using Acc = acc_t<T>;
  constexpr int64_t kPlanes = Vec<Acc>::kLanes;
  const int64_t n = plan.height.in * plan.width.in;
  const Acc divisor = static_cast<Acc>(plan.divisor_of(0, 0));
  const auto join = [](Vec<Acc>& sum, int64_t, Vec<Acc> v) { sum += v; };
  parallel_for(ceil_div(planes, kPlanes), n * kPlanes, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kPlanes; first < std::min(planes, end * kPlanes); first += kPlanes) {
      const int count = static_cast<int>(std::min(kPlanes, planes - first));
      alignas(kVectorBytes) Acc sums[kPlanes] = {};
      for (int p = 0; p < count; ++p) {
        sums[p] = horizontal_sum(reduce_row(x + (first + p) * n, n, Acc(0), Acc(0), join, add<Vec<Acc>>));
      }
      store_lanes(output + first, load<Acc>(sums) / Vec<Acc>(divisor), count);
    }
  });
}

// Fills n elements. std::fill_n() does 16 bits of a short row one by one at the end.
template <class T>
void fill_row(T* to, int64_t n, T value) {
  constexpr int64_t kCount = kVectorBytes / static_cast<int64_t>(sizeof(T));
  if (n < kCount) return static_cast<void>(std::fill_n(to, n, value));
  alignas(kVectorBytes) T copies[kCount];
  std::fill_n(copies, kCount, value);
  for (int64_t i = 0; i + kCount <= n; i += kCount) memcpy(to + i, copies, sizeof(copies));
  memcpy(to + n - kCount, copies, sizeof(copies));
}

template <class T>
void global_backward(const AveragePlan& plan, const T* grad_output, T* grad_input, int64_t planes) {
  using Acc = acc_t<T>;
  constexpr int64_t kPlanes = Vec<Acc>::kLanes;
  const int64_t n = plan.height.in * plan.width.in;
  const Acc divisor = static_cast<Acc>(plan.divisor_of(0, 0));
  parallel_for(ceil_div(planes, kPlanes), n * kPlanes, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kPlanes; first < std::min(planes, end * kPlanes); first += kPlanes) {
      const int count = static_cast<int>(std::min(kPlanes, planes - first));
      T shares[kPlanes];
      store_lanes(shares, load_lanes(grad_output + first, count) / Vec<Acc>(divisor), count);
      for (int p = 0; p < count; ++p) fill_row(grad_input + (first + p) * n, n, shares[p]);
    }
  });
}

template <class Rows, class T>
void for_each_row(const AveragePlan& plan, const Image& made, const Image& read, const T* from, T* to) {
  const int64_t n = made.row_elements();
  const bool stream = passes_caches((made.elements() + read.elements()) * static_cast<int64_t>(sizeof(T)));
  parallel_for(made.rows(), n * 4, [&](int64_t begin, int64_t end) {
    Rows rows(plan, made.inner);
    RowsOut<T> out(to + begin * n, n, stream);
    for (int64_t row = begin; row < end; ++row) rows.row(from, row, out.next(n));
  });
}

Tensor forward(const Tensor& input, const Image& in, const AveragePlan& plan, const char* op) {
  const Image out = in.resized(plan.height.out, plan.width.out);
  Tensor output = new_output(input, out.shape, input.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    if (out.elements() == 0) return;
    const T* x = data<T>(input);
    T* y = mutable_data<T>(output);
    plan.global(in.inner) ? global_forward(plan, x, y, in.outer)
                          : for_each_row<AverageForward<T>>(plan, out, in, x, y);
  });
  return output;
}

Tensor backward(const Tensor& grad_output, const Image& out, const AveragePlan& plan, const char* op) {
  const Image in = out.resized(plan.height.in, plan.width.in);
  Tensor grad_input = new_output(grad_output, in.shape, grad_output.scalar_type());
  dispatch_floating(grad_output.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    if (in.elements() == 0) return;
    const T* g = data<T>(grad_output);
    T* dx = mutable_data<T>(grad_input);
    plan.global(in.inner) ? global_backward(plan, g, dx, in.outer)
                          : for_each_row<AverageBackward<T>>(plan, in, out, g, dx);
  });
  return grad_input;
}

AveragePlan sliding_plan(const Windows& windows, bool count_include_pad, int64_t divisor) {
  return {AverageAxis::of(windows.height(), count_include_pad),
          AverageAxis::of(windows.width(), count_include_pad), divisor};
}

AveragePlan adaptive_plan(const Sizes& in, const Sizes& out) {
  return {AverageAxis::adaptive(in[0], out[0]), AverageAxis::adaptive(in[1], out[1]), 0};
}

Tensor avg_pool2d_forward(Tensor input, Sizes kernel, Sizes stride, Sizes padding, bool ceil_mode,
                          bool count_include_pad, std::optional<int64_t> divisor_override,
                          bool channels_last) {
  const char* op = "avg_pool2d_forward";
  const Image in = Image::of(input, channels_last, op, "input");
  const Windows windows = Windows::of({in.height, in.width}, kernel, stride, padding, {1, 1}, ceil_mode, op);
  const int64_t divisor = check_divisor(divisor_override, op);
  return forward(input, in, sliding_plan(windows, count_include_pad, divisor), op);
}

Tensor avg_pool2d_backward(Tensor grad_output, Sizes input_size, Sizes kernel, Sizes stride, Sizes padding,
                           bool ceil_mode, bool count_include_pad, std::optional<int64_t> divisor_override,
                           bool channels_last) {
  const char* op = "avg_pool2d_backward";
  const Image out = Image::of(grad_output, channels_last, op, "grad_output");
  const Windows windows = Windows::of(input_size, kernel, stride, padding, {1, 1}, ceil_mode, op);
  windows.check_output(out, op, "grad_output");
  const int64_t divisor = check_divisor(divisor_override, op);
  return backward(grad_output, out, sliding_plan(windows, count_include_pad, divisor), op);
}

Tensor adaptive_avg_pool2d_forward(Tensor input, Sizes output_size, bool channels_last) {
  const char* op = "adaptive_avg_pool2d_forward";
  const Image in = Image::of(input, channels_last, op, "input");
  check_adaptive({in.height, in.width}, output_size, op);
  return forward(input, in, adaptive_plan({in.height, in.width}, output_size), op);
}

Tensor adaptive_avg_pool2d_backward(Tensor grad_output, Sizes input_size, bool channels_last) {
  const char* op = "adaptive_avg_pool2d_backward";
  const Image out = Image::of(grad_output, channels_last, op, "grad_output");
  check_adaptive(input_size, {out.height, out.width}, op);
  return backward(grad_output, out, adaptive_plan(input_size, {out.height, out.width}), op);
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("avg_pool2d_forward", TORCH_BOX(&pyops::cpu::avg_pool2d_forward));
  m.impl("avg_pool2d_backward", TORCH_BOX(&pyops::cpu::avg_pool2d_backward));
  m.impl("adaptive_avg_pool2d_forward", TORCH_BOX(&pyops::cpu::adaptive_avg_pool2d_forward));
  m.impl("adaptive_avg_pool2d_backward", TORCH_BOX(&pyops::cpu::adaptive_avg_pool2d_backward));
}
