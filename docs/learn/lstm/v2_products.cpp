// Version 2: what does not wait is not done in the loop over time. A step needs the state of the step before,
// but neither the input's share of the gates does, nor, once the gradients of all gates are known, those of
// the input and of the weights. These are four products of large matrices; the loop keeps two small ones.
//
// The weights are transposed first where that lets the innermost loop go along memory: the compiler makes
// vectors of it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

float logistic(float x) { return 1 / (1 + std::exp(-x)); }

// c += a b, of m x k and k x n. a is read by strides, so that it may be a transpose; b and c are rows.
void multiply(int64_t m, int64_t n, int64_t k, const float* a, int64_t row, int64_t column, const float* b,
              float* c) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t l = 0; l < k; ++l) {
      const float factor = a[i * row + l * column];
      for (int64_t j = 0; j < n; ++j) c[i * n + j] += factor * b[l * n + j];
    }
}

// to [columns, rows] = the transpose of from.
void transpose(const float* from, int64_t rows, int64_t columns, float* to) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[j * rows + i] = from[i * columns + j];
}

// Gates, cell and output of a sequence at one step, from the sums of products that `gates` holds.
void cell_forward(int64_t units, float* gates, const float* c_before, float* c, float* h) {
  float *i = gates, *f = i + units, *g = f + units, *o = g + units;
  for (int64_t u = 0; u < units; ++u) {
    i[u] = logistic(i[u]);
    f[u] = logistic(f[u]);
    g[u] = std::tanh(g[u]);
    o[u] = logistic(o[u]);
    c[u] = f[u] * c_before[u] + i[u] * g[u];
    h[u] = o[u] * std::tanh(c[u]);
  }
}

// Gradients of the same sums, from that of h; carried_c goes on to the step before.
void cell_backward(int64_t units, const float* gates, const float* c_before, const float* c,
                   const float* grad_h, const float* carried_h, float* carried_c, float* d) {
  const float *i = gates, *f = i + units, *g = f + units, *o = g + units;
  for (int64_t u = 0; u < units; ++u) {
    const float tanh_c = std::tanh(c[u]);
    const float dh = grad_h[u] + carried_h[u];
    const float dc = carried_c[u] + dh * o[u] * (1 - tanh_c * tanh_c);
    d[u] = dc * g[u] * i[u] * (1 - i[u]);
    d[units + u] = dc * c_before[u] * f[u] * (1 - f[u]);
    d[2 * units + u] = dc * i[u] * (1 - g[u] * g[u]);
    d[3 * units + u] = dh * tanh_c * o[u] * (1 - o[u]);
    carried_c[u] = dc * f[u];
  }
}

}  // namespace

extern "C" void lstm(const float* x, const float* grad_out, const float* w_ih, const float* w_hh,
                     const float* bias, int64_t steps, int64_t sequences, int64_t inputs, int64_t units,
                     float* out, float* grad_x, float* grad_w_ih, float* grad_w_hh, float* grad_bias,
                     float* scratch) {
  const int64_t columns = 4 * units, rows = steps * sequences, state = sequences * units;
  float *gates = scratch, *cells = gates + rows * columns, *d = cells + rows * units;
  float *ih = d + rows * columns, *hh = ih + columns * inputs;  // the transposed weights
  transpose(w_ih, columns, inputs, ih);
  transpose(w_hh, columns, units, hh);
  const std::vector<float> zeros(units);
  auto before = [&](const float* values, int64_t row) {
    return row < sequences ? zeros.data() : values + (row - sequences) * units;
  };

  for (int64_t row = 0; row < rows; ++row) std::copy_n(bias, columns, gates + row * columns);
  multiply(rows, columns, inputs, x, inputs, 1, ih, gates);
  for (int64_t t = 0; t < steps; ++t) {
    float* step = gates + t * sequences * columns;
    if (t > 0) multiply(sequences, columns, units, out + (t - 1) * state, units, 1, hh, step);
    for (int64_t row = t * sequences; row < (t + 1) * sequences; ++row)
      cell_forward(units, gates + row * columns, before(cells, row), cells + row * units, out + row * units);
  }

  std::vector<float> carried_h(state), carried_c(state);
  for (int64_t t = steps - 1; t >= 0; --t) {
    for (int64_t row = t * sequences, n = 0; n < state; ++row, n += units)
      cell_backward(units, gates + row * columns, before(cells, row), cells + row * units,
                    grad_out + row * units, &carried_h[n], &carried_c[n], d + row * columns);
    std::fill(carried_h.begin(), carried_h.end(), 0.0f);
    multiply(sequences, units, columns, d + t * sequences * columns, columns, 1, w_hh, carried_h.data());
  }

  std::fill_n(grad_x, rows * inputs, 0.0f);
  std::fill_n(grad_w_ih, columns * inputs, 0.0f);
  std::fill_n(grad_w_hh, columns * units, 0.0f);
  std::fill_n(grad_bias, columns, 0.0f);
  multiply(rows, inputs, columns, d, columns, 1, w_ih, grad_x);
  multiply(columns, inputs, rows, d, 1, columns, x, grad_w_ih);
  // The states before the second, third, ... step are the outputs of the first, second, ...
  multiply(columns, units, rows - sequences, d + sequences * columns, 1, columns, out, grad_w_hh);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t q = 0; q < columns; ++q) grad_bias[q] += d[row * columns + q];
}
