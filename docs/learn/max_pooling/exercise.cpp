// Exercise: NaN. torch takes a NaN for larger than every number: the maximum of a window that holds one is
// NaN, and its gradient goes to the last NaN of the window, row by row. A comparison with NaN is never true,
// so what follows (version 2) passes it over unless it is the first. One condition is missing.
#include <algorithm>
#include <cstdint>

extern "C" void max_pool(const float* x, const float* grad_out, int64_t planes, int64_t height, int64_t width,
                         float* out, float* grad, int64_t* where) {
  const int64_t rows = (height + 1) / 2, columns = (width + 1) / 2;
  for (int64_t p = 0; p < planes; ++p)
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t top = std::max<int64_t>(2 * i - 1, 0), bottom = std::min(2 * i + 2, height);
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t left = std::max<int64_t>(2 * j - 1, 0), right = std::min(2 * j + 2, width);
        int64_t at = top * width + left;
        float best = x[p * height * width + at];
        for (int64_t h = top; h < bottom; ++h)
          for (int64_t w = left; w < right; ++w) {
            const float value = x[(p * height + h) * width + w];
            if (value > best) {
              best = value;
              at = h * width + w;
            }
          }
        out[(p * rows + i) * columns + j] = best;
        where[(p * rows + i) * columns + j] = at;
      }
    }

  for (int64_t i = 0; i < planes * height * width; ++i) grad[i] = 0;
  for (int64_t p = 0; p < planes; ++p)
    for (int64_t o = p * rows * columns; o < (p + 1) * rows * columns; ++o)
      grad[p * height * width + where[o]] += grad_out[o];
}
