// Which algorithm serves a convolution: an ordered table per direction, whose first row that suits the
// problem runs.
//
// - few_channels: sums over an element's window, without tiles. Of so few channels a tile would be almost
// empty.
// - implicit_gemm: a matrix product of tiles, one operand of which is gathered from the image while it is
// loaded.
//
// A rule that leaves some shapes to the vendor's library would be a row here. There is none, because none was
// measured.
#pragma once

#include "cuda/conv2d/problem.cuh"

namespace pyops::cuda {

// A row of a table.
template <class Problem>
struct Algorithm {
  const char* name;
  bool (*suits)(const Problem&);
  void (*run)(const Problem&);
};

inline bool has_few_channels(const Conv2dShape& s) {
  constexpr int64_t kFewFactors = 16;
  return s.in_channels / s.groups * (s.out_channels / s.groups) <= kFewFactors;
}
template <class Problem>
bool few_channels_suits(const Problem& problem) {
  return has_few_channels(problem.shape);
}
template <class Problem>
bool always_suits(const Problem&) {
  return true;
}

// few_channels.cu
template <class T>
void few_channels_correlate(const CorrelationProblem<T>& problem);
template <class T>
void few_channels_weight_gradient(const WeightGradientProblem<T>& problem);
// correlate.cu
template <class T>
void implicit_gemm_correlate(const CorrelationProblem<T>& problem);
// weight.cu
template <class T>
void implicit_gemm_weight_gradient(const WeightGradientProblem<T>& problem);

// The output, and the data gradient.
template <class T>
constexpr Algorithm<CorrelationProblem<T>> kCorrelations[] = {
    {"few_channels", few_channels_suits, few_channels_correlate},
    {"implicit_gemm", always_suits, implicit_gemm_correlate},
};

template <class T>
constexpr Algorithm<WeightGradientProblem<T>> kWeightGradients[] = {
    {"few_channels", few_channels_suits, few_channels_weight_gradient},
    {"implicit_gemm", always_suits, implicit_gemm_weight_gradient},
};

// The first that suits; the last row of a table always does.
template <class Problem, size_t kCount>
const Algorithm<Problem>& algorithm_for(const Algorithm<Problem> (&table)[kCount], const Problem& problem) {
  return *std::find_if(table, table + kCount - 1, [&](const auto& row) { return row.suits(problem); });
}

// The input as the chosen algorithm reads it: few_channels reads it in place, implicit_gemm 16 bytes of
// neighbouring channels at a time, for which it may need a copy (layout.cuh). Of an input with few channels
// that copy would be mostly padding, so implicit_gemm gathers its elements in place, too.
template <class T>
ConvOperand<T> input_operand(const Conv2dShape& s, const Tensor& input, cudaStream_t stream) {
  constexpr int64_t kFewInputs = 8;
  const bool gathers = has_few_channels(s) || (sizeof(T) < 8 && s.in_channels / s.groups <= kFewInputs);
  return conv_operand<T>(input, is_channels_last(input), s.groups, gathers, stream);
}

// The output's gradient, as the data gradient and the weight gradient read it.
template <class T>
ConvOperand<T> gradient_operand(const Conv2dShape& s, const Tensor& grad, cudaStream_t stream) {
  return conv_operand<T>(grad, s.channels_last, s.groups, has_few_channels(s), stream);
}

}  // namespace pyops::cuda
