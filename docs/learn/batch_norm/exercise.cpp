// Exercise: a large mean. The variance is the mean of squares less the square of the mean, says the book, and
// what follows (version 2, in float32 and without its shift) believes it. Where the values lie around 10000
// with a deviation of 1, both terms are about 10^8, a float holds 7 digits, and nothing is left of the
// difference. The first version of many a library had this fault. Mend it, with one pass for both sums; try
// to stay in float32 first.
#include <cmath>
#include <cstdint>
#include <vector>

extern "C" void batch_norm_relu(const float* x, const float* grad_out, const float* weight, const float* bias,
                                int64_t images, int64_t channels, int64_t pixels, float* out, float* grad,
                                float* grad_weight, float* grad_bias, float*) {
  const double count = static_cast<double>(images * pixels);
  auto at = [&](int64_t n, int64_t c) { return (n * channels + c) * pixels; };
  std::vector<float> centers(channels), scales(channels);
  for (int64_t c = 0; c < channels; ++c) {
    const float shift = 0;
    float sum = 0, squares = 0;
    for (int64_t n = 0; n < images; ++n)
      for (int64_t i = at(n, c); i < at(n, c) + pixels; ++i) {
        const float d = x[i] - shift;
        sum += d;
        squares += d * d;
      }
    const double offset = sum / count, deviation = std::sqrt((squares - sum * offset) / count + 1e-5);
    const float center = static_cast<float>(offset), scale = static_cast<float>(1 / deviation);
    centers[c] = center;
    scales[c] = scale;
    const float w = weight[c], b = bias[c];
    for (int64_t n = 0; n < images; ++n)
      for (int64_t i = at(n, c); i < at(n, c) + pixels; ++i) {
        const float y = ((x[i] - shift) - center) * scale * w + b;
        out[i] = y > 0 ? y : 0;
      }
  }

  for (int64_t c = 0; c < channels; ++c) {
    const float shift = 0, center = centers[c], scale = scales[c], w = weight[c], b = bias[c];
    double total = 0, dot = 0;
    for (int64_t n = 0; n < images; ++n)
      for (int64_t i = at(n, c); i < at(n, c) + pixels; ++i) {
        const float normal = ((x[i] - shift) - center) * scale;
        const float g = normal * w + b > 0 ? grad_out[i] : 0;
        total += g;
        dot += g * normal;
      }
    const float mean_g = static_cast<float>(total / count), mean_dot = static_cast<float>(dot / count);
    for (int64_t n = 0; n < images; ++n)
      for (int64_t i = at(n, c); i < at(n, c) + pixels; ++i) {
        const float normal = ((x[i] - shift) - center) * scale;
        const float g = normal * w + b > 0 ? grad_out[i] : 0;
        grad[i] = w * scale * (g - mean_g - normal * mean_dot);
      }
    grad_weight[c] = static_cast<float>(dot);
    grad_bias[c] = static_cast<float>(total);
  }
}
