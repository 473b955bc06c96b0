// Two-dimensional convolution on the CPU.
#include "../binding/conv2d.h"

#include <memory>
#include <tuple>

#include "conv2d_weight.h"
#include "elementwise.h"
#include "output_cache.h"

namespace pyops::cpu {
namespace {

// An uninitialised image in one of the two formats; `shape` is (N, C, H, W).
Tensor new_image(const Tensor& like, const std::vector<int64_t>& shape, bool channels_last) {
  if (!channels_last) return new_output(like, shape, like.scalar_type());
  Tensor t = new_output(like, {shape[0], shape[2], shape[3], shape[1]}, like.scalar_type());
  return torch::stable::transpose(torch::stable::transpose(t, 1, 3), 2, 3);
}

struct ImageStrides {
  ImageStrides(int64_t channels, int64_t height, int64_t width, bool channels_last)
      : image(channels * height * width),
        channel(channels_last ? 1 : height * width),
        row(channels_last ? width * channels : width),
        column(channels_last ? channels : 1) {}
  int64_t image;
  int64_t channel;
  int64_t row;
  int64_t column;
};

// Where pixels do not overlap and none is left out, an image is one long row.
Conv2dShape flattened(const Conv2dShape& s) {
  Conv2dShape flat = s;
  const auto is_plain = [](const math::ConvAxis& a) {
    return a.kernel == 1 && a.stride == 1 && a.padding == 0;
  };
  if (is_plain(s.height) && is_plain(s.width)) {
    flat.height.input = 1;
    flat.width.input = s.height.input * s.width.input;
  }
  return flat;
}

template <class T>
class Conv2d {
 public:
  using Acc = acc_t<T>;

  Conv2d(const Conv2dShape& shape, const Tensor& input, const Tensor& weight)
      : shape_(flattened(shape)),
        input_channels_last_(is_channels_last(input)),
        weight_channels_last_(is_channels_last(weight)),
        input_(static_cast<const T*>(input.const_data_ptr())),
        weight_(static_cast<const T*>(weight.const_data_ptr())) {}

  void forward(const ConvEpilogue<T>& epilogue) const {
    const std::vector<math::CorrelationAxis> h{math::forward_axis(shape_.height)};
    const std::vector<math::CorrelationAxis> w{math::forward_axis(shape_.width)};
    const TileWriter<T> sink(epilogue, target(output_strides(), epilogue.output));
    Correlation<T>(input_source(), weights(false), h, w, sink, shape_.images).run();
  }

  void input_gradient(const T* grad, const T* gate, T* to) const {
    ActivationEpilogue<T, math::Identity<Acc>> epilogue{{}};
    epilogue.output = to;
    const std::vector<math::CorrelationAxis> h = math::gradient_axes(shape_.height);
    const std::vector<math::CorrelationAxis> w = math::gradient_axes(shape_.width);
    if (h.empty() || w.empty()) return;
    const TileWriter<T> sink(epilogue, target(input_strides(), to));
    Correlation<T>(source(output_strides(), grad, gate), weights(true), h, w, sink, shape_.images).run();
  }

  // Either result may be null.
  void weight_gradient(const T* grad, const T* gate, T* weight, T* bias) const {
    const math::CorrelationAxis h = math::forward_axis(shape_.height), w = math::forward_axis(shape_.width);
    WeightGradient<T>(input_source(), source(output_strides(), grad, gate), weights(false), h, w,
                      shape_.images)
        .run(weight, bias);
  }

 private:
  ImageStrides input_strides() const {
    return {shape_.in_channels, shape_.height.input, shape_.width.input, input_channels_last_};
  }
  ImageStrides output_strides() const {
    return {shape_.out_channels, shape_.height.output(), shape_.width.output(), shape_.channels_last};
  }
  ImageSource<T> source(const ImageStrides& s, const T* values, const T* gate) const {
    return {values, gate, s.image, s.channel, s.row, s.column};
  }
  ImageSource<T> input_source() const { return source(input_strides(), input_, nullptr); }
  ImageTarget<T> target(const ImageStrides& s, T* values) const {
    return {values, s.image, s.channel, s.row, s.column};
  }

  // From input to output channels, or the other way round.
  ConvWeights<T> weights(bool transposed) const {
    const int64_t inputs = shape_.in_channels / shape_.groups, outputs = shape_.out_channels / shape_.groups;
    const ImageStrides s(inputs, shape_.height.kernel, shape_.width.kernel, weight_channels_last_);
    return {weight_,
            shape_.groups,
            transposed ? outputs : inputs,
            transposed ? inputs : outputs,
            outputs * s.image,
            transposed ? s.image : s.channel,
            transposed ? s.channel : s.image,
            s.row,
            s.column};
  }

