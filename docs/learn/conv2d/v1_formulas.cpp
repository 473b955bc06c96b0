// Version 1: the three formulas as they stand. Seven loops each, and for every tap the question whether it
// lies outside of the image.
#include <cstdint>

extern "C" void conv2d(const float* x, const float* grad_out, const float* weight, int64_t images,
                       int64_t inputs, int64_t outputs, int64_t height, int64_t width, float* out,
                       float* grad, float* grad_weight, float*) {
  auto at = [&](const float* plane, int64_t h, int64_t w) {
    return h >= 0 && h < height && w >= 0 && w < width ? plane[h * width + w] : 0.0f;
  };
  const int64_t pixels = height * width;

  for (int64_t n = 0; n < images; ++n)
    for (int64_t k = 0; k < outputs; ++k)
      for (int64_t i = 0; i < height; ++i)
        for (int64_t j = 0; j < width; ++j) {
          float sum = 0;
          for (int64_t c = 0; c < inputs; ++c)
            for (int64_t u = 0; u < 3; ++u)
              for (int64_t v = 0; v < 3; ++v)
                sum += weight[((k * inputs + c) * 3 + u) * 3 + v] *
                       at(x + (n * inputs + c) * pixels, i + u - 1, j + v - 1);
          out[(n * outputs + k) * pixels + i * width + j] = sum;
        }

  // x at (h, w) was multiplied by tap (u, v) for the output at (h + 1 - u, w + 1 - v).
  for (int64_t n = 0; n < images; ++n)
    for (int64_t c = 0; c < inputs; ++c)
      for (int64_t h = 0; h < height; ++h)
        for (int64_t w = 0; w < width; ++w) {
          float sum = 0;
          for (int64_t k = 0; k < outputs; ++k)
            for (int64_t u = 0; u < 3; ++u)
              for (int64_t v = 0; v < 3; ++v)
                sum += weight[((k * inputs + c) * 3 + u) * 3 + v] *
                       at(grad_out + (n * outputs + k) * pixels, h + 1 - u, w + 1 - v);
          grad[(n * inputs + c) * pixels + h * width + w] = sum;
        }

  for (int64_t k = 0; k < outputs; ++k)
    for (int64_t c = 0; c < inputs; ++c)
      for (int64_t u = 0; u < 3; ++u)
        for (int64_t v = 0; v < 3; ++v) {
          float sum = 0;
          for (int64_t n = 0; n < images; ++n)
            for (int64_t i = 0; i < height; ++i)
              for (int64_t j = 0; j < width; ++j)
                sum += grad_out[(n * outputs + k) * pixels + i * width + j] *
                       at(x + (n * inputs + c) * pixels, i + u - 1, j + v - 1);
          grad_weight[((k * inputs + c) * 3 + u) * 3 + v] = sum;
        }
}
