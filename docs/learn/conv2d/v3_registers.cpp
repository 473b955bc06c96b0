// Version 3: sums in registers. Version 2 reads and writes a sum for every product. Here the sums of 8 output
// channels at 32 pixels, 16 vectors, stay in registers until all taps of all channels are in them. Each
// vector of x that is read serves 8 channels, and each weight 32 pixels: 16 vectors of products for 10 loads.
//
// The weights are copied into the order in which they are read, once. Rows are padded to whole vectors with
// zeros, so that only the store asks where a row ends. The gradient of the weights is as it was.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t kLanes = 16, kVectors = 2, kPixels = kLanes * kVectors, kOutputs = 8;
typedef float Floats __attribute__((vector_size(4 * kLanes)));

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline int64_t rounded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Planes with a border of zeros. Behind a row there are as many as a vector at its last tap may read.
struct Planes {
  int64_t count, height, width, stride, size;
  float* data;

  // Takes what it needs of `scratch`, which is behind it afterwards.
  Planes(const float* x, int64_t count, int64_t height, int64_t width, float*& scratch)
      : count(count),
        height(height),
        width(width),
        stride(rounded(width, kPixels) + kLanes),
        size((height + 2) * stride),
        data(scratch) {
    scratch = std::fill_n(data, count * size, 0.0f);
    for (int64_t p = 0; p < count; ++p)
      for (int64_t h = 0; h < height; ++h)
        std::copy_n(x + (p * height + h) * width, width, &data[p * size + (h + 1) * stride + 1]);
  }
};

// Weights by blocks of kOutputs output channels: [block][input][tap][output of the block]. weight(k, c, tap)
// is what is multiplied.
template <class Weight>
std::vector<float> packed(int64_t inputs, int64_t outputs, const Weight& weight) {
  std::vector<float> result(rounded(outputs, kOutputs) * inputs * 9);
  for (int64_t k = 0; k < outputs; ++k)
    for (int64_t c = 0; c < inputs; ++c)
      for (int64_t tap = 0; tap < 9; ++tap)
        result[((k / kOutputs * inputs + c) * 9 + tap) * kOutputs + k % kOutputs] = weight(k, c, tap);
  return result;
}

// The micro-kernel: kPixels pixels of a row in kOutputs channels. x is the first tap of the first pixel.
inline void multiply(const float* x, int64_t size, int64_t stride, const float* w, int64_t inputs,
                     Floats (&result)[kOutputs][kVectors]) {
  Floats sums[kOutputs][kVectors] = {};
  for (int64_t c = 0; c < inputs; ++c, x += size)
    for (int64_t u = 0; u < 3; ++u)
      for (int64_t v = 0; v < 3; ++v, w += kOutputs) {
        const Floats left = load(x + u * stride + v), right = load(x + u * stride + v + kLanes);
        for (int64_t k = 0; k < kOutputs; ++k) {
          sums[k][0] += left * w[k];
          sums[k][1] += right * w[k];
        }
      }
  std::memcpy(result, sums, sizeof sums);
}

// Row i of an image in a block of channels, whose planes begin at `out`.
void correlate_row(const Planes& x, int64_t image, int64_t i, const float* w, int64_t inputs,
                   int64_t channels, float* out) {
  Floats sums[kOutputs][kVectors];
  for (int64_t j = 0; j < x.width; j += kPixels) {
    const float* first = &x.data[image * inputs * x.size + i * x.stride + j];
    multiply(first, x.size, x.stride, w, inputs, sums);
    const int64_t valid = std::min(kPixels, x.width - j);
    for (int64_t k = 0; k < channels; ++k)
      std::memcpy(out + (k * x.height + i) * x.width + j, &sums[k], 4 * valid);
  }
}

void correlate(const Planes& x, const float* weight, int64_t inputs, int64_t outputs, float* out) {
  for (int64_t n = 0; n < x.count / inputs; ++n)
    for (int64_t k = 0; k < outputs; k += kOutputs)
      for (int64_t i = 0; i < x.height; ++i)
        correlate_row(x, n, i, weight + k * inputs * 9, inputs, std::min(kOutputs, outputs - k),
                      out + (n * outputs + k) * x.height * x.width);
}

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
            const float* from = &x.data[(n * inputs + c) * x.size + (i + tap / 3) * x.stride + tap % 3];
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
  auto as_it_is = [&](int64_t k, int64_t c, int64_t tap) { return weight[(k * inputs + c) * 9 + tap]; };
  correlate(padded, packed(inputs, outputs, as_it_is).data(), inputs, outputs, out);

  auto turned = [&](int64_t c, int64_t k, int64_t tap) { return weight[(k * inputs + c) * 9 + 8 - tap]; };
  const Planes gradient(grad_out, images * outputs, height, width, scratch);
  correlate(gradient, packed(outputs, inputs, turned).data(), outputs, inputs, grad);

  weight_gradient(padded, grad_out, inputs, outputs, grad_weight);
}
