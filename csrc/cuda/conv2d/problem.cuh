// What an algorithm of the convolution is given. T is a tensor's element type.
#pragma once

#include "cuda/conv2d/epilogue.cuh"
#include "cuda/conv2d/layout.cuh"

namespace pyops::cuda {

// One launch's share of the output or of the data gradient.
template <class T>
struct CorrelationProblem {
  const Conv2dShape& shape;
  Correlation correlation;
  const ConvSource<T>& source;
  const Tensor& weight;
  WeightStrides strides;
  int64_t inputs;  // channels of a group of the source that have weights; those beyond, if any, are zeros
  ConvEpilogue<T> epilogue;
  cudaStream_t stream;
};

// The weight gradient: sums over the pixels of the output.
template <class T>
struct WeightGradientProblem {
  const Conv2dShape& shape;
  const ConvSource<T>& grad;
  const ConvSource<T>& source;  // the input, or its copy, whose groups may end in channels of zeros
  const Tensor& grad_weight;
  cudaStream_t stream;
};

// Whether torch lets convolutions of float32 round their factors to TF32 (conv2d.cu).
bool conv2d_allows_tf32();

}  // namespace pyops::cuda
