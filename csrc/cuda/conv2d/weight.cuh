// How the parts of a weight gradient become one.
#pragma once

#include "cuda/conv2d/problem.cuh"

namespace pyops::cuda {

// Adds the parts [parts, groups x outputs, taps x channels] up into the problem's weight gradient
// (weight.cu).
template <class T>
void merge_parts(const WeightGradientProblem<T>& problem, const Tensor& parts);

}  // namespace pyops::cuda
