// What the ops that convolve share: from tensors in either format to problems (problem.h).
#pragma once

#include "binding/conv2d.h"
#include "cpu/conv2d/algorithms.h"
#include "cpu/conv2d/epilogue.h"
#include "cpu/runtime/output_cache.h"

namespace pyops::cpu {

// An uninitialised image in one of the two formats; `shape` is (N, C, H, W).
inline Tensor new_image(const Tensor& like, const std::vector<int64_t>& shape, bool channels_last,
                        ScalarType type) {
  if (!channels_last) return new_output(like, shape, type);
  Tensor t = new_output(like, {shape[0], shape[2], shape[3], shape[1]}, type);
  return torch::stable::transpose(torch::stable::transpose(t, 1, 3), 2, 3);
}
inline Tensor new_image(const Tensor& like, const std::vector<int64_t>& shape, bool channels_last) {
  return new_image(like, shape, channels_last, like.scalar_type());
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
inline Conv2dShape flattened(const Conv2dShape& s) {
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

// The bias in the accumulation type; empty if there is none.
template <class T>
std::vector<acc_t<T>> widened(const std::optional<Tensor>& bias) {
  std::vector<acc_t<T>> wide;
  if (const T* values = data_or_null<T>(bias)) {
    for (int64_t k = 0; k < bias->numel(); ++k) wide.push_back(to_acc(values[k]));
  }
  return wide;
}

// A convolution of tensors in either format, as problems.
template <class T>
class Conv2d {
 public:
  using Acc = acc_t<T>;

  Conv2d(const Conv2dShape& shape, const Tensor& input, const Tensor& weight)
      : shape_(shape),
        input_channels_last_(is_channels_last(input)),
        weight_channels_last_(is_channels_last(weight)),
        input_(data<T>(input)),
        weight_(data<T>(weight)) {}

  CorrelationProblem<T> forward(TileEpilogue<T>* epilogue) const {
    return {input_source(),
            weights(false),
            {math::forward_axis(shape_.height)},
            {math::forward_axis(shape_.width)},
            shape_.images,
            epilogue};
  }

  CorrelationProblem<T> input_gradient(const T* grad, const T* relu_output, TileEpilogue<T>* epilogue) const {
    return {source(output_strides(), grad, relu_output), weights(true), math::gradient_axes(shape_.height),
            math::gradient_axes(shape_.width),           shape_.images, epilogue};
  }

  // Either result may be null.
  WeightGradientProblem<T> weight_gradient(const T* grad, const T* relu_output, T* weight, T* bias) const {
    return {input_source(),
            source(output_strides(), grad, relu_output),
            weights(false),
            math::forward_axis(shape_.height),
            math::forward_axis(shape_.width),
            shape_.images,
            weight,
            bias};
  }

  bool has_input() const { return shape_.height.input > 0 && shape_.width.input > 0; }
  ImageTarget<T> input(T* values) const { return target(input_strides(), values); }
  ImageTarget<T> output(T* values) const { return target(output_strides(), values); }

 private:
  ImageStrides input_strides() const {
    return {shape_.in_channels, shape_.height.input, shape_.width.input, input_channels_last_};
  }
  ImageStrides output_strides() const {
    return {shape_.out_channels, shape_.height.output(), shape_.width.output(), shape_.channels_last};
  }
  ImageSource<T> source(const ImageStrides& s, const T* values, const T* relu_output) const {
    return {values, relu_output, s.image, s.channel, s.row, s.column};
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
            shape_.height.kernel,
            shape_.width.kernel,
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

}  // namespace pyops::cpu
