// Version 1: the formulas, each over all of the tensor: mean, variance, normalisation, ReLU; then ReLU's
// gradient, two sums, the gradient. Ten passes over memory.
#include <cmath>
#include <cstdint>
#include <vector>

extern "C" void batch_norm_relu(const float* x, const float* grad_out, const float* weight, const float* bias,
                                int64_t images, int64_t channels, int64_t pixels, float* out, float* grad,
                                float* grad_weight, float* grad_bias, float* scratch) {
  const int64_t all = images * channels * pixels;
  const double count = static_cast<double>(images * pixels);
  std::vector<double> mean(channels), variance(channels), sum(channels), dot(channels), scale(channels);
  auto channel = [&](int64_t i) { return i / pixels % channels; };

  for (int64_t i = 0; i < all; ++i) mean[channel(i)] += x[i] / count;
  for (int64_t i = 0; i < all; ++i) {
    const double d = x[i] - mean[channel(i)];
    variance[channel(i)] += d * d / count;
  }
  for (int64_t c = 0; c < channels; ++c) scale[c] = 1 / std::sqrt(variance[c] + 1e-5);
  for (int64_t i = 0; i < all; ++i) {
    const int64_t c = channel(i);
    out[i] = static_cast<float>((x[i] - mean[c]) * scale[c]) * weight[c] + bias[c];
  }
  for (int64_t i = 0; i < all; ++i) out[i] = out[i] > 0 ? out[i] : 0;

  for (int64_t i = 0; i < all; ++i) scratch[i] = out[i] > 0 ? grad_out[i] : 0;
  for (int64_t i = 0; i < all; ++i) sum[channel(i)] += scratch[i];
  for (int64_t i = 0; i < all; ++i)
    dot[channel(i)] += scratch[i] * (x[i] - mean[channel(i)]) * scale[channel(i)];
  for (int64_t i = 0; i < all; ++i) {
    const int64_t c = channel(i);
    const double normal = (x[i] - mean[c]) * scale[c];
    grad[i] =
        static_cast<float>(weight[c] * scale[c] * (scratch[i] - sum[c] / count - normal * dot[c] / count));
  }
  for (int64_t c = 0; c < channels; ++c) {
    grad_weight[c] = static_cast<float>(dot[c]);
    grad_bias[c] = static_cast<float>(sum[c]);
  }
}
