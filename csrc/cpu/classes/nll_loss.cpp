// Negative log-likelihood on the CPU: a gather forward, a scatter into zeros backward.
#include "math/nll_loss.h"

#include <cstring>

#include "binding/nll_loss.h"
#include "cpu/classes/row_groups.h"
#include "cpu/runtime/output_cache.h"
#include "cpu/runtime/rows_out.h"

namespace pyops::cpu {
namespace {

// The losses of rows of contiguous classes, added up in turns: one sum would wait for itself longer than a
// row takes, and the elements, each in a line of memory of its own, would be asked for too late.
template <class T>
LossSum sum_rows(const T* x, const int64_t* y, const acc_t<T>* w, int64_t classes, int64_t ignore_index,
                 int64_t rows, acc_t<T>* row_loss) {
  using Acc = acc_t<T>;
  constexpr int64_t kTurns = 4;
  double losses[kTurns] = {}, weights[kTurns] = {};
  LossSum sum;
  const auto add = [&](int64_t r, int64_t turn) __attribute__((always_inline)) {
    const int64_t c = y[r];
    Acc loss = 0;
    if (c != ignore_index) {
      if (static_cast<uint64_t>(c) >= static_cast<uint64_t>(classes)) return sum.reject(c);
      const Acc row_weight = w ? w[c] : Acc(1);
      loss = math::nll_loss(to_acc(x[r * classes + c]), row_weight);
      losses[turn] += loss;
      weights[turn] += row_weight;
    }
    if (row_loss) row_loss[r] = loss;
  };
  int64_t r = 0;
  for (; r + kTurns <= rows; r += kTurns) {
    PYOPS_UNROLL
    for (int64_t turn = 0; turn < kTurns; ++turn) add(r + turn, turn);
  }
  for (; r < rows; ++r) add(r, 0);
  sum.loss = (losses[0] + losses[1]) + (losses[2] + losses[3]);
  sum.weight = (weights[0] + weights[1]) + (weights[2] + weights[3]);
  return sum;
}

template <class T>
LossSum forward(const Tensor& log_probs, const Tensor& target, const std::optional<Tensor>& weight,
                const ClassRows& s, int64_t ignore_index, acc_t<T>* row_loss) {
  using Acc = acc_t<T>;
  const T* x = data<T>(log_probs);
  const int64_t* y = data<int64_t>(target);
  const Acc* w = data_or_null<Acc>(weight);
  // A row costs so little that thousands stay on one thread, which waits for no other.
  constexpr int64_t kRowCost = 8;
  return parallel_sum<LossSum>(s.rows(), s.inner == 1 ? kRowCost : 4, [&](int64_t begin, int64_t end) {
    if (s.inner == 1) {
      return sum_rows(x + begin * s.classes, y + begin, w, s.classes, ignore_index, end - begin,
                      row_loss ? row_loss + begin : nullptr);
    }
    LossSum sum;
    // The sums are kept in registers and the position is counted up: a sum in memory, or a division per row,
    // would take longer than the row.
    double loss_sum = 0, weight_sum = 0;
    const T* image = x + begin / s.inner * s.classes * s.inner;
    int64_t l = begin % s.inner - 1;
    for (int64_t r = begin; r < end; ++r) {
      if (++l == s.inner) {
        l = 0;
        image += s.classes * s.inner;
      }
      const int64_t c = y[r];
      Acc loss = 0;
      if (c != ignore_index) {
        if (c < 0 || c >= s.classes) {
          sum.reject(c);
          continue;
        }
        const Acc row_weight = w ? w[c] : Acc(1);
        loss = math::nll_loss(to_acc(image[c * s.inner + l]), row_weight);
        weight_sum += row_weight;
      }
      loss_sum += loss;
      if (row_loss) row_loss[r] = loss;
    }
    sum.loss = loss_sum;
    sum.weight = weight_sum;
    return sum;
  });
}

std::tuple<Tensor, Tensor> nll_loss_forward(Tensor log_probs, Tensor target, std::optional<Tensor> weight,
                                            int64_t reduction_code, int64_t ignore_index) {
  const char* op = "nll_loss_forward";
  const Reduction reduction = check_reduction(reduction_code, op);
  const ClassRows s = check_nll_loss_forward(log_probs, target, weight, op);
  const ScalarType acc = accumulate_type(log_probs.scalar_type());
  const bool per_row = reduction == Reduction::kNone;
  Tensor loss = new_tensor(log_probs, per_row ? s.row_shape : std::vector<int64_t>{}, acc);
  Tensor total_weight = new_tensor(log_probs, {}, acc);
  dispatch_floating(log_probs.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    using Acc = acc_t<T>;
    Acc* out = mutable_data<Acc>(loss);
    const LossSum sum = forward<T>(log_probs, target, weight, s, ignore_index, per_row ? out : nullptr);
    PYOPS_CHECK_INDEX(!sum.has_bad_target,
                      bad_target_message("nll_loss", sum.bad_target, s.classes, ignore_index));
    if (!per_row) *out = static_cast<Acc>(reduction == Reduction::kMean ? sum.loss / sum.weight : sum.loss);
    *mutable_data<Acc>(total_weight) = static_cast<Acc>(sum.weight);
  });
  return {loss, total_weight};
}

template <class T>
void backward(const Tensor& grad_loss, const Tensor& target, const std::optional<Tensor>& weight,
              const Tensor& total_weight, const ClassRows& s, Reduction reduction, int64_t ignore_index,
              Tensor& grad_input) {
  using Acc = acc_t<T>;
  const Acc* g = data<Acc>(grad_loss);
  const Acc total = *data<Acc>(total_weight);
  const int64_t* y = data<int64_t>(target);
  const Acc* w = data_or_null<Acc>(weight);
  T* dx = mutable_data<T>(grad_input);
  // What no cache keeps is zeroed by memset(), which does not read long rows before; the rest by vectors.
  const bool large = passes_caches(s.rows() * s.classes * static_cast<int64_t>(sizeof(T)));
  parallel_for(s.batch, s.classes * s.inner, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      T* image = dx + n * s.classes * s.inner;
      if (large) {
        memset(image, 0, sizeof(T) * s.classes * s.inner);
      } else {
        transform(s.classes * s.inner, [] { return Vec<Acc>(Acc(0)); }, image);
      }
      for (int64_t l = 0; l < s.inner; ++l) {
        const int64_t r = n * s.inner + l;
        const int64_t c = y[r];
        if (c == ignore_index || c < 0 || c >= s.classes) continue;
        Acc grad = reduction == Reduction::kNone ? g[r] : g[0];
        if (reduction == Reduction::kMean) grad /= total;
        image[c * s.inner + l] = from_acc<T>(math::nll_gradient(grad, w ? w[c] : Acc(1)));
      }
    }
  });
}

Tensor nll_loss_backward(Tensor grad_loss, Tensor target, std::optional<Tensor> weight, Tensor total_weight,
                         int64_t num_classes, int64_t reduction_code, int64_t ignore_index, ScalarType type) {
  const char* op = "nll_loss_backward";
  const Reduction reduction = check_reduction(reduction_code, op);
  const ClassRows s =
      check_nll_loss_backward(grad_loss, target, weight, total_weight, num_classes, reduction, type, op);
  Tensor grad_input = new_output(grad_loss, s.full_shape(), type);
  dispatch_floating(type, op, [&](auto tag) {
    backward<decltype(tag)>(grad_loss, target, weight, total_weight, s, reduction, ignore_index, grad_input);
  });
  return grad_input;
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("nll_loss_forward", TORCH_BOX(&pyops::cpu::nll_loss_forward));
  m.impl("nll_loss_backward", TORCH_BOX(&pyops::cpu::nll_loss_backward));
}