  Conv2dShape shape_;
  bool input_channels_last_;
  bool weight_channels_last_;
  const T* input_;
  const T* weight_;
};

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

std::tuple<Tensor, Tensor> conv2d_forward(Tensor input, Tensor weight, std::optional<Tensor> bias,
                                          std::optional<Tensor> residual, std::vector<int64_t> stride,
                                          std::vector<int64_t> padding, std::vector<int64_t> dilation,
                                          int64_t groups, int64_t kind, double a, double b,
                                          bool save_input_of_activation) {
  const char* op = "conv2d_forward";
  const Conv2dShape shape = check_conv2d(input, weight, stride, padding, dilation, groups, kind, op);
  if (bias) {
    check_dense(*bias, op, "bias", input);
    check_type(*bias, op, "bias", input.scalar_type());
    check_shape(*bias, op, "bias", {shape.out_channels});
  }
  check_like_output(residual, op, "residual", input, shape);
  Tensor output = new_image(input, shape.output(), shape.channels_last);
  Tensor saved = save_input_of_activation ? new_image(input, shape.output(), shape.channels_last)
                                          : new_tensor(input, {0}, input.scalar_type());
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    std::vector<acc_t<T>> wide_bias;
    if (const T* values = data_or_null<T>(bias)) {
      for (int64_t k = 0; k < shape.out_channels; ++k) wide_bias.push_back(to_acc(values[k]));
    }
    math::dispatch_activation<acc_t<T>>(kind, a, b, [&](const auto& activation) {
      ActivationEpilogue<T, std::decay_t<decltype(activation)>> epilogue(activation);
      epilogue.bias = bias ? wide_bias.data() : nullptr;
      epilogue.residual = data_or_null<T>(residual);
      epilogue.activation_input = save_input_of_activation ? data<T>(saved) : nullptr;
      epilogue.output = data<T>(output);
      Conv2d<T>(shape, input, weight).forward(epilogue);
    });
  });
  return {output, saved};
}

// Gradient of the activation's input, in the order of memory that the tensors share.
template <class T>
void activation_gradient(int64_t count, const T* grad, const T* saved, int64_t kind, double a, double b,
                         bool saved_is_output, T* to) {
  constexpr int64_t kCost = 8;
  math::dispatch_activation<acc_t<T>>(kind, a, b, [&](const auto& f) {
    using Activation = std::decay_t<decltype(f)>;
    saved_is_output ? elementwise(count, kCost, math::FromOutput<Activation>{f}, to, saved, grad)
                    : elementwise(count, kCost, math::FromInput<Activation>{f}, to, saved, grad);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> conv2d_backward(
    Tensor grad_output, Tensor input, Tensor weight, std::optional<Tensor> saved, std::vector<int64_t> stride,
    std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups, int64_t kind, double a,
    double b, bool saved_is_output, bool needs_input, bool needs_weight, bool needs_bias,
    bool needs_residual) {
  const char* op = "conv2d_backward";
  const Conv2dShape shape = check_conv2d(input, weight, stride, padding, dilation, groups, kind, op);
  const bool identity = kind == static_cast<int64_t>(math::ActivationKind::kIdentity);
  check_like_output(grad_output, op, "grad_output", input, shape);
  STD_TORCH_CHECK(identity || saved, op, ": saved must be given for an activation");
  if (!identity) check_like_output(saved, op, "saved", input, shape);
  const Tensor none = new_tensor(input, {0}, input.scalar_type());
  // ReLU's gradient is formed where it is read; what takes longer is formed once.
  const bool gated =
      kind == static_cast<int64_t>(math::ActivationKind::kRelu) && saved_is_output && !needs_residual;
  const bool formed = (!identity && !gated) || needs_residual;
  Tensor gradient = formed ? new_image(input, shape.output(), shape.channels_last) : grad_output;
  Tensor grad_input = needs_input ? new_image(input, shape.input(), is_channels_last(input)) : none;
  Tensor grad_weight = needs_weight ? new_image(weight, shape.weight(), is_channels_last(weight)) : none;
  Tensor grad_bias = needs_bias ? new_tensor(input, {shape.out_channels}, input.scalar_type()) : none;
  dispatch_floating(input.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    const T* const grad = static_cast<const T*>(gradient.const_data_ptr());
    const T* const gate = gated ? static_cast<const T*>(saved->const_data_ptr()) : nullptr;
    if (formed) {
      const T* const upstream = static_cast<const T*>(grad_output.const_data_ptr());
      const T* const other = identity ? upstream : static_cast<const T*>(saved->const_data_ptr());
      activation_gradient(gradient.numel(), upstream, other, kind, a, b, identity || saved_is_output,
                          data<T>(gradient));
    }
    const Conv2d<T> conv(shape, input, weight);
    if (needs_input) conv.input_gradient(grad, gate, data<T>(grad_input));
    if (needs_weight || needs_bias) {
      conv.weight_gradient(grad, gate, needs_weight ? data<T>(grad_weight) : nullptr,
                           needs_bias ? data<T>(grad_bias) : nullptr);
    }
  });
  return {grad_input, grad_weight, grad_bias, needs_residual ? gradient : none};
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("conv2d_forward", TORCH_BOX(&pyops::cpu::conv2d_forward));
  m.impl("conv2d_backward", TORCH_BOX(&pyops::cpu::conv2d_backward));
}
