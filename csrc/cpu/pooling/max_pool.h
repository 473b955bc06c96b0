// Loops over the rows of max pooling, by the kind of row that suits the image.
#pragma once

#include "binding/pooling.h"
#include "cpu/pooling/max_pool_channels.h"
#include "cpu/pooling/max_pool_pairs.h"
#include "cpu/pooling/max_pool_rows.h"
#include "cpu/pooling/max_pool_triples.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/rows_out.h"

namespace pyops::cpu {

// Calls f(rows, row, to) for every row of `image`, whose elements go to `to`; each thread makes one object
// `rows` for its share. `bytes`: what the call reads and writes.
template <class Rows, class T, class F>
void for_each_row(const Image& image, const Windows& windows, int64_t work, int64_t bytes, T* output,
                  const F& f) {
  if (image.elements() == 0) return;
  const int64_t n = image.row_elements();
  parallel_for(image.rows(), n * work, [&](int64_t begin, int64_t end) {
    Rows rows(windows.height(), windows.width(), image.inner);
    RowsOut<T> out(output + begin * n, n, passes_caches(bytes));
    for (int64_t row = begin; row < end; ++row) f(rows, row, out.next(n));
  });
}

template <class Rows>
struct KindOfRows {
  using type = Rows;
};

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
  const auto gather = [&](auto& rows, int64_t row, T* to) {
    visit(row);
    rows.backward(grad_output, argmax, row, to);
  };
  const int64_t windows_of_all =
      in.elements() / std::max<int64_t>(1, in.height * in.width) * windows.height().out * windows.width().out;
  const int64_t bytes = in.elements() * static_cast<int64_t>(sizeof(T)) +
                        windows_of_all * static_cast<int64_t>(sizeof(T) + sizeof(A));
  const auto with = [&](auto kind) {
    using Rows = typename decltype(kind)::type;
    for_each_row<Rows>(in, windows, 4, bytes, grad_input, gather);
  };
  if (in_pairs(windows, in.inner)) return with(KindOfRows<MaxPoolGradientPairs<T, A>>{});
  if (in_triples(windows, in.inner)) return with(KindOfRows<MaxPoolGradientTriples<T, A>>{});
  wide<acc_t<T>>(in) ? with(KindOfRows<MaxPoolGradientChannels<T, A>>{})
                     : with(KindOfRows<MaxPoolGradientRows<T, A>>{});
}

}  // namespace pyops::cpu
