// Winograd's minimal filtering F(2, 3): two outputs of a correlation with three taps from four inputs and
// four multiplications instead of six (Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray,
// Fast Algorithms for Convolutional Neural Networks, 2015). In two dimensions, the transforms along columns
// and rows make it 16 multiplications for 2 x 2 outputs of 3 x 3 taps instead of 36:
//
//   output = sum_out( to_domain(input) * weight_to_domain(weight) )
//
// F(4, 3) makes it 36 multiplications for 4 x 4 outputs instead of 144, but its transforms lose two to three
// bits of a sum's: they are for results that are rounded to 16 bits.
//
// F(2, 2) is the same for two taps: three inputs, three multiplications instead of four. A kernel of three
// taps that moves in steps of 2 meets the inputs of even numbers with two of them and those of odd numbers
// with one, whose products join the sums of the first and of the last multiplication: five instead of six, 25
// of 36 in two dimensions, and three sums.
//
// The multiplications are the same for the weight's gradient, with the transforms of output and weight
// transposed. In F(2, 3) multiplying by 1/2 is exact, so all rounding is that of a few additions.
#pragma once

#include "common/macros.h"

namespace pyops::math {

// B^T d
template <class V>
PYOPS_HD void winograd_input(const V (&d)[4], V (&to)[4]) {
  to[0] = d[0] - d[2];
  to[1] = d[1] + d[2];
  to[2] = d[2] - d[1];
  to[3] = d[1] - d[3];
}

template <class V>
PYOPS_HD void winograd_input(const V (&d)[3], V (&to)[3]) {
  to[0] = d[0] - d[1];
  to[1] = d[1];
  to[2] = d[2] - to[1];
}

// G g
template <class V>
PYOPS_HD void winograd_weight(const V (&g)[3], V (&to)[4]) {
  const V ends = (g[0] + g[2]) * V(0.5f), middle = g[1] * V(0.5f);
  to[0] = g[0];
  to[1] = ends + middle;
  to[2] = ends - middle;
  to[3] = g[2];
}

template <class V>
PYOPS_HD void winograd_weight(const V (&g)[2], V (&to)[3]) {
  to[0] = g[0];
  to[1] = g[0] + g[1];
  to[2] = g[1];
}

// The same of a single tap: nothing is at position 1.
template <class V>
PYOPS_HD void winograd_single_input(const V (&d)[3], V (&to)[3]) {
  to[0] = d[0];
  to[1] = V(0.0f);
  to[2] = d[1];
}

template <class V>
PYOPS_HD void winograd_single_weight(const V (&g)[2], V (&to)[3]) {
  to[0] = g[0];
  to[1] = V(0.0f);
  to[2] = g[0];
}

// A^T m
template <class V>
PYOPS_HD void winograd_output(const V (&m)[4], V (&to)[2]) {
  to[0] = m[0] + m[1] + m[2];
  to[1] = m[1] - m[2] - m[3];
}

template <class V>
PYOPS_HD void winograd_output(const V (&m)[3], V (&to)[2]) {
  to[0] = m[0] + m[1];
  to[1] = m[1] + m[2];
}

// A y, the transpose of winograd_output
template <class V>
PYOPS_HD void winograd_output_gradient(const V (&y)[2], V (&to)[4]) {
  to[0] = y[0];
  to[1] = y[0] + y[1];
  to[2] = y[0] - y[1];
  to[3] = V(0.0f) - y[1];
}

// G^T u, the transpose of winograd_weight
template <class V>
PYOPS_HD void winograd_weight_gradient(const V (&u)[4], V (&to)[3]) {
  const V sum = (u[1] + u[2]) * V(0.5f);
  to[0] = u[0] + sum;
  to[1] = (u[1] - u[2]) * V(0.5f);
  to[2] = sum + u[3];
}

// The same of F(4, 3).

template <class V>
PYOPS_HD void winograd_input(const V (&d)[6], V (&to)[6]) {
  const V two = V(2.0f), four = V(4.0f), five = V(5.0f);
  const V even = d[4] - four * d[2], odd = d[3] - four * d[1];
  const V even_of_2 = d[4] - d[2], odd_of_2 = two * (d[3] - d[1]);
  to[0] = four * d[0] - five * d[2] + d[4];
  to[1] = even + odd;
  to[2] = even - odd;
  to[3] = even_of_2 + odd_of_2;
  to[4] = even_of_2 - odd_of_2;
  to[5] = four * d[1] - five * d[3] + d[5];
}

template <class V>
PYOPS_HD void winograd_weight(const V (&g)[3], V (&to)[6]) {
  const V sixth = V(1.0f / 6), twelfth = V(1.0f / 12), twenty_fourth = V(1.0f / 24);
  const V ends = (g[0] + g[2]) * sixth, middle = g[1] * sixth;
  const V ends_of_2 = g[0] * twenty_fourth + g[2] * sixth, middle_of_2 = g[1] * twelfth;
  to[0] = g[0] * V(0.25f);
  to[1] = V(0.0f) - ends - middle;
  to[2] = middle - ends;
  to[3] = ends_of_2 + middle_of_2;
  to[4] = ends_of_2 - middle_of_2;
  to[5] = g[2];
}

template <class V>
PYOPS_HD void winograd_output(const V (&m)[6], V (&to)[4]) {
  const V sum = m[1] + m[2], difference = m[1] - m[2];
  const V sum_of_2 = m[3] + m[4], difference_of_2 = m[3] - m[4];
  to[0] = m[0] + sum + sum_of_2;
  to[1] = difference + V(2.0f) * difference_of_2;
  to[2] = sum + V(4.0f) * sum_of_2;
  to[3] = difference + V(8.0f) * difference_of_2 + m[5];
}

template <class V>
PYOPS_HD void winograd_output_gradient(const V (&y)[4], V (&to)[6]) {
  const V even = y[0] + y[2], odd = y[1] + y[3];
  const V even_of_2 = y[0] + V(4.0f) * y[2], odd_of_2 = V(2.0f) * y[1] + V(8.0f) * y[3];
  to[0] = y[0];
  to[1] = even + odd;
  to[2] = even - odd;
  to[3] = even_of_2 + odd_of_2;
  to[4] = even_of_2 - odd_of_2;
  to[5] = y[3];
}

template <class V>
PYOPS_HD void winograd_weight_gradient(const V (&u)[6], V (&to)[3]) {
  const V sixth = V(1.0f / 6), twelfth = V(1.0f / 12), twenty_fourth = V(1.0f / 24);
  const V sum = (u[1] + u[2]) * sixth, sum_of_2 = u[3] + u[4];
  to[0] = u[0] * V(0.25f) - sum + sum_of_2 * twenty_fourth;
  to[1] = (u[2] - u[1]) * sixth + (u[3] - u[4]) * twelfth;
  to[2] = sum_of_2 * sixth - sum + u[5];
}

// A transform of the columns, then one of the rows.
template <int from, int to, class V, class Down, class Across>
PYOPS_HD void winograd_2d(const V (&x)[from][from], V (&y)[to][to], const Down& down, const Across& across) {
  V half[to][from];
  PYOPS_UNROLL
  for (int j = 0; j < from; ++j) {
    V column[from], transformed[to];
    PYOPS_UNROLL
    for (int i = 0; i < from; ++i) column[i] = x[i][j];
    down(column, transformed);
    PYOPS_UNROLL
    for (int i = 0; i < to; ++i) half[i][j] = transformed[i];
  }
  PYOPS_UNROLL
  for (int i = 0; i < to; ++i) across(half[i], y[i]);
}

// The same transform of both.
template <int from, int to, class V, class Transform>
PYOPS_HD void winograd_2d(const V (&x)[from][from], V (&y)[to][to], const Transform& transform) {
  winograd_2d(x, y, transform, transform);
}

}  // namespace pyops::math
