// Loops over the rows of max pooling, by the kind of row that suits the image.
#pragma once

#include "binding/pooling.h"
#include "cpu/pooling/max_pool_channels.h"
#include "cpu/pooling/max_pool_pairs.h"
#include "cpu/pooling/max_pool_rows.h"
#include "cpu/runtime/parallel.h"

namespace pyops::cpu {

// Calls f(rows, row) for every row of `image`; each thread makes one object `rows` for its share.
template <class Rows, class F>
void for_each_row(const Image& image, const Windows& windows, int64_t work, const F& f) {
  if (image.elements() == 0) return;
  parallel_for(image.rows(), image.row_elements() * work, [&](int64_t begin, int64_t end) {
    Rows rows(windows.height(), windows.width(), image.inner);
    for (int64_t row = begin; row < end; ++row) f(rows, row);
  });
}

// Whether a pixel's channels fill a vector.
template <class Acc>
bool wide(const Image& image) {
  return image.inner >= Vec<Acc>::kLanes;
}

// The gradient of images `in`: every element sums the gradients of the windows it is the maximum of. Calls
// visit(row) before each row of elements.
template <class T, class A, class Visit>
void max_pool_gradient(const Image& in, const Windows& windows, const T* grad_output, const A* argmax,
                       T* grad_input, const Visit& visit) {
  const auto gather = [&](auto& rows, int64_t row) {
    visit(row);
    rows.backward(grad_output, argmax, row, grad_input + row * in.row_elements());
  };
  if (in_pairs(windows, in.inner)) return for_each_row<MaxPoolGradientPairs<T, A>>(in, windows, 4, gather);
  wide<acc_t<T>>(in) ? for_each_row<MaxPoolGradientChannels<T, A>>(in, windows, 4, gather)
                     : for_each_row<MaxPoolGradientRows<T, A>>(in, windows, 4, gather);
}

}  // namespace pyops::cpu
