// linear + cross_entropy of a small problem in one call, gradients included.
//
// Larger problems are cut into chunks of rows by pyops/ops/linear_cross_entropy.py, with one op per step. On
// a few rows those calls take many times as long as the arithmetic; here all of it is one call.
#include "binding/cross_entropy.h"
#include "cpu/classes/cross_entropy_gradients.h"
#include "cpu/epilogue/matrix.h"
#include "cpu/gemm/gemm.h"
#include "cpu/runtime/output_cache.h"

namespace pyops::cpu {
namespace {

void check_linear(const char* op, const Tensor& hidden, const Tensor& matrix,
                  const std::optional<Tensor>& bias) {
  const ScalarType type = hidden.scalar_type();
  PYOPS_CHECK(type == ScalarType::Float || type == ScalarType::Double, op,
              ": hidden must be float32 or float64, got ", torch::headeronly::toString(type));
  PYOPS_CHECK(hidden.dim() == 2 && matrix.dim() == 2 && hidden.size(1) == matrix.size(1), op,
              ": hidden [N, in] and linear_weight [C, in] must be matrices that agree in their last "
              "dimension, got ",
              shape_string(hidden), " and ", shape_string(matrix));
  check_dense(hidden, op, "hidden", hidden);
  check_dense(matrix, op, "linear_weight", hidden);
  check_type(matrix, op, "linear_weight", type);
  if (!bias) return;
  check_dense(*bias, op, "bias", hidden);
  check_type(*bias, op, "bias", type);
  check_shape(*bias, op, "bias", {matrix.size(0)});
}

// logits[N, C] = hidden[N, in] @ matrix[C, in]^T + bias.
template <class T>
void form_logits(const Tensor& hidden, const Tensor& matrix, const std::optional<Tensor>& bias, T* logits) {
  const int64_t rows = hidden.size(0), features = hidden.size(1), classes = matrix.size(0);
  const T* b = data_or_null<T>(bias);
  for (int64_t row = 0; b && row < rows; ++row) std::copy(b, b + classes, logits + row * classes);
  gemm(rows, classes, features, Operand<T>{data<T>(hidden), features, 1},
       Operand<T>{data<T>(matrix), features, 1}, logits, classes, T(b ? 1 : 0), Serial{});
}

struct Gradients {
  Tensor hidden;
  Tensor matrix;
  Tensor bias;
};

// From the logits' gradient [N, C]. An output without elements is not asked for.
template <class T>
void spread_gradient(const T* grad, const Tensor& hidden, const Tensor& matrix, const Gradients& out) {
  const int64_t rows = hidden.size(0), features = hidden.size(1), classes = matrix.size(0);
  if (out.hidden.numel() > 0) {
    gemm(rows, features, classes, Operand<T>{grad, classes, 1}, Operand<T>{data<T>(matrix), 1, features},
         mutable_data<T>(out.hidden), features, T(0), Serial{});
  }
  if (out.matrix.numel() > 0) {
    gemm(classes, features, rows, Operand<T>{grad, 1, classes}, Operand<T>{data<T>(hidden), 1, features},
         mutable_data<T>(out.matrix), features, T(0), Serial{});
  }
  if (out.bias.numel() > 0) column_sums(grad, rows, classes, mutable_data<T>(out.bias));
}

// A scalar loss and the gradients for an upstream gradient of 1, empty where they are not needed.
std::tuple<Tensor, Tensor, Tensor, Tensor> linear_cross_entropy_with_grad(
    Tensor hidden, Tensor matrix, std::optional<Tensor> bias, Tensor target, std::optional<Tensor> weight,
    std::optional<Tensor> sample_weight, int64_t reduction, int64_t ignore_index, double label_smoothing,
    double z_loss, bool needs_hidden, bool needs_matrix, bool needs_bias) {
  const char* op = "linear_cross_entropy_with_grad";
  check_linear(op, hidden, matrix, bias);
  const ScalarType type = hidden.scalar_type();
  const int64_t rows = hidden.size(0), classes = matrix.size(0);
  Tensor logits = new_tensor(hidden, {rows, classes}, type);
  const CrossEntropyArguments a(op, logits, target, weight, sample_weight, reduction, ignore_index,
                                label_smoothing, z_loss);
  PYOPS_CHECK(a.reduction != Reduction::kNone, op, ": reduction must be 1 (mean) or 2 (sum), got 0");
  const std::vector<int64_t> none{0};
  Tensor loss = new_tensor(hidden, {}, type);
  const Gradients out{new_output(hidden, needs_hidden ? shape_of(hidden) : none, type),
                      new_output(hidden, needs_matrix ? shape_of(matrix) : none, type),
                      new_output(hidden, needs_bias ? std::vector<int64_t>{classes} : none, type)};
  const auto run = [&](auto tag) {
    using T = decltype(tag);
    T* const scores = mutable_data<T>(logits);
    form_logits(hidden, matrix, bias, scores);
    const Problem<T> p(a);
    std::vector<T> stats(2 * rows);
    const T denominator = static_cast<T>(a.reduction == Reduction::kMean ? target_weight(p) : 1.0);
    const T one = 1;
    const Upstream<T> up{&one, nullptr, stats.data(), one / denominator, false};
    const LossSum sum =
        forward_rows(p, static_cast<T*>(nullptr), stats.data(),
                     [&](RowGroup group, const PanelCopy<T>&) { write_group(p, up, group, scores); });
    PYOPS_CHECK_INDEX(!sum.has_bad_target,
                      bad_target_message("linear_cross_entropy", sum.bad_target, classes, ignore_index));
    *mutable_data<T>(loss) = static_cast<T>(sum.loss / denominator);
    spread_gradient(scores, hidden, matrix, out);
  };
  type == ScalarType::Double ? run(double{}) : run(float{});
  return {loss, out.hidden, out.matrix, out.bias};
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("linear_cross_entropy_with_grad", TORCH_BOX(&pyops::cpu::linear_cross_entropy_with_grad));
}
