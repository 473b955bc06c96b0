// Version 3: vectors of sums. A sum in float64 that is one chain takes four cycles for each element; here 16
// floats are added at a time, in four chains. Floats would lose digits over a whole channel, so a block of
// 4096 elements is all that they add up; the blocks are merged in float64.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t kLanes = 16, kChains = 4, kBlock = 4096;
typedef float Floats __attribute__((vector_size(4 * kLanes)));

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

struct Sums {
  double first = 0, second = 0;
};

// Adds up term(i), a pair of numbers, for i = 0, ..., count - 1. `term` takes an index and a number or vector
// that says of which type the pair is to be.
template <class Term>
void add(int64_t count, Sums& sums, const Term& term) {
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, count);
    Floats first[kChains] = {}, second[kChains] = {};
    int64_t i = begin;
    for (; i + kLanes * kChains <= end; i += kLanes * kChains)
      for (int64_t k = 0; k < kChains; ++k) term(i + k * kLanes, first[k], second[k]);
    const Floats a = (first[0] + first[1]) + (first[2] + first[3]);
    const Floats b = (second[0] + second[1]) + (second[2] + second[3]);
    float one = 0, two = 0;
    for (; i < end; ++i) term(i, one, two);
    for (int64_t lane = 0; lane < kLanes; ++lane) one += a[lane], two += b[lane];
    sums.first += one;
    sums.second += two;
  }
}

inline void get(const float* p, float& to) { to = *p; }
inline void get(const float* p, Floats& to) { to = load(p); }

struct Channel {
  float shift, center, scale, weight, bias;

  template <class V>
  V normal(V x) const {
    return ((x - shift) - center) * scale;
  }
  template <class V>
  V passed(V normal, V g) const {
    return normal * weight + bias > 0 ? g : g - g;
  }
};

// One channel of images that are `stride` apart.
struct Shape {
  int64_t images, stride, pixels;
  double count() const { return static_cast<double>(images * pixels); }
};

Channel forward(const Shape& shape, const float* x, float weight, float bias, float* out) {
  const int64_t images = shape.images, stride = shape.stride, pixels = shape.pixels;
  const double count = shape.count();
  Channel channel{x[0], 0, 0, weight, bias};
  Sums moments;
  for (int64_t n = 0; n < images; ++n)
    add(pixels, moments, [&](int64_t i, auto& sum, auto& squares) {
      auto d = sum;
      get(x + n * stride + i, d);
      d -= channel.shift;
      sum += d;
      squares += d * d;
    });
  const double offset = moments.first / count;
  channel.center = static_cast<float>(offset);
  channel.scale = static_cast<float>(
      1 / std::sqrt(std::max(0.0, moments.second - moments.first * offset) / count + 1e-5));
  for (int64_t n = 0; n < images; ++n)
    for (int64_t i = n * stride; i < n * stride + pixels; ++i) {
      const float y = channel.normal(x[i]) * weight + bias;
      out[i] = y > 0 ? y : 0;
    }

  return channel;
}

void backward(const Shape& shape, const Channel& channel, const float* x, const float* grad_out, float* grad,
              float* grad_weight, float* grad_bias) {
  const int64_t images = shape.images, stride = shape.stride, pixels = shape.pixels;
  const double count = shape.count();
  Sums gradients;
  for (int64_t n = 0; n < images; ++n)
    add(pixels, gradients, [&](int64_t i, auto& sum, auto& dot) {
      auto value = sum, g = sum;
      get(x + n * stride + i, value);
      get(grad_out + n * stride + i, g);
      const auto normal = channel.normal(value);
      g = channel.passed(normal, g);
      sum += g;
      dot += g * normal;
    });
  const float mean = static_cast<float>(gradients.first / count),
              dot = static_cast<float>(gradients.second / count);
  for (int64_t n = 0; n < images; ++n)
    for (int64_t i = n * stride; i < n * stride + pixels; ++i) {
      const float normal = channel.normal(x[i]);
      grad[i] = channel.weight * channel.scale * (channel.passed(normal, grad_out[i]) - mean - normal * dot);
    }
  *grad_weight = static_cast<float>(gradients.second);
  *grad_bias = static_cast<float>(gradients.first);
}

}  // namespace

extern "C" void batch_norm_relu(const float* x, const float* grad_out, const float* weight, const float* bias,
                                int64_t images, int64_t channels, int64_t pixels, float* out, float* grad,
                                float* grad_weight, float* grad_bias, float*) {
  const Shape shape{images, channels * pixels, pixels};
  std::vector<Channel> kept(channels);
  for (int64_t c = 0; c < channels; ++c)
    kept[c] = forward(shape, x + c * pixels, weight[c], bias[c], out + c * pixels);
  for (int64_t c = 0; c < channels; ++c)
    backward(shape, kept[c], x + c * pixels, grad_out + c * pixels, grad + c * pixels, grad_weight + c,
             grad_bias + c);
}
