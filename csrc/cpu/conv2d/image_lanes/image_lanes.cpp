// The convolution with an image in each lane of a vector, for every dtype.
#include "cpu/conv2d/algorithms.h"
#include "cpu/conv2d/image_lanes/correlation.h"
#include "cpu/conv2d/image_lanes/weight_gradient.h"

namespace pyops::cpu {
namespace {

// Enough images for many threads, whose part of a thread's work stays in the L2 cache.
template <class Problem>
bool has_lanes(const Problem& p) {
  using Acc = acc_t<typename Problem::Value>;
  constexpr int64_t n = Vec<Acc>::kLanes, kBatches = 8, kMostBytes = 512 << 10;
  const int64_t input = p.weights.inputs * p.longest_h().source_size * p.longest_w().source_size;
  const int64_t output = p.weights.outputs * p.pixels();
  const int64_t weights = p.weights.inputs * p.weights.outputs * p.weights.taps();
  const int64_t bytes = (input + output + weights) * n * static_cast<int64_t>(sizeof(Acc));
  return p.images >= kBatches * n && bytes <= kMostBytes && p.has_one_phase();
}

// The part of an axis's taps that read inside of the source, over all outputs.
double part_inside(const math::CorrelationAxis& axis) {
  int64_t inside = 0;
  for (const SameTaps& same : same_taps(axis, 0, axis.count)) inside += (same.end - same.begin) * same.taps;
  return double(inside) / double(axis.count * static_cast<int64_t>(axis.taps.size()));
}

}  // namespace

template <class Problem>
bool ImageLanes::can(const Problem& p) {
  return p.weights.groups == 1 && p.images * p.pixels() > 0 && p.longest_h().source_step == 1 &&
         p.longest_w().source_step == 1;
}

// A direct correlation multiplies by zeros around the image and in vectors that channels or columns do not
// fill; a direct weight gradient is slow only where channels do not. Pairs are multiplied twice as fast.
template <class Problem>
bool ImageLanes::suits(const Problem& p) {
  if (!has_lanes(p) || (Winograd::can(p) && Winograd::suits(p))) return false;
  using Acc = acc_t<typename Problem::Value>;
  constexpr int64_t n = Vec<Acc>::kLanes;
  const int64_t columns = p.longest_w().count;
  const ChannelPanels<Acc> panels(p.weights.outputs, std::min<int64_t>(columns, 4 * n));
  if constexpr (!kIsCorrelation<Problem>) return !panels.vectors_along_channels;
  const double filled = panels.vectors_along_channels ? double(p.weights.outputs) / double(panels.padded())
                                                      : double(columns) / double(round_up(columns, n));
  const double products = part_inside(p.longest_h()) * part_inside(p.longest_w()) * filled;
  return Bf16Dot::can(p) && Bf16Dot::suits(p) ? products <= 0.45 : products <= 0.85;
}

template <class Problem>
void ImageLanes::run(const Problem& p) {
  using T = typename Problem::Value;
  if constexpr (kIsCorrelation<Problem>) {
    LaneCorrelation<T>(p).run();
  } else {
    LaneWeightGradient<T>(p).run();
  }
}

PYOPS_CONV2D_ALGORITHM(ImageLanes)

}  // namespace pyops::cpu
