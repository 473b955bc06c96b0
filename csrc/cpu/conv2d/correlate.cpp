// The correlation for every dtype, compiled once for the ops that convolve.
#include "cpu/conv2d/correlate.h"

#include "cpu/conv2d/bf16.h"
#include "cpu/conv2d/small_image.h"
#include "cpu/conv2d/winograd_correlate.h"

namespace pyops::cpu {

template <class T>
void correlate(const ImageSource<T>& x, const ConvWeights<T>& weights,
               const std::vector<math::CorrelationAxis>& h, const std::vector<math::CorrelationAxis>& w,
               TileSink<T>& sink, int64_t images) {
  if (suits_small_images(weights, h.front(), w.front(), images)) {
    return SmallCorrelation<T>(x, weights, h, w, sink, images).run();
  }
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (correlate_pairs(x, weights, h, w, sink, images)) return;
  }
  if constexpr (std::is_same_v<acc_t<T>, float>) {
    const bool suits = h.size() * w.size() == 1 &&
                       suits_winograd<acc_t<T>>(h[0], w[0], weights.inputs, weights.outputs, images);
    if (suits && WinogradCorrelation<T>(x, weights, h[0], w[0], sink, images).run()) return;
  }
  Correlation<T>(x, weights, h, w, sink, images).run();
}

#define PYOPS_CORRELATE(T)                                              \
  template void correlate(const ImageSource<T>&, const ConvWeights<T>&, \
                          const std::vector<math::CorrelationAxis>&,    \
                          const std::vector<math::CorrelationAxis>&, TileSink<T>&, int64_t);
PYOPS_CORRELATE(float)
PYOPS_CORRELATE(double)
PYOPS_CORRELATE(bfloat16)
PYOPS_CORRELATE(float16)

}  // namespace pyops::cpu
