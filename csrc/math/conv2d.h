// Geometry of a two-dimensional convolution, one axis at a time.
//
// Forward and data gradient are both a correlation of step 1: output j of an axis is a sum over taps t of
// source[j + t.shift] * weight[t.kernel]. For a stride s the input is cut into s phases (every s-th row) and
// a tap reads from one of them; in the data gradient it is the output that has phases, each with taps of its
// own. No multiplication by a zero between strided elements is ever made.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace pyops::math {

struct ConvAxis {
  int64_t input;
  int64_t kernel;
  int64_t stride;
  int64_t padding;
  int64_t dilation;

  int64_t extent() const { return dilation * (kernel - 1) + 1; }
  int64_t output() const { return (input + 2 * padding - extent()) / stride + 1; }
};

struct ConvTap {
  int64_t kernel;  // index into the kernel
  int64_t phase;   // of the source
  int64_t shift;   // of the source's element, within its phase
};

// Source element i of phase p is element i * source_step + p + source_first of the tensor, or zero outside of
// it; output j is element j * target_step + target_first.
struct CorrelationAxis {
  int64_t count;  // outputs
  int64_t target_first;
  int64_t target_step;
  int64_t source_size;
  int64_t source_first;
  int64_t source_step;
  std::vector<ConvTap> taps;
  int64_t min_shift = 0;
  int64_t max_shift = 0;
  int64_t phases = 1;  // of the source that taps use: 0, ..., phases - 1

  // Source elements of one phase that `outputs` neighbouring outputs read.
  int64_t source_span(int64_t outputs) const { return outputs + max_shift - min_shift; }

  // Element of the source that a tap reads for an output; it may lie outside.
  int64_t source_index(int64_t output, const ConvTap& tap) const {
    return (output + tap.shift) * source_step + tap.phase + source_first;
  }

  void add(ConvTap tap) {
    min_shift = taps.empty() || tap.shift < min_shift ? tap.shift : min_shift;
    max_shift = taps.empty() || tap.shift > max_shift ? tap.shift : max_shift;
    phases = tap.phase >= phases ? tap.phase + 1 : phases;
    taps.push_back(tap);
  }
};

// The output is correlated with the input: output o reads padded input o * stride + k * dilation. Taps that
// read neighbours are neighbours.
inline CorrelationAxis forward_axis(const ConvAxis& a) {
  CorrelationAxis r{a.output(), 0, 1, a.input, -a.padding, a.stride, {}};
  for (int64_t k = 0; k < a.kernel; ++k) {
    r.add({k, k * a.dilation % a.stride, k * a.dilation / a.stride});
  }
  std::stable_sort(r.taps.begin(), r.taps.end(),
                   [](const ConvTap& one, const ConvTap& other) { return one.phase < other.phase; });
  return r;
}

// The gradients of input elements phase, phase + stride, ... are correlated with the output's gradient.
inline CorrelationAxis gradient_phase(const ConvAxis& a, int64_t phase) {
  const int64_t count = phase < a.input ? (a.input - phase - 1) / a.stride + 1 : 0;
  CorrelationAxis r{count, phase, a.stride, a.output(), 0, 1, {}};
  for (int64_t k = 0; k < a.kernel; ++k) {
    const int64_t distance = phase + a.padding - k * a.dilation;
    if (distance % a.stride == 0) r.add({k, 0, distance / a.stride});
  }
  return r;
}

// All phases of the data gradient that have elements, reading from the same stretch of the source.
inline std::vector<CorrelationAxis> gradient_axes(const ConvAxis& a) {
  std::vector<CorrelationAxis> phases;
  int64_t least = 0, most = 0;
  for (int64_t p = 0; p < std::min(a.stride, a.input); ++p) {
    phases.push_back(gradient_phase(a, p));
    least = std::min(least, phases.back().min_shift);
    most = std::max(most, phases.back().max_shift);
  }
  for (CorrelationAxis& axis : phases) {
    axis.min_shift = least;
    axis.max_shift = most;
  }
  return phases;
}

// The outputs of all phases as those of one axis; its source and taps are the first phase's.
inline CorrelationAxis all_targets(const std::vector<CorrelationAxis>& phases) {
  CorrelationAxis all = phases.front();
  all.target_first = 0;
  all.target_step = 1;
  all.count = 0;
  for (const CorrelationAxis& phase : phases) all.count += phase.count;
  return all;
}

}  // namespace pyops::math
