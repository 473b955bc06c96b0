// Nearest-neighbour interpolation on the CPU: rows copied forward, gathered sums of output ranges backward.
#include "math/interpolate.h"

#include <cstring>

#include "binding/interpolate.h"
#include "cpu/runtime/output_cache.h"
#include "cpu/runtime/parallel.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/loops.h"

namespace pyops::cpu {
namespace {

using math::NearestAxis;

// Along one dimension: the source of each output element, and the first output element of each source.
struct AxisTable {
  std::vector<int64_t> source;
  std::vector<int64_t> starts;  // one more than input elements
  int64_t factor = 0;           // each input element has this many outputs; 0 when they differ

  explicit AxisTable(const NearestAxis& axis) : source(axis.output), starts(axis.input + 1) {
    for (int64_t at = 0; at < axis.output; ++at) source[at] = axis.source(at);
    for (int64_t at = 0, i = 0; i <= axis.input; ++i) {
      while (at < axis.output && source[at] < i) ++at;
      starts[i] = at;
    }
    if (axis.output % axis.input != 0) return;
    factor = axis.output / axis.input;
    for (int64_t at = 0; at < axis.output; ++at) {
      if (source[at] != at / factor) factor = 0;
      if (factor == 0) return;
    }
  }
};

// Calls f with the factor as a compile-time constant, or with 0 for those that have no loop of their own.
template <class F>
void dispatch_factor(int64_t factor, const F& f) {
  if (factor == 2) return f(std::integral_constant<int, 2>{});
  if (factor == 3) return f(std::integral_constant<int, 3>{});
  if (factor == 4) return f(std::integral_constant<int, 4>{});
  return f(std::integral_constant<int, 0>{});
}

struct Tables {
  AxisTable depth, height, width;
  explicit Tables(const InterpolateShape& s) : depth(s.axes[0]), height(s.axes[1]), width(s.axes[2]) {}
};

// ---- forward: elements are copied as bits ----------------------------------------------------------------

template <class Word>
void expand_row(const Word* in, Word* out, const AxisTable& width, int64_t inner) {
  const int64_t count = width.source.size();
  if (width.factor == 1) {
    memcpy(out, in, count * inner * sizeof(Word));
  } else if (inner > 1) {
    for (int64_t w = 0; w < count; ++w)
      memcpy(out + w * inner, in + width.source[w] * inner, inner * sizeof(Word));
  } else {
    dispatch_factor(width.factor, [&](auto constant) {
      constexpr int kFactor = decltype(constant)::value;
      if constexpr (kFactor == 0) {
        for (int64_t w = 0; w < count; ++w) out[w] = in[width.source[w]];
      } else {
        for (int64_t w = 0; w < count / kFactor; ++w) {
          for (int k = 0; k < kFactor; ++k) out[w * kFactor + k] = in[w];
        }
      }
    });
  }
}

template <class Word>
void forward(const Word* PYOPS_RESTRICT x, Word* PYOPS_RESTRICT y, const InterpolateShape& s) {
  const Tables tables(s);
  const int64_t in_row = s.axes[2].input * s.inner, out_row = s.axes[2].output * s.inner;
  const int64_t height = s.axes[1].output, depth = s.axes[0].output;
  parallel_for(s.outer * depth * height, out_row, [&](int64_t begin, int64_t end) {
    const Word* copied = nullptr;  // what the row before was made of
    for (int64_t r = begin; r < end; ++r) {
      const int64_t plane = r / height;
      const int64_t in_plane = plane / depth * s.axes[0].input + tables.depth.source[plane % depth];
      const Word* in = x + (in_plane * s.axes[1].input + tables.height.source[r % height]) * in_row;
      Word* const out = y + r * out_row;
      if (in == copied) {
        memcpy(out, out - out_row, out_row * sizeof(Word));
      } else {
        expand_row(in, out, tables.width, s.inner);
      }
      copied = in;
    }
  });
}

// ---- backward: each input element sums its outputs -------------------------------------------------------

// The output rows of one input row: `planes` times `rows` of them, `plane` and `row` elements apart.
template <class T>
struct OutputRows {
  const T* first;
  int64_t planes;
  int64_t rows;
  int64_t plane;
  int64_t row;

