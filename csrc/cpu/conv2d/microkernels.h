// Micro-kernels of the convolution, and how channels and terms are cut for them.
//
// Each keeps a block of sums in registers and reads the packed input (pack_input.h) through a table of
// offsets: nothing is unrolled into columns. They are compiled once, in microkernels.cpp, and chosen here by
// the size of the block.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/integers.h"
#include "cpu/simd/vec.h"

namespace pyops::cpu {

// Blocks of sums, chosen so that they, a row of vectors and a broadcast fit the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kPixels = 14, kWeights = 12, kChannels = 6, kFewChannels = 3, kDotWeights = 5,
                     kDotChannels = 4;
#else
inline constexpr int kPixels = 6, kWeights = 6, kChannels = 2, kFewChannels = 1, kDotWeights = 3,
                     kDotChannels = 3;
#endif
inline constexpr int kChannelVectors = 2, kPixelVectors = 4, kMostPixelVectors = 8, kMostRun = 5;

// c[pixel, channel] (+)= sum_d x[offsets[d] + pixel] * weight[d, channel] for neighbouring pixels and vectors
// of channels, one broadcast per pixel: for many output channels. The panel of weights is aligned.
template <class Acc>
using PixelKernel = void (*)(int64_t depth, const Acc* x, const int64_t* offsets, const Acc* weight, Acc* c,
                             int64_t ldc, bool accumulate);
// Of 1 ... kPixels pixels and 1 or kChannelVectors vectors.
template <class Acc>
PixelKernel<Acc> pixel_kernel_of(int64_t pixels, int64_t vectors);

// c[channel, pixel] (+)= sum_d weight[d, channel] * x[starts[j] + offsets[d] + lane] for vectors j of pixels,
// one broadcast per output channel: for few of them.
template <class Acc>
using ChannelKernel = void (*)(int64_t depth, const Acc* x, const int64_t* starts, const int64_t* offsets,
                               const Acc* weight, Acc* c, int64_t ldc, bool accumulate);
// Of 1 ... kChannels channels and 1 or kPixelVectors vectors, or kFewChannels at most and kMostPixelVectors.
template <class Acc>
ChannelKernel<Acc> channel_kernel_of(int64_t channels, int64_t vectors);

// Neighbouring images' pixels in a packed input.
struct WeightKernelPixels {
  int64_t images;
  int64_t image_stride;
  int64_t rows;
  int64_t row_stride;
  int64_t columns;
};

// c[rows[g] + k, channel] (+)= sum over pixels of x[offsets[rows[g]] + k + image * image_stride +
// row * row_stride + column] * grad[pixel, channel] for runs g of taps k that read neighbours, the pixels
// of the packed gradient lying one after the other. Runs share a pointer; there are not enough registers for
// one per weight.
template <class Acc>
using WeightKernel = void (*)(const WeightKernelPixels& pixels, const Acc* x, const int64_t* offsets,
                              const int64_t* rows, const Acc* grad, Acc* c, int64_t ldc, bool accumulate);
// Of 1 ... kWeights / length runs of 1 ... kMostRun taps, and 1 or kChannelVectors vectors.
template <class Acc>
WeightKernel<Acc> weight_kernel_of(int64_t length, int64_t runs, int64_t vectors);

// c[i, channel] (+)= sum_t x[i, t] * grad[t, channel] over Winograd tiles t for neighbouring channels i of a
// transformed input (winograd/transforms.h) and vectors of channels of a transformed gradient.
template <class Acc>
using WinogradKernel = void (*)(int64_t tiles, const Acc* x, const Acc* grad, Acc* c, int64_t ldc,
                                bool accumulate);
// Of 1 ... kPixels channels and 1 or kChannelVectors vectors.
template <class Acc>
WinogradKernel<Acc> winograd_kernel_of(int64_t channels, int64_t vectors);

// c[weight, channel] (+)= sum over pixels of x[offsets[weight] + ...] * grad[channel * grad_stride + ...],
// both planar, vectors along pixels: for few output channels.
template <class Acc>
using DotKernel = void (*)(int64_t pixel_rows, int64_t pixel_columns, const Acc* x, int64_t row_stride,
                           const int64_t* offsets, const Acc* grad, int64_t grad_row_stride,
                           int64_t grad_stride, Acc* c, int64_t ldc, bool accumulate);
// Of 1 ... kDotWeights weights and 1 ... kDotChannels channels.
template <class Acc>
DotKernel<Acc> dot_kernel_of(int64_t weights, int64_t channels);

// Terms that are added up one after the other before their total joins the sum: in longer chains, rounding
// errors grow beyond torch's.
inline constexpr int64_t kChainedTerms = 64;

// Calls f(first, count) for the terms of each chain of a sum; once if there are none, for the zeros.
template <class F>
void for_each_chain(int64_t depth, const F& f) {
  const EvenSplit chains(depth, std::max<int64_t>(1, ceil_div(depth, kChainedTerms)));
  for (int64_t i = 0; i < chains.parts; ++i) f(chains.begin(i), chains.size(i));
}

// Output channels of a group in panels: of whole vectors for PixelKernel, else of rows for ChannelKernel.
template <class Acc>
struct ChannelPanels {
  static constexpr int64_t n = Vec<Acc>::kLanes, kWide = kChannelVectors * n;

