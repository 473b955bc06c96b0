// What the convolution's kernels know of its geometry: csrc/math/conv2d.h in the numbers of a GPU.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "binding/conv2d.h"
#include "cuda/device/divide.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/tensor.cuh"
#include "math/pooling.h"

namespace pyops::cuda {

// Elements that move in 16 bytes.
template <class T>
constexpr int kChunk = kPackBytes / sizeof(T);

// In elements.
struct ImageStrides {
  int64_t image;
  int64_t channel;
  int64_t row;
  int64_t column;

  static ImageStrides of(int64_t channels, int64_t height, int64_t width, bool channels_last) {
    if (channels_last) return {channels * height * width, 1, width * channels, channels};
    return {channels * height * width, height * width, width, 1};
  }
};

// One axis of a correlation: output i is a sum over taps t of source[i * source_step + offset(t)] *
// weight[kernel(t)]. The taps of a phase are an arithmetic sequence, whatever stride and dilation are.
struct ConvPhase {
  int count = 0;  // outputs
  int target_first = 0;
  int taps = 0;
  int first_offset = 0;
  int offset_step = 0;
  int first_kernel = 0;
  int kernel_step = 0;
  Divisor by_taps;

  static ConvPhase of(const math::CorrelationAxis& axis) {
    ConvPhase p;
    p.count = static_cast<int>(axis.count);
    p.target_first = static_cast<int>(axis.target_first);
    p.taps = static_cast<int>(axis.taps.size());
    p.by_taps = Divisor::of(p.taps > 0 ? p.taps : 1);
    std::vector<math::ConvTap> taps = axis.taps;
    std::sort(taps.begin(), taps.end(),
              [](const math::ConvTap& a, const math::ConvTap& b) { return a.kernel < b.kernel; });
    const auto offset = [&](const math::ConvTap& tap) {
      return static_cast<int>(tap.shift * axis.source_step + tap.phase + axis.source_first);
    };
    if (p.taps > 0) {
      p.first_offset = offset(taps[0]);
      p.first_kernel = static_cast<int>(taps[0].kernel);
    }
    if (p.taps > 1) {
      p.offset_step = offset(taps[1]) - p.first_offset;
      p.kernel_step = static_cast<int>(taps[1].kernel) - p.first_kernel;
    }
    return p;
  }
};

// The kernels count along an axis in 32 bits.
inline void check_narrow(const Conv2dShape& s, const char* op) {
  for (const math::ConvAxis& axis : {s.height, s.width}) {
    PYOPS_CHECK(axis.input + 2 * axis.padding + axis.extent() + axis.stride < (int64_t{1} << 30), op,
                ": height and width must be less than 2^30 with padding and kernel, got ", axis.input);
  }
}

constexpr int kMaxPhases = 4;  // per axis and launch

// A launch's share of a correlation: its phases, and what they have in common. The output and the data
// gradient are correlations of the input and of the output's gradient with the weights.
struct Correlation {
  ConvPhase down[kMaxPhases];
  ConvPhase across[kMaxPhases];
  int phases_down;
  int phases_across;
  int64_t images;
  int groups;
  int outputs;  // channels per group
  int source_height;
  int source_width;
  int source_step_down;
  int source_step_across;
  int target_step_down;
  int target_step_across;
  ImageStrides target;

  __host__ __device__ __forceinline__ int64_t pixels(const ConvPhase& h, const ConvPhase& w) const {
    return images * h.count * w.count;
  }
};

// Without its phases.
inline Correlation conv_correlation(const Conv2dShape& s, const math::CorrelationAxis& h,
                                    const math::CorrelationAxis& w, int64_t outputs,
                                    const ImageStrides& target) {
  Correlation c{};
  c.images = s.images;
  c.groups = static_cast<int>(s.groups);
  c.outputs = static_cast<int>(outputs);
  c.source_height = static_cast<int>(h.source_size);
  c.source_width = static_cast<int>(w.source_size);
  c.source_step_down = static_cast<int>(h.source_step);
  c.source_step_across = static_cast<int>(w.source_step);
  c.target_step_down = static_cast<int>(h.target_step);
  c.target_step_across = static_cast<int>(w.target_step);
  c.target = target;
  return c;
}

struct ConvPixel {
  int64_t image;
  int row;
  int column;

  static __device__ __forceinline__ ConvPixel of(int64_t pixel, int height, int width) {
    const int64_t line = math::quotient<int64_t>(pixel, width), image = math::quotient<int64_t>(line, height);
    return {image, static_cast<int>(line - image * height), static_cast<int>(pixel - line * width)};
  }
};

// A tensor [images, groups x channels, height, width] that a kernel reads.
template <class T>
struct ConvSource {
  const T* data;
  ImageStrides strides;
  int channels;  // per group
  bool packs;    // 16 bytes of neighbouring channels can be read at once

  static ConvSource of(const T* data, const ImageStrides& strides, int64_t channels) {
    return {data, strides, static_cast<int>(channels),
            strides.channel == 1 && is_aligned(data) && channels % kChunk<T> == 0};
  }
};

// Where the weight of (group, output, input, row, column) is, for either direction.
struct WeightStrides {
  int64_t group;
  int64_t output;
  int64_t input;
  int64_t row;
  int64_t column;
};

inline WeightStrides weight_strides(const Conv2dShape& s, bool channels_last, bool transposed) {
  const int64_t inputs = s.in_channels / s.groups, outputs = s.out_channels / s.groups;
  const ImageStrides k = ImageStrides::of(inputs, s.height.kernel, s.width.kernel, channels_last);
  return {outputs * k.image, transposed ? k.channel : k.image, transposed ? k.image : k.channel, k.row,
          k.column};
}

}  // namespace pyops::cuda