  // The sum over the rows of the vector that begins `column` elements into each; of kRows rows of one plane,
  // unless that is 0.
  template <int kRows = 0>
  Vec<acc_t<T>> sum(int64_t column, int lanes) const {
    Vec<acc_t<T>> total = acc_t<T>(0);
    if constexpr (kRows > 0) {
      PYOPS_UNROLL
      for (int h = 0; h < kRows; ++h) total += load_lanes(first + h * row + column, lanes);
      return total;
    }
    for (int64_t d = 0; d < planes; ++d) {
      for (int64_t h = 0; h < rows; ++h) total += load_lanes(first + d * plane + h * row + column, lanes);
    }
    return total;
  }
};

// The factor of both axes, where they have the same and images no depth; 0 otherwise.
template <class T>
int64_t factor_of_both(const OutputRows<T>& from, const AxisTable& width) {
  return from.planes == 1 && from.rows == width.factor ? width.factor : 0;
}

// With the channels last, vectors run along the channels.
template <class T>
void sum_pixels(const OutputRows<T>& from, const AxisTable& width, int64_t inner, T* out) {
  const int64_t count = width.starts.size() - 1;
  dispatch_factor(factor_of_both(from, width), [&](auto constant) {
    constexpr int kFactor = decltype(constant)::value;
    for (int64_t w = 0; w < count; ++w) {
      const int64_t first = kFactor ? w * kFactor : width.starts[w];
      const int64_t last = kFactor ? first + kFactor : width.starts[w + 1];
      for_each_vector<acc_t<T>>(inner, [&](int64_t c, int lanes) {
        Vec<acc_t<T>> total = acc_t<T>(0);
        for (int64_t i = first; i < last; ++i) total += from.template sum<kFactor>(i * inner + c, lanes);
        store_lanes(out + w * inner + c, total, lanes);
      });
    }
  });
}

// Factors of 2: what two neighbours of two rows add up to.
template <class T>
void sum_pairs(const OutputRows<T>& from, int64_t count, T* out) {
  constexpr int kLanes = Vec<acc_t<T>>::kLanes;
  for_each_vector<acc_t<T>>(count, [&](int64_t i, int lanes) {
    const Vec<acc_t<T>> low = from.template sum<2>(2 * i, std::min(2 * lanes, kLanes));
    const Vec<acc_t<T>> high = 2 * lanes > kLanes ? from.template sum<2>(2 * i + kLanes, 2 * lanes - kLanes)
                                                  : Vec<acc_t<T>>(acc_t<T>(0));
    store_lanes(out + i, every_other<0>(low, high) + every_other<1>(low, high), lanes);
  });
}

// Otherwise vectors run along the rows, which are added up first. `columns` holds an output row, `sums` an
// input row.
template <class T>
void sum_row(const OutputRows<T>& from, const AxisTable& width, acc_t<T>* PYOPS_RESTRICT columns,
             acc_t<T>* PYOPS_RESTRICT sums, T* out) {
  using Acc = acc_t<T>;
  const int64_t count = width.starts.size() - 1;
  if (factor_of_both(from, width) == 2) return sum_pairs(from, count, out);
  for_each_vector<Acc>(width.source.size(),
                       [&](int64_t i, int lanes) { store_lanes(columns + i, from.sum(i, lanes), lanes); });
  dispatch_factor(width.factor, [&](auto constant) {
    constexpr int kFactor = decltype(constant)::value;
    for (int64_t w = 0; w < count; ++w) {
      const int64_t first = kFactor ? w * kFactor : width.starts[w];
      const int64_t last = kFactor ? first + kFactor : width.starts[w + 1];
      Acc total = 0;
      for (int64_t i = first; i < last; ++i) total += columns[i];
      sums[w] = total;
    }
  });
  for_each_vector<Acc>(
      count, [&](int64_t i, int lanes) { store_lanes(out + i, load_lanes(sums + i, lanes), lanes); });
}

template <class T>
void backward(const T* grad, T* dx, const InterpolateShape& s) {
  const Tables tables(s);
  const int64_t in_row = s.axes[2].input * s.inner, out_row = s.axes[2].output * s.inner;
  const int64_t height = s.axes[1].input, depth = s.axes[0].input;
  const int64_t out_plane = s.axes[1].output * out_row;
  const int64_t rows = s.outer * depth * height;
  const int64_t cost = std::max(in_row, s.output_elements() / std::max<int64_t>(rows, 1));
  parallel_for(rows, cost, [&](int64_t begin, int64_t end) {
    std::vector<acc_t<T>> columns(s.inner == 1 ? out_row : 0), sums(s.inner == 1 ? in_row : 0);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t d = r / height % depth, h = r % height, outer = r / height / depth;
      const int64_t* planes = &tables.depth.starts[d];
      const int64_t* range = &tables.height.starts[h];
      const T* first = grad + (outer * s.axes[0].output + planes[0]) * out_plane + range[0] * out_row;
      const OutputRows<T> from{first, planes[1] - planes[0], range[1] - range[0], out_plane, out_row};
      if (s.inner == 1) {
        sum_row(from, tables.width, columns.data(), sums.data(), dx + r * in_row);
      } else {
        sum_pixels(from, tables.width, s.inner, dx + r * in_row);
      }
    }
  });
}

// ---- ops -------------------------------------------------------------------------------------------------

Tensor interpolate_nearest_forward(Tensor input, std::vector<int64_t> output_size,
                                   std::vector<double> scale_factors, bool exact, bool channels_last) {
  const char* op = "interpolate_nearest_forward";
  std::vector<int64_t> shape;
  const InterpolateShape s =
      check_interpolate(input, "input", output_size, scale_factors, exact, channels_last, true, op, shape);
  Tensor output = new_output(input, shape, input.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using Word = std::conditional_t<sizeof(tag) == 2, uint16_t,
                                    std::conditional_t<sizeof(tag) == 4, uint32_t, uint64_t>>;
    if (s.output_elements() == 0) return;
    forward(data<Word>(input), mutable_data<Word>(output), s);
  });
  return output;
}

Tensor interpolate_nearest_backward(Tensor grad_output, std::vector<int64_t> input_size,
                                    std::vector<double> scale_factors, bool exact, bool channels_last) {
  const char* op = "interpolate_nearest_backward";
  std::vector<int64_t> shape;
  const InterpolateShape s = check_interpolate(grad_output, "grad_output", input_size, scale_factors, exact,
                                               channels_last, false, op, shape);
  Tensor grad_input = new_output(grad_output, shape, grad_output.scalar_type());
  dispatch_floating(grad_output.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    if (s.input_elements() == 0) return;
    backward(data<T>(grad_output), mutable_data<T>(grad_input), s);
  });
  return grad_input;
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("interpolate_nearest_forward", TORCH_BOX(&pyops::cpu::interpolate_nearest_forward));
  m.impl("interpolate_nearest_backward", TORCH_BOX(&pyops::cpu::interpolate_nearest_backward));
}
