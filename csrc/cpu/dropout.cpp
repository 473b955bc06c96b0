// Dropout, and bias + activation + dropout + residual in one pass, on the CPU.
#include "binding/dropout.h"

#include <numeric>
#include <type_traits>

#include "common/integers.h"
#include "cpu/epilogue/pairs.h"
#include "cpu/epilogue/row.h"
#include "cpu/runtime/output_cache.h"
#include "cpu/runtime/parallel.h"

namespace pyops::cpu {
namespace {

// Shorter rows are joined, so that they fill vectors and blocks of draws.
constexpr int64_t kShortestRow = 256;
constexpr int64_t kShortestInner = 64;
constexpr int64_t kLongestJoined = int64_t{1} << 16;
constexpr int64_t kPiece = 4 * kDrawChunk;
// Rows whose gradients are added up before the sum is added to a longer one: rounding errors stay small.
constexpr int64_t kRowsPerSum = 32;
constexpr int64_t kRowBlocks = 32;

// A contiguous tensor as rows of `width` elements (the last may be shorter) with either a bias for each
// element, the same in all rows, or one for the whole row: row r has channel r % channels.
struct Rows {
  ReducedShape shape;
  int64_t total;
  int64_t width;
  bool bias_per_element;

  static Rows of(const ReducedShape& s, bool has_bias) {
    const int64_t total = s.outer * s.classes * s.inner, joined = s.classes * s.inner;
    if (!has_bias || total == 0) return {s, total, std::max<int64_t>(total, 1), true};
    if (s.inner == 1 || (s.inner < kShortestInner && joined <= kLongestJoined)) {
      return {s, total, joined * ceil_div(kShortestRow, joined), true};
    }
    return {s, total, s.inner, false};
  }

  int64_t count() const { return ceil_div(total, width); }
  int64_t width_of(int64_t row) const { return std::min(width, total - row * width); }
  int64_t channel(int64_t i) const { return i / shape.inner % shape.classes; }  // of element i of a row
};

// The bias as RowBias wants it for any row.
template <class T>
class Bias {
 public:
  using Acc = acc_t<T>;

  Bias(const T* bias, const Rows& rows) : bias_(bias), rows_(rows) {
    if (!bias || rows.total == 0 || !rows.bias_per_element) return;
    if constexpr (std::is_same_v<T, Acc>) {
      if (rows.width == rows.shape.classes) {
        row_ = bias;
        return;
      }
    }
    expanded_.resize(rows.width);
    for (int64_t i = 0, n = 0, c = 0; i < rows.width; ++i) {
      expanded_[i] = to_acc(bias[c]);
      if (++n < rows.shape.inner) continue;
      n = 0;
      if (++c == rows.shape.classes) c = 0;
    }
    row_ = expanded_.data();
  }

  // Of element `begin` of row `row` on. `copies` holds what is returned.
  RowBias<Acc> of(int64_t row, int64_t begin, Acc (&copies)[RowBias<Acc>::kCopies]) const {
    if (!bias_) return {};
    if (rows_.bias_per_element) return RowBias<Acc>::per_element(row_ + begin);
    std::fill_n(copies, RowBias<Acc>::kCopies, to_acc(bias_[row % rows_.shape.classes]));
    return RowBias<Acc>::one(copies);
  }

 private:
  const T* bias_;
  const Rows& rows_;
  const Acc* row_ = nullptr;
  std::vector<Acc> expanded_;
};

// Calls f(mask, row, begin, count) for all elements, in pieces of rows.
template <class Acc, class F>
void for_each_piece(const Rows& rows, const std::optional<Tensor>& seed, double p, const F& f) {
  const int64_t pieces = ceil_div(rows.width, kPiece);
  parallel_for(rows.count() * pieces, std::min(rows.width, kPiece), [&](int64_t first, int64_t last) {
    DropoutMask<Acc> mask(seed_data(seed), p);
    for (int64_t u = first; u < last; ++u) {
      const int64_t row = u / pieces, begin = u % pieces * kPiece;
      const int64_t count = std::min(kPiece, rows.width_of(row) - begin);
      if (count > 0) f(mask, row, begin, count);
    }
  });
}

template <class T, class Activation>
void forward(const Activation& activation, const Tensor& input, const Rows& rows,
             const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
             const std::optional<Tensor>& seed, double p, T* y) {
  using Acc = acc_t<T>;
  const T* x = data<T>(input);
  const T* r = data_or_null<T>(residual);
  const Bias<T> biases(data_or_null<T>(bias), rows);
  for_each_piece<Acc>(rows, seed, p, [&](auto& mask, int64_t row, int64_t begin, int64_t count) {
    Acc copies[RowBias<Acc>::kCopies];
    const RowBias<Acc> b = biases.of(row, begin, copies);
    const int64_t at = row * rows.width + begin;
    if constexpr (std::is_same_v<T, bfloat16> && !Activation::kOnPieces) {
      epilogue_forward_in_pairs(activation, mask, x + at, b, r ? r + at : nullptr, y + at, count, at);
    } else {
      epilogue_forward<T, T>(activation, mask, x + at, b, r ? r + at : nullptr, y + at, nullptr, count, at);
    }
  });
}

// The tensors of backward, and the gradient of a piece of a row.
template <class T, class Activation>
struct Backward {
  using Acc = acc_t<T>;
  const Activation& activation;
  const T* grad;
  const T* saved;
  bool saved_is_output;
  Bias<T> bias;
  T* dx;
  const Rows& rows;
  const std::optional<Tensor>& seed;
  double p;

