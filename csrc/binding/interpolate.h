// Checks of the interpolation ops that hold on every device.
#pragma once

#include <vector>

#include "binding/tensor.h"
#include "math/interpolate.h"

namespace pyops {

// A tensor seen as [outer, depth, height, width, inner]: outer is batch * channels and inner 1, or, with the
// channels last, outer is the batch and inner the channels. Fewer spatial dimensions leave the first at 1.
struct InterpolateShape {
  int64_t outer = 1;
  int64_t inner = 1;
  math::NearestAxis axes[3];

  int64_t input_elements() const { return outer * axes[0].input * axes[1].input * axes[2].input * inner; }
  int64_t output_elements() const { return outer * axes[0].output * axes[1].output * axes[2].output * inner; }
};

// `t` is the input of `input_to_output`, otherwise the gradient of the output; `sizes` are the spatial sizes
// of the other one, whose whole shape is put into `shape`.
inline InterpolateShape check_interpolate(const Tensor& t, const char* name,
                                          const std::vector<int64_t>& sizes,
                                          const std::vector<double>& factors, bool exact, bool channels_last,
                                          bool input_to_output, const char* op, std::vector<int64_t>& shape) {
  PYOPS_CHECK(t.dim() >= 3 && t.dim() <= 5, op, ": ", name, " must have 3 to 5 dimensions, got shape ",
              shape_string(t));
  check_dense(t, op, name, t);
  const size_t spatial = t.dim() - 2;
  PYOPS_CHECK(sizes.size() == spatial && factors.size() == spatial, op, ": expected ", spatial,
              " sizes and scale factors, got ", sizes.size(), " and ", factors.size());
  InterpolateShape s;
  shape = shape_of(t);
  const int64_t first = channels_last ? 1 : 2;
  s.outer = channels_last ? shape[0] : shape[0] * shape[1];
  s.inner = channels_last ? shape[t.dim() - 1] : 1;
  for (size_t i = 0; i < spatial; ++i) {
    const int64_t own = shape[first + i], other = sizes[i];
    PYOPS_CHECK(own > 0 && other > 0, op, ": sizes must be positive, got ", own, " and ", other);
    PYOPS_CHECK(factors[i] >= 0, op, ": scale factors must not be negative, got ", factors[i]);
    s.axes[3 - spatial + i] = math::NearestAxis::of(input_to_output ? own : other,
                                                    input_to_output ? other : own, factors[i], exact);
    shape[first + i] = other;
  }
  return s;
}

}  // namespace pyops
