// Exercise: the other way back. What follows (version 1) is right for sequences of one step, and wrong for
// all others. A step hands two things to the next one, h and c, so two gradients go back; here is only that
// of h. Derive the other one: c goes into the next cell, c' = f' c + i' g', and into nothing else of the next
// step.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

float logistic(float x) { return 1 / (1 + std::exp(-x)); }

}  // namespace

extern "C" void lstm(const float* x, const float* grad_out, const float* w_ih, const float* w_hh,
                     const float* bias, int64_t steps, int64_t sequences, int64_t inputs, int64_t units,
                     float* out, float* grad_x, float* grad_w_ih, float* grad_w_hh, float* grad_bias,
                     float* scratch) {
  const int64_t columns = 4 * units;  // of the gates: input, forget, cell, output
  float *gates = scratch, *cells = gates + steps * sequences * columns;
  const std::vector<float> zeros(units);
  auto before = [&](const float* values, int64_t t, int64_t n) {
    return t == 0 ? zeros.data() : values + ((t - 1) * sequences + n) * units;
  };

  for (int64_t t = 0; t < steps; ++t)
    for (int64_t n = 0; n < sequences; ++n) {
      const int64_t row = t * sequences + n;
      const float *h_before = before(out, t, n), *c_before = before(cells, t, n);
      float* gate = gates + row * columns;
      for (int64_t q = 0; q < columns; ++q) {
        float sum = bias[q];
        for (int64_t i = 0; i < inputs; ++i) sum += w_ih[q * inputs + i] * x[row * inputs + i];
        for (int64_t u = 0; u < units; ++u) sum += w_hh[q * units + u] * h_before[u];
        gate[q] = q / units == 2 ? std::tanh(sum) : logistic(sum);
      }
      for (int64_t u = 0; u < units; ++u) {
        const float i = gate[u], f = gate[units + u], g = gate[2 * units + u], o = gate[3 * units + u];
        const float c = f * c_before[u] + i * g;
        cells[row * units + u] = c;
        out[row * units + u] = o * std::tanh(c);
      }
    }

  std::fill_n(grad_w_ih, columns * inputs, 0.0f);
  std::fill_n(grad_w_hh, columns * units, 0.0f);
  std::fill_n(grad_bias, columns, 0.0f);
  std::vector<float> carried_h(sequences * units), d(columns);
  for (int64_t t = steps - 1; t >= 0; --t)
    for (int64_t n = 0; n < sequences; ++n) {
      const int64_t row = t * sequences + n;
      const float *h_before = before(out, t, n), *c_before = before(cells, t, n),
                  *gate = gates + row * columns;
      for (int64_t u = 0; u < units; ++u) {
        const float i = gate[u], f = gate[units + u], g = gate[2 * units + u], o = gate[3 * units + u];
        const float tanh_c = std::tanh(cells[row * units + u]);
        const float dh = grad_out[row * units + u] + carried_h[n * units + u];
        const float dc = dh * o * (1 - tanh_c * tanh_c);
        d[u] = dc * g * i * (1 - i);
        d[units + u] = dc * c_before[u] * f * (1 - f);
        d[2 * units + u] = dc * i * (1 - g * g);
        d[3 * units + u] = dh * tanh_c * o * (1 - o);
      }
      for (int64_t u = 0; u < units; ++u) {
        float sum = 0;
        for (int64_t q = 0; q < columns; ++q) sum += d[q] * w_hh[q * units + u];
        carried_h[n * units + u] = sum;
      }
      for (int64_t i = 0; i < inputs; ++i) {
        float sum = 0;
        for (int64_t q = 0; q < columns; ++q) sum += d[q] * w_ih[q * inputs + i];
        grad_x[row * inputs + i] = sum;
      }
      for (int64_t q = 0; q < columns; ++q) {
        for (int64_t i = 0; i < inputs; ++i) grad_w_ih[q * inputs + i] += d[q] * x[row * inputs + i];
        for (int64_t u = 0; u < units; ++u) grad_w_hh[q * units + u] += d[q] * h_before[u];
        grad_bias[q] += d[q];
      }
    }
}
