// Exercise: label smoothing. The target is not 1 at the class and 0 elsewhere, but
//
//   (1 - smoothing) [c = target] + smoothing / classes.
//
// Write down the loss and its gradient, then change what follows (version 3, with one more argument). Two
// sums over a row are needed where one was; neither needs another loop. `smoothing` is in [0, 1].
#include <cmath>
#include <cstdint>

extern "C" float cross_entropy(const float* logits, const int64_t* target, int64_t rows, int64_t classes,
                               float* grad, float*, float smoothing) {
  (void)smoothing;  // yours
  double loss = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = logits + r * classes;
    float* g = grad + r * classes;
    float max = x[0];
    for (int64_t c = 1; c < classes; ++c) max = x[c] > max ? x[c] : max;
    float sum = 0;
    for (int64_t c = 0; c < classes; ++c) sum += g[c] = std::exp(x[c] - max);
    const float scale = 1.0f / (sum * rows);
    for (int64_t c = 0; c < classes; ++c) g[c] *= scale;
    g[target[r]] -= 1.0f / rows;
    loss -= (x[target[r]] - max) - std::log(sum);
  }
  return static_cast<float>(loss / rows);
}