  // Vectors along channels waste what is missing from the last one, vectors along pixels what is missing at
  // the end of a row; the latter cost a little more, since their loads are unaligned.
  ChannelPanels(int64_t channels_, int64_t columns)
      : channels(channels_),
        vectors_along_channels(4 * round_up(channels, n) * columns <= 5 * channels * round_up(columns, n)),
        parts(ceil_div(channels, vectors_along_channels ? kWide : kChannels)),
        even(channels, parts) {}

  int64_t begin(int64_t panel) const { return vectors_along_channels ? panel * kWide : even.begin(panel); }
  int64_t width(int64_t panel) const {
    if (!vectors_along_channels) return even.size(panel);
    return channels - panel * kWide > n ? kWide : n;
  }
  int64_t padded() const { return begin(parts - 1) + width(parts - 1); }

  int64_t channels;
  bool vectors_along_channels;
  int64_t parts;
  EvenSplit even;
};

// Neighbouring panels and their channels, of which `padded` have room and `count` exist.
struct PanelRange {
  int64_t begin;
  int64_t end;
  int64_t first;
  int64_t padded;
  int64_t count;
};

// Panels in parts that threads take one by one, for tiles that are too few to keep all threads busy: a late
// layer of one image has one tile. Each part reads the tile's input anew. The sums of a channel do not depend
// on it.
template <class Acc>
class PanelParts {
 public:
  PanelParts() : split_(1, 1) {}
  PanelParts(const ChannelPanels<Acc>& panels, int64_t tiles, int64_t threads)
      : split_(panels.parts, panels.vectors_along_channels ? wanted(panels.parts, tiles, threads) : 1) {}

  int64_t parts() const { return split_.parts; }
  PanelRange range(const ChannelPanels<Acc>& panels, int64_t part) const {
    const int64_t begin = split_.begin(part), end = begin + split_.size(part), first = panels.begin(begin);
    const int64_t padded = panels.begin(end - 1) + panels.width(end - 1) - first;
    return {begin, end, first, padded, std::min(padded, panels.channels - first)};
  }

 private:
  // The fewest that leave threads idle for little of the time.
  static int64_t wanted(int64_t panels, int64_t tiles, int64_t threads) {
    constexpr double kBusy = 0.9;
    int64_t best = 1;
    double most = 0;
    for (int64_t parts = 1; tiles > 0 && parts <= std::min(panels, 2 * threads); ++parts) {
      const double slowest = double(ceil_div(panels, parts)) * double(ceil_div(tiles * parts, threads));
      const double busy = double(panels * tiles) / (slowest * double(threads));
      if (busy > most) most = busy, best = parts;
      if (busy >= kBusy) break;
    }
    return best;
  }

  EvenSplit split_;
};

}  // namespace pyops::cpu
