// The correlation for every dtype, compiled once for the ops that convolve.
#include "conv2d_correlate.h"

namespace pyops::cpu {

template <class T>
void correlate(const ImageSource<T>& x, const ConvWeights<T>& weights,
               const std::vector<math::CorrelationAxis>& h, const std::vector<math::CorrelationAxis>& w,
               TileSink<T>& sink, int64_t images) {
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