  void piece(DropoutMask<Acc>& mask, int64_t row, int64_t begin, int64_t count, Acc* sums,
             int64_t sums_wrap) const {
    Acc copies[RowBias<Acc>::kCopies];
    const int64_t at = row * rows.width + begin;
    const EpilogueSaved<T> s{saved ? saved + at : nullptr, saved_is_output, bias.of(row, begin, copies)};
    epilogue_backward<T>(activation, mask, grad + at, s, dx + at, sums, sums_wrap, count, at);
  }

  void without_bias_gradient() const {
    for_each_piece<Acc>(rows, seed, p, [&](auto& mask, int64_t row, int64_t begin, int64_t count) {
      piece(mask, row, begin, count, nullptr, -1);
    });
  }

  // Tiles of some rows by some columns add up their columns; db = sum over the tiles of a column, in order.
  void with_bias_per_element(T* db) const {
    constexpr int64_t kColumns = kDrawChunk;
    const int64_t count = rows.count(), column_tiles = ceil_div(rows.width, kColumns);
    const int64_t columns = std::min(rows.width, kColumns);
    const int64_t height = std::max(ceil_div(count, kRowBlocks), cost::kBlockElements / columns);
    const int64_t row_tiles = ceil_div(count, height);
    std::vector<Acc> sums(row_tiles * rows.width);
    parallel_for(row_tiles * column_tiles, height * columns, [&](int64_t first, int64_t last) {
      DropoutMask<Acc> mask(seed_data(seed), p);
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t begin = tile % column_tiles * kColumns, top = tile / column_tiles * height;
        sum_tile(mask, top, std::min(count, top + height), begin,
                 &sums[tile / column_tiles * rows.width + begin]);
      }
    });
    merge_columns(sums, row_tiles, db);
  }

  void sum_tile(DropoutMask<Acc>& mask, int64_t top, int64_t bottom, int64_t begin, Acc* total) const {
    alignas(kVectorBytes) Acc sums[kDrawChunk];
    const int64_t columns = std::min(kDrawChunk, rows.width - begin);
    for (int64_t row = top; row < bottom;) {
      std::fill_n(sums, columns, Acc(0));
      for (const int64_t end = std::min(bottom, row + kRowsPerSum); row < end; ++row) {
        const int64_t count = std::min(columns, rows.width_of(row) - begin);
        if (count > 0) piece(mask, row, begin, count, sums, -1);
      }
      for (int64_t i = 0; i < columns; ++i) total[i] += sums[i];
    }
  }

  // sums [tiles, width]: over the tiles, then over the elements of the row that share a channel.
  void merge_columns(const std::vector<Acc>& sums, int64_t tiles, T* db) const {
    const int64_t channels = rows.shape.classes;
    std::vector<double> columns(rows.width);
    parallel_for(rows.width, tiles, [&](int64_t first, int64_t last) {
      for (int64_t t = 0; t < tiles; ++t) {
        for (int64_t i = first; i < last; ++i) columns[i] += sums[t * rows.width + i];
      }
    });
    std::vector<double> total(channels);
    for (int64_t i = 0, n = 0, c = 0; i < rows.width; ++i) {
      total[c] += columns[i];
      if (++n < rows.shape.inner) continue;
      n = 0;
      if (++c == channels) c = 0;
    }
    for (int64_t c = 0; c < channels; ++c) db[c] = from_acc<T>(static_cast<Acc>(total[c]));
  }

