// Convolution, bias, activation and max pooling in one, on the CPU: the convolution's output is pooled tile
// by tile and never written. Backward is one gathering pass over the convolution's gradient; the gradients of
// input and weight follow from that one by conv2d_backward.
#include <tuple>

#include "conv2d.h"
#include "conv2d_pool.h"
#include "max_pool.h"

namespace pyops::cpu {
namespace {

std::tuple<Tensor, Tensor, Tensor> conv2d_max_pool2d_forward(
    Tensor input, Tensor weight, std::optional<Tensor> bias, Sizes stride, Sizes padding, Sizes dilation,
    int64_t groups, int64_t kind, double a, double b, Sizes pool_kernel, Sizes pool_stride,
    Sizes pool_padding, Sizes pool_dilation, bool ceil_mode, bool save_argmax,
    bool save_input_of_activation) {
  const char* op = "conv2d_max_pool2d_forward";
  const Conv2dShape shape = check_conv2d(input, weight, stride, padding, dilation, groups, kind, op);
  check_bias(bias, op, input, shape);
  const Windows windows = check_pool({shape.height.output(), shape.width.output()}, pool_kernel, pool_stride,
                                     pool_padding, pool_dilation, ceil_mode, op);
  const Sizes pooled{shape.images, shape.out_channels, windows.height().out, windows.width().out};
  const auto image = [&](bool wanted, ScalarType type) {
    return wanted ? new_image(input, pooled, shape.channels_last, type) : new_tensor(input, {0}, type);
  };
  Tensor output = image(true, input.scalar_type());
  Tensor argmax = image(save_argmax, ScalarType::Byte);
  Tensor saved = image(save_input_of_activation, input.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    const std::vector<acc_t<T>> wide_bias = widened<T>(bias);
    const ImageStrides s(shape.out_channels, pooled[2], pooled[3], shape.channels_last);
    PoolSink<T> sink(windows, bias ? wide_bias.data() : nullptr, AnyActivation<acc_t<T>>{kind, a, b},
                     {data<T>(output), s.image, s.channel, s.row, s.column},
                     save_argmax ? data<uint8_t>(argmax) : nullptr,
                     save_input_of_activation ? data<T>(saved) : nullptr);
    Conv2d<T>(shape, input, weight).forward(sink);
  });
  return {output, argmax, saved};
}

// Sums over everything but the channels of what passes a gradient on.
template <class T>
class PooledBiasGradient {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  PooledBiasGradient(const T* grad, const uint8_t* argmax) : grad_(grad), argmax_(argmax) {}

  void planar(int64_t images, int64_t channels, int64_t plane, T* to) const {
    parallel_for(channels, images * plane, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        Acc total = 0;
        for (int64_t image = 0; image < images; ++image) {
          Vec<Acc> sum = Acc(0);
          for_each_vector<Acc>(plane, [&](int64_t i, int lanes) {
            sum += passing((image * channels + c) * plane + i, lanes);
          });
          total += horizontal_sum(sum);
        }
        to[c] = from_acc<T>(total);
      }
    });
  }

  void channels_last(int64_t pixels, int64_t channels, T* to) const {
    constexpr int64_t kMostParts = 32, kBlock = 64;
    const EvenSplit parts(pixels, std::max<int64_t>(1, std::min(kMostParts, pixels / kBlock)));
    const int64_t padded = round_up(channels, n);
    std::vector<Acc> sums(parts.parts * padded);
    parallel_for(parts.parts, parts.base * channels, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        for (int64_t p = 0; p < parts.size(part); p += kBlock) {
          const int64_t first = parts.begin(part) + p;
          add_pixels(first, std::min(kBlock, parts.size(part) - p), channels, sums.data() + part * padded);
        }
      }
    });
    for (int64_t c = 0; c < channels; ++c) {
      Acc total = 0;
      for (int64_t part = 0; part < parts.parts; ++part) total += sums[part * padded + c];
      to[c] = from_acc<T>(total);
    }
  }

 private:
  Vec<Acc> passing(int64_t at, int lanes) const {
    Vec<Acc> sum = Acc(0);
    const Positions<Acc> dead = all_positions<Acc>(kNoGradient);
    const Vec<Acc> grad = load_lanes(grad_ + at, lanes);
    return typename Vec<Acc>::Native(load_positions<Acc>(argmax_ + at, lanes) == dead ? sum.v : grad.v);
  }

  void add_pixels(int64_t first, int64_t count, int64_t channels, Acc* to) const {
    for_each_vector<Acc>(channels, [&](int64_t c, int lanes) {
      Vec<Acc> sum = Acc(0);
      for (int64_t p = first; p < first + count; ++p) sum += passing(p * channels + c, lanes);
      store(to + c, load<Acc>(to + c) + sum);
    });
  }

  const T* grad_;
  const uint8_t* argmax_;
};

std::tuple<Tensor, Tensor> conv2d_max_pool2d_backward(Tensor grad_output, Tensor argmax,
                                                      std::optional<Tensor> saved, Sizes conv_size,
                                                      int64_t kind, double a, double b, bool saved_is_output,
                                                      Sizes pool_kernel, Sizes pool_stride,
                                                      Sizes pool_padding, Sizes pool_dilation, bool ceil_mode,
                                                      bool needs_bias) {
  const char* op = "conv2d_max_pool2d_backward";
  const Windows windows =
      check_pool(conv_size, pool_kernel, pool_stride, pool_padding, pool_dilation, ceil_mode, op);
  const PooledGradient pooled = check_pooled_gradient(grad_output, argmax, saved, kind, windows, op);
  const ScalarType type = grad_output.scalar_type();
  const bool formed = !keeps_nothing(kind);  // ReLU's derivative is in argmax
  Tensor gradient =
      formed ? new_image(grad_output, shape_of(grad_output), pooled.channels_last, type) : grad_output;
  Tensor grad_conv = new_image(grad_output, pooled.conv_shape(), pooled.channels_last, type);
  Tensor grad_bias = new_tensor(grad_output, {needs_bias ? pooled.channels : 0}, type);
  dispatch_floating(type, op, [&](auto tag) {
    using T = decltype(tag);
    if (formed) {
      activation_gradient(gradient.numel(), static_cast<const T*>(grad_output.const_data_ptr()),
                          static_cast<const T*>(saved->const_data_ptr()), kind, a, b, saved_is_output,
                          data<T>(gradient));
    }
    const T* const grad = static_cast<const T*>(gradient.const_data_ptr());
    const uint8_t* const at = static_cast<const uint8_t*>(argmax.const_data_ptr());
    const Image image = pooled.image();
    max_pool_gradient(windows.input_of(image), windows, grad, at, data<T>(grad_conv));
    if (!needs_bias) return;
    const PooledBiasGradient<T> bias(grad, at);
    const int64_t plane = image.height * image.width;
    pooled.channels_last ? bias.channels_last(pooled.images * plane, pooled.channels, data<T>(grad_bias))
                         : bias.planar(pooled.images, pooled.channels, plane, data<T>(grad_bias));
  });
  return {grad_conv, grad_bias};
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("conv2d_max_pool2d_forward", TORCH_BOX(&pyops::cpu::conv2d_max_pool2d_forward));
  m.impl("conv2d_max_pool2d_backward", TORCH_BOX(&pyops::cpu::conv2d_max_pool2d_backward));
}
