// Version 5: all cores. Sequences do not depend on each other: a core takes its own through all steps, and no
// core waits for another until the end. The input's share, too, is formed step by step then: gates that were
// just written are still in the cache. The gradients of the weights are sums over all sequences; there, cores
// share the rows of the result, and each sum is formed by one of them, in one order.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int64_t kLanes = 16, kRows = 8, kColumns = 2 * kLanes;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
// Calls part(begin, end) on each core, for parts of 0, ..., count - 1 that lie together.
template <class Part>
void in_parallel(int64_t count, const Part& part) {
  const int64_t cores = std::thread::hardware_concurrency();
  const int64_t threads = std::max<int64_t>(1, std::min(cores, count));
  auto work = [&](int64_t t) { part(count * t / threads, count * (t + 1) / threads); };
  std::vector<std::thread> others;
  for (int64_t t = 1; t < threads; ++t) others.emplace_back(work, t);
  work(0);
  for (std::thread& other : others) other.join();
}

inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }
inline Floats between(Floats v, float low, float high) {
  const Floats a = Floats{} + low, b = Floats{} + high;
  v = v > a ? v : a;
  return v < b ? v : b;
}

// exp of what lies between -87 and 87: a power of 2, which is put into the exponent, times a polynomial.
inline Floats exp(Floats x) {
  const Floats rounder = Floats{} + 12582912.0f;  // added, it leaves no room for a fraction
  const Floats shifted = x * 1.44269504f + rounder;
  const Floats n = shifted - rounder;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = r * 1.38888889e-3f + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  const Ints power = (reinterpret_cast<Ints>(shifted) << 23) + (127 << 23);
  return p * reinterpret_cast<Floats>(power);
}
inline Floats logistic(Floats x) { return 1.0f / (1.0f + exp(between(-x, -87.0f, 87.0f))); }
inline Floats tanh(Floats x) { return 2.0f * logistic(2.0f * x) - 1.0f; }

// Calls body(get, put) for each vector of units: ways to read and write its part of a row. The last may be
// short.
template <class Body>
void for_units(int64_t units, const Body& body) {
  int64_t u = 0;
  for (; u + kLanes <= units; u += kLanes)
    body([u](const float* p) { return load(p + u); }, [u](float* p, Floats v) { store(p + u, v); });
  if (u == units) return;
  const int64_t size = 4 * (units - u);
  body(
      [=](const float* p) {
        Floats v{};
        std::memcpy(&v, p + u, size);
        return v;
      },
      [=](float* p, Floats v) { std::memcpy(p + u, &v, size); });
}

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

// c += a b or, where `add` is false, c = a b. Rows from `begin` to `end`.
// a is read by strides, so that it may be a transpose.
void multiply(int64_t begin, int64_t end, const float* a, int64_t row, int64_t column, const Panels& b,
              float* c, bool add) {
  float sums[kRows][kColumns];
  for (int64_t j = 0; j < b.n; j += kColumns)
    for (int64_t i = begin; i < end; i += kRows) {
      const float *from = a + i * row, *panel = b.data + j * b.k;
      const int64_t valid = std::min(kRows, end - i);
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
  for_units(units, [&](auto get, auto put) {
    const Floats in = logistic(get(i)), forget = logistic(get(f)), cell = tanh(get(g)),
                 shown = logistic(get(o));
    const Floats state = forget * get(c_before) + in * cell;
    put(i, in);
    put(f, forget);
    put(g, cell);
    put(o, shown);
    put(c, state);
    put(h, shown * tanh(state));
  });
}

// Gradients of the same sums, from that of h; carried_c goes on to the step before.
void cell_backward(int64_t units, const float* gates, const float* c_before, const float* c,
                   const float* grad_h, const float* carried_h, float* carried_c, float* d) {
  for_units(units, [&](auto get, auto put) {
    const Floats i = get(gates), f = get(gates + units), g = get(gates + 2 * units),
                 o = get(gates + 3 * units);
    const Floats tanh_c = tanh(get(c));
    const Floats dh = get(grad_h) + get(carried_h);
    const Floats dc = get(carried_c) + dh * o * (1.0f - tanh_c * tanh_c);
    put(d, dc * g * i * (1.0f - i));
    put(d + units, dc * get(c_before) * f * (1.0f - f));
    put(d + 2 * units, dc * i * (1.0f - g * g));
    put(d + 3 * units, dh * tanh_c * o * (1.0f - o));
    put(carried_c, dc * f);
  });
}

}  // namespace

extern "C" void lstm(const float* x, const float* grad_out, const float* w_ih, const float* w_hh,
                     const float* bias, int64_t steps, int64_t sequences, int64_t inputs, int64_t units,
                     float* out, float* grad_x, float* grad_w_ih, float* grad_w_hh, float* grad_bias,
                     float* scratch) {
  const int64_t columns = 4 * units, rows = steps * sequences;
  float *gates = scratch, *cells = gates + rows * columns, *d = cells + rows * units;
  float* rest = d + rows * columns;
  const Panels input(inputs, columns, w_ih, 1, inputs, rest), forward(units, columns, w_hh, 1, units, rest);
  const Panels backward(columns, units, w_hh, units, 1, rest),
      to_input(columns, inputs, w_ih, inputs, 1, rest);
  const std::vector<float> zeros(units);
  auto before = [&](const float* values, int64_t row) {
    return row < sequences ? zeros.data() : values + (row - sequences) * units;
  };

  // Sequences from `begin` to `end`, through all steps.
  in_parallel(sequences, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < steps; ++t) {
      const int64_t first = t * sequences + begin, count = end - begin;
      for (int64_t row = first; row < first + count; ++row) std::copy_n(bias, columns, gates + row * columns);
      multiply(0, count, x + first * inputs, inputs, 1, input, gates + first * columns, true);
      if (t > 0)
        multiply(0, count, out + (first - sequences) * units, units, 1, forward, gates + first * columns,
                 true);
      for (int64_t row = first; row < first + count; ++row)
        cell_forward(units, gates + row * columns, before(cells, row), cells + row * units,
                     out + row * units);
    }
  });

  in_parallel(sequences, [&](int64_t begin, int64_t end) {
    std::vector<float> carried_h((end - begin) * units), carried_c((end - begin) * units);
    for (int64_t t = steps - 1; t >= 0; --t) {
      const int64_t first = t * sequences + begin, count = end - begin;
      for (int64_t n = 0; n < count; ++n) {
        const int64_t row = first + n;
        cell_backward(units, gates + row * columns, before(cells, row), cells + row * units,
                      grad_out + row * units, &carried_h[n * units], &carried_c[n * units],
                      d + row * columns);
      }
      multiply(0, count, d + first * columns, columns, 1, backward, carried_h.data(), false);
      multiply(0, count, d + first * columns, columns, 1, to_input, grad_x + first * inputs, false);
    }
  });

  const Panels values(rows, inputs, x, inputs, 1, rest);
  // The states before the second, third, ... step are the outputs of the first, second, ...
  const Panels states(rows - sequences, units, out, units, 1, rest);
  in_parallel(columns, [&](int64_t begin, int64_t end) {
    multiply(begin, end, d, 1, columns, values, grad_w_ih, false);
    multiply(begin, end, d + sequences * columns, 1, columns, states, grad_w_hh, false);
    std::fill(grad_bias + begin, grad_bias + end, 0.0f);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t q = begin; q < end; ++q) grad_bias[q] += d[row * columns + q];
  });
}
