// Version 2: rows. Images are copied once into planes with a border of zeros, so that no tap asks where it
// is, and the innermost loop goes along a row: neighbours in memory, none of which waits for another. The
// compiler makes vectors of it.
//
// And two of the three passes become one function. The gradient of the input is a convolution of the gradient
// of the output: input and output channels change places, and the taps are turned by half a circle.
#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

// Planes of (height + 2) x (width + 2), the border 0.
struct Planes {
  int64_t count, height, width;
  float* data;

  // Takes what it needs of `scratch`, which is behind it afterwards.
  Planes(const float* x, int64_t count, int64_t height, int64_t width, float*& scratch)
      : count(count), height(height), width(width), data(scratch) {
    scratch = std::fill_n(data, count * (height + 2) * (width + 2), 0.0f);
    for (int64_t p = 0; p < count; ++p)
      for (int64_t h = 0; h < height; ++h)
        std::copy_n(x + (p * height + h) * width, width, &data[row(p, h + 1) + 1]);
  }
  int64_t row(int64_t plane, int64_t h) const { return (plane * (height + 2) + h) * (width + 2); }
};

// out = sums of products of x, an image's `inputs` planes, and weight [outputs, inputs, 3, 3].
void correlate(const Planes& x, const float* weight, int64_t inputs, int64_t outputs, float* out) {
  const int64_t height = x.height, width = x.width, images = x.count / inputs;
  std::fill_n(out, images * outputs * height * width, 0.0f);
  for (int64_t n = 0; n < images; ++n)
    for (int64_t k = 0; k < outputs; ++k)
      for (int64_t c = 0; c < inputs; ++c)
        for (int64_t tap = 0; tap < 9; ++tap) {
          const float w = weight[(k * inputs + c) * 9 + tap];
          for (int64_t i = 0; i < height; ++i) {
            const float* from = &x.data[x.row(n * inputs + c, i + tap / 3) + tap % 3];
            float* to = out + ((n * outputs + k) * height + i) * width;
            for (int64_t j = 0; j < width; ++j) to[j] += w * from[j];
          }
        }
}

// A sum that is one chain cannot be a vector: the compiler may not change the order of additions. A sum for
// each column can, and these are added up at the end.
void weight_gradient(const Planes& x, const float* grad_out, int64_t inputs, int64_t outputs, float* grad) {
  const int64_t height = x.height, width = x.width, images = x.count / inputs;
  std::vector<float> columns(width);
  for (int64_t k = 0; k < outputs; ++k)
    for (int64_t c = 0; c < inputs; ++c)
      for (int64_t tap = 0; tap < 9; ++tap) {
        std::fill(columns.begin(), columns.end(), 0.0f);
        float* sums = columns.data();
        for (int64_t n = 0; n < images; ++n)
          for (int64_t i = 0; i < height; ++i) {
            const float* from = &x.data[x.row(n * inputs + c, i + tap / 3) + tap % 3];
            const float* g = grad_out + ((n * outputs + k) * height + i) * width;
            for (int64_t j = 0; j < width; ++j) sums[j] += g[j] * from[j];
          }
        float sum = 0;
        for (float column : columns) sum += column;
        grad[(k * inputs + c) * 9 + tap] = sum;
      }
}

}  // namespace

extern "C" void conv2d(const float* x, const float* grad_out, const float* weight, int64_t images,
                       int64_t inputs, int64_t outputs, int64_t height, int64_t width, float* out,
                       float* grad, float* grad_weight, float* scratch) {
  const Planes padded(x, images * inputs, height, width, scratch);
  correlate(padded, weight, inputs, outputs, out);

  std::vector<float> turned(outputs * inputs * 9);
  for (int64_t k = 0; k < outputs; ++k)
    for (int64_t c = 0; c < inputs; ++c)
      for (int64_t tap = 0; tap < 9; ++tap)
        turned[(c * outputs + k) * 9 + 8 - tap] = weight[(k * inputs + c) * 9 + tap];
  correlate(Planes(grad_out, images * outputs, height, width, scratch), turned.data(), outputs, inputs, grad);

  weight_gradient(padded, grad_out, inputs, outputs, grad_weight);
}
