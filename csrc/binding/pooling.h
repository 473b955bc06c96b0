// Checks of the pooling ops that hold on every device.
#pragma once

#include <limits>

#include "binding/tensor.h"
#include "math/pooling.h"

namespace pyops {

// Largest kernel whose positions are kept in one byte. 255 is left for the fused ops to mark outputs that
// pass no gradient.
constexpr int64_t kMaxBytePositions = 255;

using Sizes = std::vector<int64_t>;

// A contiguous [C, H, W] or [N, C, H, W] or, channels_last, [N, H, W, C] tensor as [outer, height, width,
// inner].
struct Image {
  int64_t outer;
  int64_t height;
  int64_t width;
  int64_t inner;
  Sizes shape;
  bool channels_last;

  static Image of(const Tensor& t, bool channels_last, const char* op, const char* name) {
    check_dense(t, op, name, t);
    const int64_t rank = t.dim();
    PYOPS_CHECK(rank == 4 || (rank == 3 && !channels_last), op, ": ", name,
                " must have 3 dimensions, or 4 if channels_last, got shape ", shape_string(t));
    const int64_t h = channels_last ? 1 : rank - 2;
    Image image{1, t.size(h), t.size(h + 1), channels_last ? t.size(3) : 1, shape_of(t), channels_last};
    for (int64_t i = 0; i < h; ++i) image.outer *= t.size(i);
    return image;
  }

  Image resized(int64_t new_height, int64_t new_width) const {
    Image image = *this;
    const size_t h = channels_last ? 1 : shape.size() - 2;
    image.shape[h] = image.height = new_height;
    image.shape[h + 1] = image.width = new_width;
    return image;
  }

  int64_t row_elements() const { return width * inner; }
  int64_t rows() const { return outer * height; }
  int64_t elements() const { return rows() * row_elements(); }
};

inline void check_pair(const Sizes& values, const char* op, const char* name, int64_t low,
                       int64_t high = std::numeric_limits<int32_t>::max()) {
  PYOPS_CHECK(values.size() == 2, op, ": ", name, " must be two integers, got ", shape_string(values));
  for (int64_t value : values) {
    PYOPS_CHECK(value >= low && value <= high, op, ": ", name, " must be in [", low, ", ", high, "], got ",
                shape_string(values));
  }
}

inline void check_floating(const Tensor& t, const char* op, const char* name) {
  PYOPS_CHECK(is_floating(t.scalar_type()), op, ": ", name,
              " must be float32, float64, bfloat16 or float16, got ",
              torch::headeronly::toString(t.scalar_type()));
}

// Geometry of both axes, height first.
struct Windows {
  math::SlidingAxis axis[2];

  static Windows of(const Sizes& input_size, const Sizes& kernel, const Sizes& stride, const Sizes& padding,
                    const Sizes& dilation, bool ceil_mode, const char* op) {
    check_pair(input_size, op, "input_size", 1, int64_t{1} << 60);
    check_pair(kernel, op, "kernel", 1);
    check_pair(stride, op, "stride", 1);
    check_pair(padding, op, "padding", 0);
    check_pair(dilation, op, "dilation", 1);
    Windows windows;
    for (int i = 0; i < 2; ++i) {
      PYOPS_CHECK(padding[i] <= kernel[i] / 2, op, ": padding must be at most half of kernel ",
                  shape_string(kernel), ", got ", shape_string(padding));
      const int64_t out = math::SlidingAxis::output_size(input_size[i], kernel[i], stride[i], padding[i],
                                                         dilation[i], ceil_mode);
      PYOPS_CHECK(out >= 1, op, ": no window of kernel ", shape_string(kernel), " and dilation ",
                  shape_string(dilation), " fits into ", shape_string(input_size));
      windows.axis[i] = {input_size[i], out, kernel[i], stride[i], padding[i], dilation[i]};
    }
    PYOPS_CHECK(kernel[0] <= std::numeric_limits<int32_t>::max() / kernel[1], op,
                ": kernel must have less than 2^31 positions, got ", shape_string(kernel));
    return windows;
  }

  const math::SlidingAxis& height() const { return axis[0]; }
  const math::SlidingAxis& width() const { return axis[1]; }
  int64_t positions() const { return axis[0].kernel * axis[1].kernel; }
  ScalarType argmax_type() const {
    return positions() <= kMaxBytePositions ? ScalarType::Byte : ScalarType::Int;
  }
  Image input_of(const Image& output) const { return output.resized(axis[0].in, axis[1].in); }
  Image output_of(const Image& input) const { return input.resized(axis[0].out, axis[1].out); }

  // Of an output-sized tensor.
  void check_output(const Image& image, const char* op, const char* name) const {
    PYOPS_CHECK(image.height == axis[0].out && image.width == axis[1].out, op, ": ", name,
                " must have height and width ", shape_string(Sizes{axis[0].out, axis[1].out}), ", got shape ",
                shape_string(image.shape));
  }
  Image check_argmax(const Tensor& argmax, bool channels_last, const char* op) const {
    check_type(argmax, op, "argmax", argmax_type());
    const Image out = Image::of(argmax, channels_last, op, "argmax");
    check_output(out, op, "argmax");
    return out;
  }
  // Of max pooling. The values of argmax are not checked: they are compared, and address nothing.
  Image check_backward(const Tensor& grad_output, const Tensor& argmax, bool channels_last,
                       const char* op) const {
    check_floating(grad_output, op, "grad_output");
    check_dense(argmax, op, "argmax", grad_output);
    const Image out = check_argmax(argmax, channels_last, op);
    check_dense(grad_output, op, "grad_output", grad_output);
    check_shape(grad_output, op, "grad_output", out.shape);
    return out;
  }
};

// Calls f(dtype tag, argmax dtype tag).
template <class F>
void dispatch_argmax(ScalarType type, const Windows& windows, const char* op, const F& f) {
  dispatch_floating(type, op, [&](auto tag) {
    windows.argmax_type() == ScalarType::Byte ? f(tag, uint8_t{}) : f(tag, int32_t{});
  });
}

inline int64_t check_divisor(const std::optional<int64_t>& divisor, const char* op) {
  PYOPS_CHECK(!divisor || *divisor != 0, op, ": divisor_override must not be 0");
  return divisor.value_or(0);
}

// Height and width between 0 (or 1) and 2^31, for the adaptive axes' products.
inline void check_adaptive(const Sizes& input_size, const Sizes& output_size, const char* op) {
  check_pair(input_size, op, "input_size", 1);
  check_pair(output_size, op, "output_size", 0);
}

}  // namespace pyops