  // A row's elements share a bias: pieces of rows are summed, and then the pieces of a channel in order.
  void with_bias_per_row(T* db) const {
    constexpr int64_t kLong = 16 * kDrawChunk, kCopies = RowBias<Acc>::kCopies;
    const int64_t pieces = ceil_div(rows.width, kLong), channels = rows.shape.classes;
    std::vector<Acc> sums(rows.count() * pieces);
    parallel_for(rows.count() * pieces, std::min(rows.width, kLong), [&](int64_t first, int64_t last) {
      DropoutMask<Acc> mask(seed_data(seed), p);
      for (int64_t u = first; u < last; ++u) {
        const int64_t begin = u % pieces * kLong;
        alignas(kVectorBytes) Acc lanes[kCopies] = {};
        piece(mask, u / pieces, begin, std::min(kLong, rows.width - begin), lanes, kCopies - 1);
        sums[u] = static_cast<Acc>(std::accumulate(lanes, lanes + kCopies, 0.0));
      }
    });
    for (int64_t c = 0; c < channels; ++c) {
      double total = 0;
      for (int64_t row = c; row < rows.count(); row += channels) {
        for (int64_t k = 0; k < pieces; ++k) total += sums[row * pieces + k];
      }
      db[c] = from_acc<T>(static_cast<Acc>(total));
    }
  }
};

Tensor dropout(Tensor input, Tensor seed, double p) {
  const char* op = "dropout";
  check_dense(input, op, "input", input);
  check_dropout_mask(seed, p, op, input);
  Tensor output = new_output(input, shape_of(input), input.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    const Rows rows = Rows::of(bias_shape(input, false, 0, op), false);
    forward<T>(OneActivation<math::Identity<acc_t<T>>>{}, input, rows, {}, {}, seed, p,
               mutable_data<T>(output));
  });
  return output;
}

void dropout_(Tensor input, Tensor seed, double p) {
  const char* op = "dropout_";
  check_dense(input, op, "input", input);
  check_dropout_mask(seed, p, op, input);
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    const Rows rows = Rows::of(bias_shape(input, false, 0, op), false);
    forward<T>(OneActivation<math::Identity<acc_t<T>>>{}, input, rows, {}, {}, seed, p,
               mutable_data<T>(input));
  });
}

// Calls f(dtype tag, activation), for the dtype's accumulation type.
template <class F>
void dispatch_fused(ScalarType type, const math::ActivationParams& params, const char* op, const F& f) {
  dispatch_floating(type, op, [&](auto tag) {
    with_activation<acc_t<decltype(tag)>>(params, [&](const auto& activation) { f(tag, activation); });
  });
}

Tensor bias_activation_dropout_forward(Tensor input, std::optional<Tensor> bias,
                                       std::optional<Tensor> residual, std::optional<Tensor> seed, double p,
                                       int64_t kind, double alpha, double beta, int64_t dim) {
  const char* op = "bias_activation_dropout_forward";
  const math::ActivationParams params{kind, alpha, beta};
  const ReducedShape shape = check_fused_forward(input, bias, residual, seed, p, params, dim, op);
  Tensor output = new_output(input, shape_of(input), input.scalar_type());
  dispatch_fused(input.scalar_type(), params, op, [&](auto tag, const auto& activation) {
    using T = decltype(tag);
    const Rows rows = Rows::of(shape, bias.has_value());
    forward<T>(activation, input, rows, bias, residual, seed, p, mutable_data<T>(output));
  });
  return output;
}

std::tuple<Tensor, Tensor> bias_activation_dropout_backward(
    Tensor grad_output, std::optional<Tensor> saved, std::optional<Tensor> bias, std::optional<Tensor> seed,
    double p, int64_t kind, double alpha, double beta, int64_t dim, bool saved_is_output, bool needs_bias) {
  const char* op = "bias_activation_dropout_backward";
  const math::ActivationParams params{kind, alpha, beta};
  const ReducedShape shape =
      check_fused_backward(grad_output, saved, bias, seed, p, params, dim, saved_is_output, needs_bias, op);
  const ScalarType type = grad_output.scalar_type();
  Tensor grad_input = new_output(grad_output, shape_of(grad_output), type);
  Tensor grad_bias = new_tensor(grad_output, {needs_bias ? shape.classes : 0}, type);
  dispatch_fused(type, params, op, [&](auto tag, const auto& activation) {
    using T = decltype(tag);
    const Rows rows = Rows::of(shape, needs_bias || bias.has_value());
    const Backward<T, std::decay_t<decltype(activation)>> backward{activation,
                                                                   data<T>(grad_output),
                                                                   data_or_null<T>(saved),
                                                                   saved_is_output,
                                                                   Bias<T>(data_or_null<T>(bias), rows),
                                                                   mutable_data<T>(grad_input),
                                                                   rows,
                                                                   seed,
                                                                   p};
    T* db = mutable_data<T>(grad_bias);
    if (!needs_bias) {
      backward.without_bias_gradient();
    } else if (rows.total == 0) {
      std::fill_n(db, shape.classes, from_acc<T>(acc_t<T>(0)));
    } else if (rows.bias_per_element) {
      backward.with_bias_per_element(db);
    } else {
      backward.with_bias_per_row(db);
    }
  });
  return {grad_input, grad_bias};
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("dropout", TORCH_BOX(&pyops::cpu::dropout));
  m.impl("dropout_", TORCH_BOX(&pyops::cpu::dropout_));
  m.impl("bias_activation_dropout_forward", TORCH_BOX(&pyops::cpu::bias_activation_dropout_forward));
  m.impl("bias_activation_dropout_backward", TORCH_BOX(&pyops::cpu::bias_activation_dropout_backward));
}
