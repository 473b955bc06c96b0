// Version 5: all cores. Rows do not depend on each other; only the loss is a sum over all of them.
//
// Each thread gets rows that lie together. The losses of 64 rows are one partial sum, and the partial sums
// are added up in their order: work is cut by the problem, never by the number of threads, so the bits of the
// result do not depend on it. (A sum per thread would be simpler, and differ from machine to machine.)
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int kLanes = 16, kChains = 4;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }
inline Floats greater(Floats a, Floats b) { return a > b ? a : b; }

inline Floats exp(Floats x) {
  const Floats lowest = Floats{} - 87.3f;
  x = greater(x, lowest);
  const Floats rounder = Floats{} + 12582912.0f;
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

float max_of(const float* x, int64_t n) {
  float max = x[0];
  int64_t c = 0;
  if (n >= kLanes * kChains) {
    Floats best[kChains];
    for (int k = 0; k < kChains; ++k) best[k] = load(x + k * kLanes);
    for (c = kLanes * kChains; c + kLanes * kChains <= n; c += kLanes * kChains)
      for (int k = 0; k < kChains; ++k) best[k] = greater(load(x + c + k * kLanes), best[k]);
    const Floats all = greater(greater(best[0], best[1]), greater(best[2], best[3]));
    for (int i = 0; i < kLanes; ++i) max = all[i] > max ? all[i] : max;
  }
  for (; c < n; ++c) max = x[c] > max ? x[c] : max;
  return max;
}

// e[c] = exp(x[c] - max); returns their sum.
float exponentials(const float* x, float max, float* e, int64_t n) {
  Floats sums[kChains] = {};
  int64_t c = 0;
  for (; c + kLanes * kChains <= n; c += kLanes * kChains)
    for (int k = 0; k < kChains; ++k) {
      const Floats v = exp(load(x + c + k * kLanes) - max);
      store(e + c + k * kLanes, v);
      sums[k] += v;
    }
  const Floats all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += all[i];
  for (; c < n; ++c) sum += e[c] = std::exp(x[c] - max);
  return sum;
}

// Loss and gradient of the rows from `first` to `end`.
double some_rows(const float* logits, const int64_t* target, int64_t first, int64_t end, int64_t rows,
                 int64_t classes, float* grad) {
  double loss = 0;
  for (int64_t r = first; r < end; ++r) {
    const float* x = logits + r * classes;
    float* g = grad + r * classes;
    const float max = max_of(x, classes);
    const float sum = exponentials(x, max, g, classes);
    const float scale = 1.0f / (sum * rows);
    for (int64_t c = 0; c < classes; ++c) g[c] *= scale;
    g[target[r]] -= 1.0f / rows;
    loss -= (x[target[r]] - max) - std::log(sum);
  }
  return loss;
}

}  // namespace

extern "C" float cross_entropy(const float* logits, const int64_t* target, int64_t rows, int64_t classes,
                               float* grad, float*) {
  constexpr int64_t kRows = 64;
  const int64_t blocks = (rows + kRows - 1) / kRows;
  const int64_t cores = std::thread::hardware_concurrency();
  const int64_t threads = cores < 1 ? 1 : cores < blocks ? cores : blocks;
  std::vector<double> losses(blocks);
  auto work = [&](int64_t t) {
    for (int64_t b = blocks * t / threads; b < blocks * (t + 1) / threads; ++b) {
      const int64_t first = b * kRows, end = first + kRows < rows ? first + kRows : rows;
      losses[b] = some_rows(logits, target, first, end, rows, classes, grad);
    }
  };
  std::vector<std::thread> others;
  for (int64_t t = 1; t < threads; ++t) others.emplace_back(work, t);
  work(0);
  for (std::thread& other : others) other.join();
  double loss = 0;
  for (double part : losses) loss += part;
  return static_cast<float>(loss / rows);
}
