// The weight gradient for every dtype.
#include "cpu/conv2d/weight.h"

#include "cpu/conv2d/bf16.h"
#include "cpu/conv2d/small_image_weight.h"

namespace pyops::cpu {

template <class T>
void weight_gradient(const ImageSource<T>& x, const ImageSource<T>& grad, const ConvWeights<T>& weights,
                     const math::CorrelationAxis& h, const math::CorrelationAxis& w, int64_t images,
                     T* weight, T* bias) {
  if (suits_small_images(weights, h, w, images)) {
    return SmallWeightGradient<T>(x, grad, weights, h, w, images).run(weight, bias);
  }
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (weight_gradient_of_pairs(x, grad, weights, h, w, images, weight, bias)) return;
  }
  WeightGradient<T>(x, grad, weights, h, w, images).run(weight, bias);
}

#define PYOPS_WEIGHT_GRADIENT(T)                                                                         \
  template void weight_gradient(const ImageSource<T>&, const ImageSource<T>&, const ConvWeights<T>&,     \
                                const math::CorrelationAxis&, const math::CorrelationAxis&, int64_t, T*, \
                                T*);
PYOPS_WEIGHT_GRADIENT(float)
PYOPS_WEIGHT_GRADIENT(double)
PYOPS_WEIGHT_GRADIENT(bfloat16)
PYOPS_WEIGHT_GRADIENT(float16)

}  // namespace pyops::cpu
