// Exercise: strides. A convolution in steps of 2 looks at every second pixel: forward and the gradient of the
// weights change by a factor in one index, as below. The gradient of the input is the hard one, and below it
// is wrong: x at row h took part, with tap u, in the output of row (h + 1 - u) / stride. One condition is
// missing. When the test passes, do without asking: among the rows of x with the same remainder all have the
// same taps, so each remainder is a convolution of its own, with few taps and no question.
#include <cstdint>

extern "C" void conv2d_strided(int64_t stride, const float* x, const float* grad_out, const float* weight,
                               int64_t images, int64_t inputs, int64_t outputs, int64_t height, int64_t width,
                               float* out, float* grad, float* grad_weight, float*) {
  const int64_t rows = (height - 1) / stride + 1, columns = (width - 1) / stride + 1;
  auto of_x = [&](int64_t n, int64_t c, int64_t h, int64_t w) {
    return h >= 0 && h < height && w >= 0 && w < width ? x[((n * inputs + c) * height + h) * width + w]
                                                       : 0.0f;
  };
  for (int64_t k = 0; k < outputs; ++k)
    for (int64_t c = 0; c < inputs; ++c)
      for (int64_t tap = 0; tap < 9; ++tap) grad_weight[(k * inputs + c) * 9 + tap] = 0;

  for (int64_t n = 0; n < images; ++n)
    for (int64_t k = 0; k < outputs; ++k)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) {
          const int64_t o = ((n * outputs + k) * rows + i) * columns + j;
          float sum = 0;
          for (int64_t c = 0; c < inputs; ++c)
            for (int64_t tap = 0; tap < 9; ++tap) {
              const float value = of_x(n, c, stride * i + tap / 3 - 1, stride * j + tap % 3 - 1);
              sum += weight[(k * inputs + c) * 9 + tap] * value;
              grad_weight[(k * inputs + c) * 9 + tap] += grad_out[o] * value;
            }
          out[o] = sum;
        }

  for (int64_t n = 0; n < images; ++n)
    for (int64_t c = 0; c < inputs; ++c)
      for (int64_t h = 0; h < height; ++h)
        for (int64_t w = 0; w < width; ++w) {
          float sum = 0;
          for (int64_t k = 0; k < outputs; ++k)
            for (int64_t tap = 0; tap < 9; ++tap) {
              const int64_t y = h + 1 - tap / 3, z = w + 1 - tap % 3;
              if (y < 0 || z < 0 || y / stride >= rows || z / stride >= columns) continue;
              sum += weight[(k * inputs + c) * 9 + tap] *
                     grad_out[((n * outputs + k) * rows + y / stride) * columns + z / stride];
            }
          grad[((n * inputs + c) * height + h) * width + w] = sum;
        }
}

extern "C" void conv2d(const float* x, const float* grad_out, const float* weight, int64_t images,
                       int64_t inputs, int64_t outputs, int64_t height, int64_t width, float* out,
                       float* grad, float* grad_weight, float*) {
  conv2d_strided(1, x, grad_out, weight, images, inputs, outputs, height, width, out, grad, grad_weight,
                 nullptr);
}
