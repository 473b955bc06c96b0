// Version 3: products with their sums in registers. 8 rows of 32 columns are 16 vectors of sums, which stay
// in registers over all terms: version 2 reads and writes a sum for each of them. The right operand is copied
// into panels, in the order in which it is read; the weights of the loop once for all steps.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t kLanes = 16, kRows = 8, kColumns = 2 * kLanes;
typedef float Floats __attribute__((vector_size(4 * kLanes)));

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

float logistic(float x) { return 1 / (1 + std::exp(-x)); }

// A right operand of products, k x n, in panels of kColumns columns, the last filled up with zeros:
// [panel][k][kColumns].
struct Panels {
  int64_t k, n;
  float* data;

  // Element (l, j) is b[l * row + j * column]. Takes what it needs of `scratch`, which is behind it
  // afterwards.
  Panels(int64_t k, int64_t n, const float* b, int64_t row, int64_t column, float*& scratch)
      : k(k), n(n), data(scratch) {
    const int64_t panels = (n + kColumns - 1) / kColumns;
    scratch += panels * k * kColumns;
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t l = 0; l < k; ++l)
        for (int64_t j = 0; j < kColumns; ++j) {
          const int64_t from = p * kColumns + j;
          data[(p * k + l) * kColumns + j] = from < n ? b[l * row + from * column] : 0;
        }
  }
};

// The micro-kernel: sums of `rows` rows of a and a panel.
template <int64_t rows>
void tile(const float* a, int64_t row, int64_t column, const float* panel, int64_t k,
          float (*result)[kColumns]) {
  Floats sums[rows][2] = {};
  for (int64_t l = 0; l < k; ++l) {
    const Floats left = load(panel + l * kColumns), right = load(panel + l * kColumns + kLanes);
    for (int64_t i = 0; i < rows; ++i) {
      const float factor = a[i * row + l * column];
      sums[i][0] += left * factor;
      sums[i][1] += right * factor;
    }
  }
  std::memcpy(result, sums, sizeof sums);
}

// c += a b or, where `add` is false, c = a b. a is m x k, read by strides, so that it may be a transpose.
void multiply(int64_t m, const float* a, int64_t row, int64_t column, const Panels& b, float* c, bool add) {
  float sums[kRows][kColumns];
  for (int64_t j = 0; j < b.n; j += kColumns)
    for (int64_t i = 0; i < m; i += kRows) {
      const float *from = a + i * row, *panel = b.data + j * b.k;
      const int64_t valid = std::min(kRows, m - i);
      if (valid == kRows)
        tile<kRows>(from, row, column, panel, b.k, sums);
      else
        for (int64_t r = 0; r < valid; ++r) tile<1>(from + r * row, row, column, panel, b.k, sums + r);
      for (int64_t r = 0; r < valid; ++r) {
        float* to = c + (i + r) * b.n + j;
        for (int64_t q = 0; q < std::min(kColumns, b.n - j); ++q)
          to[q] = add ? to[q] + sums[r][q] : sums[r][q];
      }
    }
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
  float* rest = d + rows * columns;
  const std::vector<float> zeros(units);
  auto before = [&](const float* values, int64_t row) {
    return row < sequences ? zeros.data() : values + (row - sequences) * units;
  };

  for (int64_t row = 0; row < rows; ++row) std::copy_n(bias, columns, gates + row * columns);
  multiply(rows, x, inputs, 1, Panels(inputs, columns, w_ih, 1, inputs, rest), gates, true);
  const Panels forward(units, columns, w_hh, 1, units, rest);
  for (int64_t t = 0; t < steps; ++t) {
    if (t > 0)
      multiply(sequences, out + (t - 1) * state, units, 1, forward, gates + t * sequences * columns, true);
    for (int64_t row = t * sequences; row < (t + 1) * sequences; ++row)
      cell_forward(units, gates + row * columns, before(cells, row), cells + row * units, out + row * units);
  }

  const Panels backward(columns, units, w_hh, units, 1, rest);
  std::vector<float> carried_h(state), carried_c(state);
  for (int64_t t = steps - 1; t >= 0; --t) {
    for (int64_t row = t * sequences, n = 0; n < state; ++row, n += units)
      cell_backward(units, gates + row * columns, before(cells, row), cells + row * units,
                    grad_out + row * units, &carried_h[n], &carried_c[n], d + row * columns);
    multiply(sequences, d + t * sequences * columns, columns, 1, backward, carried_h.data(), false);
  }

  multiply(rows, d, columns, 1, Panels(columns, inputs, w_ih, inputs, 1, rest), grad_x, false);
  multiply(columns, d, 1, columns, Panels(rows, inputs, x, inputs, 1, rest), grad_w_ih, false);
  // The states before the second, third, ... step are the outputs of the first, second, ...
  const Panels states(rows - sequences, units, out, units, 1, rest);
  multiply(columns, d + sequences * columns, 1, columns, states, grad_w_hh, false);
  std::fill_n(grad_bias, columns, 0.0f);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t q = 0; q < columns; ++q) grad_bias[q] += d[row * columns + q];
}
