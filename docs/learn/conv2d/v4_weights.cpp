// Version 4: the gradient of the weights in registers, too. It has few results and long sums, the other way
// round than the convolution: its vectors lie along pixels, which are what is summed up, so a sum is a vector
// of partial sums until the end. A tile has 4 output channels, 2 input channels and the 3 taps of a row: 24
// sums, for which 10 vectors are read.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t kLanes = 16, kVectors = 2, kPixels = kLanes * kVectors, kOutputs = 8;
constexpr int64_t kTileOutputs = 4, kTileInputs = 2;  // of the gradient of the weights
typedef float Floats __attribute__((vector_size(4 * kLanes)));

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
// gcc would read a vector again for each of its uses, as an operand of the instruction. That costs nothing
// where it is aligned; here most lie in two cache lines, and take two reads. This keeps it in a register.
inline Floats load_once(const float* p) {
  Floats v = load(p);
#ifdef __AVX512F__
  asm("" : "+v"(v));
#endif
  return v;
}
inline float total(Floats v) {
  float sum = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += v[lane];
  return sum;
}
inline int64_t rounded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Images of planes with a border of zeros. Behind a row there are as many as a vector at its last tap may
// read, and behind an image's planes as many planes as fill a tile.
struct Planes {
  int64_t images, planes, height, width, stride, size;
  float* data;

  // Takes what it needs of `scratch`, which is behind it afterwards.
  Planes(const float* x, int64_t images, int64_t channels, int64_t height, int64_t width, float*& scratch)
      : images(images),
        planes(rounded(channels, kTileOutputs)),
        height(height),
        width(width),
        stride(rounded(width, kPixels) + kLanes),
        size((height + 2) * stride),
        data(scratch) {
    scratch = std::fill_n(data, images * planes * size, 0.0f);
    for (int64_t n = 0; n < images; ++n)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t h = 0; h < height; ++h)
          std::copy_n(x + ((n * channels + c) * height + h) * width, width,
                      &data[(n * planes + c) * size + (h + 1) * stride + 1]);
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
    const float* first = &x.data[image * x.planes * x.size + i * x.stride + j];
    multiply(first, x.size, x.stride, w, inputs, sums);
    const int64_t valid = std::min(kPixels, x.width - j);
    for (int64_t k = 0; k < channels; ++k)
      std::memcpy(out + (k * x.height + i) * x.width + j, &sums[k], 4 * valid);
  }
}

void correlate(const Planes& x, const float* weight, int64_t inputs, int64_t outputs, float* out) {
  for (int64_t n = 0; n < x.images; ++n)
    for (int64_t k = 0; k < outputs; k += kOutputs)
      for (int64_t i = 0; i < x.height; ++i)
        correlate_row(x, n, i, weight + k * inputs * 9, inputs, std::min(kOutputs, outputs - k),
                      out + (n * outputs + k) * x.height * x.width);
}

// The micro-kernel: sums over `images` of g, 4 planes, times x, 2 planes at 3 taps of a row. Zeros behind the
// rows of g make whole vectors harmless.
void multiply_gradient(const Planes& x, const float* first_x, const Planes& g, const float* first_g,
                       float (&result)[kTileOutputs][kTileInputs][3]) {
  Floats sums[kTileOutputs][kTileInputs][3] = {};
  for (int64_t n = 0; n < x.images; ++n)
    for (int64_t i = 0; i < x.height; ++i)
      for (int64_t j = 0; j < x.width; j += kLanes) {
        const float* from = first_x + n * x.planes * x.size + i * x.stride + j;
        const float* up = first_g + n * g.planes * g.size + i * g.stride + j;
        Floats gradients[kTileOutputs];
        for (int64_t k = 0; k < kTileOutputs; ++k) gradients[k] = load(up + k * g.size);
        for (int64_t c = 0; c < kTileInputs; ++c)
          for (int64_t v = 0; v < 3; ++v) {
            const Floats value = load_once(from + c * x.size + v);
            for (int64_t k = 0; k < kTileOutputs; ++k) sums[k][c][v] += gradients[k] * value;
          }
      }
  for (int64_t k = 0; k < kTileOutputs; ++k)
    for (int64_t c = 0; c < kTileInputs; ++c)
      for (int64_t v = 0; v < 3; ++v) result[k][c][v] = total(sums[k][c][v]);
}

// The weights of kTileOutputs output channels from `k` on.
void weight_gradient(const Planes& x, const Planes& g, int64_t k, int64_t inputs, int64_t outputs,
                     float* grad) {
  float sums[kTileOutputs][kTileInputs][3];
  for (int64_t c = 0; c < inputs; c += kTileInputs)
    for (int64_t u = 0; u < 3; ++u) {
      const float* first_g = &g.data[k * g.size + g.stride + 1];
      multiply_gradient(x, &x.data[c * x.size + u * x.stride], g, first_g, sums);
      for (int64_t a = 0; a < std::min(kTileOutputs, outputs - k); ++a)
        for (int64_t b = 0; b < std::min(kTileInputs, inputs - c); ++b)
          std::copy_n(sums[a][b], 3, grad + ((k + a) * inputs + c + b) * 9 + 3 * u);
    }
}

}  // namespace

extern "C" void conv2d(const float* x, const float* grad_out, const float* weight, int64_t images,
                       int64_t inputs, int64_t outputs, int64_t height, int64_t width, float* out,
                       float* grad, float* grad_weight, float* scratch) {
  const Planes padded(x, images, inputs, height, width, scratch);
  auto as_it_is = [&](int64_t k, int64_t c, int64_t tap) { return weight[(k * inputs + c) * 9 + tap]; };
  correlate(padded, packed(inputs, outputs, as_it_is).data(), inputs, outputs, out);

  auto turned = [&](int64_t c, int64_t k, int64_t tap) { return weight[(k * inputs + c) * 9 + 8 - tap]; };
  const Planes gradient(grad_out, images, outputs, height, width, scratch);
  correlate(gradient, packed(outputs, inputs, turned).data(), outputs, inputs, grad);

  for (int64_t k = 0; k < outputs; k += kTileOutputs)
    weight_gradient(padded, gradient, k, inputs, outputs, grad_weight);
}
