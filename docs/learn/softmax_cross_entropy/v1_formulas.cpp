// Version 1: the formulas, one after the other, as a framework without fusion runs them.
//
// Each step goes over the whole matrix before the next begins, so nearly every element comes from memory each
// time: log_softmax reads twice (maximum; sum) and writes once, nll_loss reads a little, its gradient is a
// matrix of zeros with one number a row, and the gradient of log_softmax reads two matrices and writes one.
#include <cmath>
#include <cstdint>

extern "C" float cross_entropy(const float* logits, const int64_t* target, int64_t rows, int64_t classes,
                               float* grad, float* scratch) {
  float* log_p = scratch;
  for (int64_t r = 0; r < rows; ++r) {  // log_softmax
    const float* x = logits + r * classes;
    float max = x[0];
    for (int64_t c = 1; c < classes; ++c) max = x[c] > max ? x[c] : max;
    float sum = 0;
    for (int64_t c = 0; c < classes; ++c) sum += std::exp(x[c] - max);
    for (int64_t c = 0; c < classes; ++c) log_p[r * classes + c] = (x[c] - max) - std::log(sum);
  }
  double loss = 0;
  for (int64_t r = 0; r < rows; ++r) loss -= log_p[r * classes + target[r]];  // nll_loss

  for (int64_t i = 0; i < rows * classes; ++i) grad[i] = 0;  // its gradient
  for (int64_t r = 0; r < rows; ++r) grad[r * classes + target[r]] = -1.0f / rows;

  for (int64_t r = 0; r < rows; ++r) {  // the gradient of log_softmax
    float* g = grad + r * classes;
    float sum = 0;
    for (int64_t c = 0; c < classes; ++c) sum += g[c];
    for (int64_t c = 0; c < classes; ++c) g[c] -= std::exp(log_p[r * classes + c]) * sum;
  }
  return static_cast<float>(loss / rows);
}
