// Version 1: each window by itself, each of its elements checked for being there.
//
// Forward remembers where in the plane each maximum was, in 8 bytes, as frameworks do. Backward sets the
// gradient to 0 and adds what each window has to say to the place of its maximum: a scatter.
#include <cstdint>

extern "C" void max_pool(const float* x, const float* grad_out, int64_t planes, int64_t height, int64_t width,
                         float* out, float* grad, int64_t* where) {
  const int64_t rows = (height + 1) / 2, columns = (width + 1) / 2;
  for (int64_t p = 0; p < planes; ++p)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        bool any = false;
        float best = 0;
        int64_t at = 0;
        for (int64_t h = 2 * i - 1; h <= 2 * i + 1; ++h)
          for (int64_t w = 2 * j - 1; w <= 2 * j + 1; ++w) {
            if (h < 0 || h >= height || w < 0 || w >= width) continue;
            const float value = x[(p * height + h) * width + w];
            if (!any || value > best) {
              any = true;
              best = value;
              at = h * width + w;
            }
          }
        out[(p * rows + i) * columns + j] = best;
        where[(p * rows + i) * columns + j] = at;
      }

  for (int64_t i = 0; i < planes * height * width; ++i) grad[i] = 0;
  for (int64_t p = 0; p < planes; ++p)
    for (int64_t o = p * rows * columns; o < (p + 1) * rows * columns; ++o)
      grad[p * height * width + where[o]] += grad_out[o];
}
