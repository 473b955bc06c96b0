// Convolution, bias, activation and max pooling in one, on the CPU: the convolution's output is pooled tile
// by tile and never written. Backward is one gathering pass over the convolution's gradient; the gradients of
// input and weight follow from that one by conv2d_backward.
#include <tuple>

#include "cpu/conv2d/conv2d.h"
#include "cpu/conv2d/pool.h"
#include "cpu/epilogue/activation.h"
#include "cpu/pooling/max_pool.h"

namespace pyops::cpu {
namespace {

std::tuple<Tensor, Tensor, Tensor> conv2d_max_pool2d_forward(
    Tensor input, Tensor weight, std::optional<Tensor> bias, Sizes stride, Sizes padding, Sizes dilation,
    int64_t groups, int64_t kind, double alpha, double beta, Sizes pool_kernel, Sizes pool_stride,
    Sizes pool_padding, Sizes pool_dilation, bool ceil_mode, bool save_argmax,
    bool save_input_of_activation) {
  const char* op = "conv2d_max_pool2d_forward";
  const math::ActivationParams params{kind, alpha, beta};
  const Conv2dShape shape = check_conv2d(input, weight, stride, padding, dilation, groups, params, op);
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
    PoolEpilogue<T> epilogue(windows, bias ? wide_bias.data() : nullptr, AnyActivation<acc_t<T>>{params},
                             {mutable_data<T>(output), s.image, s.channel, s.row, s.column},
                             save_argmax ? mutable_data<uint8_t>(argmax) : nullptr,
                             save_input_of_activation ? mutable_data<T>(saved) : nullptr);
    solve(Conv2d<T>(shape, input, weight).forward(&epilogue));
  });
  return {output, argmax, saved};
}

// The bias's gradient: sums over everything but the channels of what passes a gradient on. Windows are summed
// by the thread that gathers from them first, while they are in the cache: a plane at a time or, where the
// channels are last, a row.
template <class T>
class PooledBiasGradient {
 public:
  using Acc = acc_t<T>;

  PooledBiasGradient(const PooledGradient& pooled, const T* grad, const uint8_t* argmax)
      : image_(pooled.image()),
        height_(pooled.windows.height()),
        channels_(pooled.channels),
        images_(pooled.images),
        grad_(grad),
        argmax_(argmax),
        rows_at_a_time_(image_.inner == 1 ? image_.height : 1),
        sums_(image_.rows() / rows_at_a_time_ * image_.inner) {
    for (int64_t element = 0, window = 0; element < height_.in; ++element) {
      const int64_t first = window;
      while (window < height_.out && std::max<int64_t>(0, height_.start(window)) == element) ++window;
      beginning_.push_back({first, window});
    }
  }

  // Sums the rows of windows that begin in row `row` (counted over all images) of the convolution's output.
  void visit(int64_t row) {
    const int64_t image = row / height_.in;
    const math::Range windows = beginning_[row - image * height_.in];
    if (image_.inner == 1) {
      if (windows.first == 0 && windows.end > 0) sum_plane(image);
      return;
    }
    for (int64_t window = windows.first; window < windows.end; ++window)
      sum_row(image * height_.out + window);
  }

  void merge(T* to) const {
    const int64_t parts = image_.height / rows_at_a_time_;
    std::vector<Acc> totals(channels_);
    for (int64_t image = 0; image < images_; ++image) {
      const Acc* const first = sums_.data() + image * parts * channels_;
      for (int64_t c = 0; c < channels_; ++c) {
        Acc sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += first[part * channels_ + c];
        totals[c] += sum;
      }
    }
    for (int64_t c = 0; c < channels_; ++c) to[c] = from_acc<T>(totals[c]);
  }

 private:
  void sum_plane(int64_t plane) {
    const int64_t size = image_.height * image_.width, first = plane * size;
    Vec<Acc> sum = Acc(0);
    for_each_vector<Acc>(size, [&](int64_t i, int lanes) { sum += passing(first + i, lanes); });
    sums_[plane] = horizontal_sum(sum);
  }

  void sum_row(int64_t row) {
    const int64_t first = row * image_.row_elements();
    for_each_vector<Acc>(image_.inner, [&](int64_t c, int lanes) {
      Vec<Acc> sum = Acc(0);
      for (int64_t i = 0; i < image_.width; ++i) sum += passing(first + i * image_.inner + c, lanes);
      store_lanes(sums_.data() + row * image_.inner + c, sum, lanes);
    });
  }

  Vec<Acc> passing(int64_t at, int lanes) const {
    const Vec<Acc> none = Acc(0), grad = load_lanes(grad_ + at, lanes);
    const Positions<Acc> dead = all_positions<Acc>(kNoGradient);
    return typename Vec<Acc>::Native(load_positions<Acc>(argmax_ + at, lanes) == dead ? none.v : grad.v);
  }

  Image image_;
  math::SlidingAxis height_;
  int64_t channels_;
  int64_t images_;
  const T* grad_;
  const uint8_t* argmax_;
  int64_t rows_at_a_time_;  // of windows that are summed at a time
  std::vector<Acc> sums_;
  std::vector<math::Range> beginning_;  // by row of the convolution's output
};

std::tuple<Tensor, Tensor> conv2d_max_pool2d_backward(Tensor grad_output, Tensor argmax,
                                                      std::optional<Tensor> saved, Sizes conv_size,
                                                      int64_t kind, double alpha, double beta,
                                                      bool saved_is_output, Sizes pool_kernel,
                                                      Sizes pool_stride, Sizes pool_padding,
                                                      Sizes pool_dilation, bool ceil_mode, bool needs_bias) {
  const char* op = "conv2d_max_pool2d_backward";
  const math::ActivationParams params{kind, alpha, beta};
  const Windows windows =
      check_pool(conv_size, pool_kernel, pool_stride, pool_padding, pool_dilation, ceil_mode, op);
  const PooledGradient pooled = check_pooled_gradient(grad_output, argmax, saved, params, windows, op);
  const ScalarType type = grad_output.scalar_type();
  const bool formed = !keeps_nothing(params);  // ReLU's derivative is in argmax
  Tensor gradient =
      formed ? new_image(grad_output, shape_of(grad_output), pooled.channels_last, type) : grad_output;
  Tensor grad_conv = new_image(grad_output, pooled.conv_shape(), pooled.channels_last, type);
  Tensor grad_bias = new_tensor(grad_output, {needs_bias ? pooled.channels : 0}, type);
  if (formed) activation_gradient(grad_output, *saved, params, saved_is_output, op, gradient);
  dispatch_floating(type, op, [&](auto tag) {
    using T = decltype(tag);
    const T* const grad = data<T>(gradient);
    const uint8_t* const at = data<uint8_t>(argmax);
    const Image image = pooled.image();
    PooledBiasGradient<T> bias(pooled, grad, at);
    max_pool_gradient(windows.input_of(image), windows, grad, at, mutable_data<T>(grad_conv),
                      [&](int64_t row) {
                        if (needs_bias) bias.visit(row);
                      });
    if (needs_bias) bias.merge(mutable_data<T>(grad_bias));
  });
  return {grad_conv, grad_bias};
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("conv2d_max_pool2d_forward", TORCH_BOX(&pyops::cpu::conv2d_max_pool2d_forward));
  m.impl("conv2d_max_pool2d_backward", TORCH_BOX(&pyops::cpu::conv2d_max_pool2d_backward));
}
