// The convolution in bfloat16 by VDPBF16PS (bf16.h): the direct algorithm with terms that are pairs.
#include "cpu/conv2d/bf16/bf16.h"

#include "cpu/conv2d/algorithms.h"
#include "cpu/simd/features.h"

#if defined(__AVX512F__)
#include <cstring>

#include "cpu/conv2d/bf16/pack.h"
#include "cpu/conv2d/direct/direct.h"
#include "cpu/conv2d/direct/weight_gradient.h"
#endif

namespace pyops::cpu {

#if defined(__AVX512F__)

namespace {

constexpr int64_t n = Vec<float>::kLanes;

// A term is a product of a pair of input channels and a pair of weights.
class ChannelPairTerms {
 public:
  using Plan = DirectPlan<bfloat16>;

  static int64_t inputs(const ConvWeights<bfloat16>& weights) { return ceil_div(weights.inputs, 2); }

  explicit ChannelPairTerms(const Plan& plan) : plan_(plan) {
    if (!plan.keeps_channels_together()) return;
    stride_ = odd_stride(plan.blocks.size(0));
    const ImageSource<bfloat16>& x = plan.problem.x;
    in_place_ = plan.is_pointwise() && x.relu_output == nullptr && plan.problem.weights.inputs % 2 == 0 &&
                x.row_stride % 2 == 0 && x.column_stride % 2 == 0;
  }

  std::vector<int64_t> offsets(const Plan::Phase& phase) const {
    std::vector<int64_t> found = plan_.shape.offsets(*phase.h, *phase.w, plan_.blocks.size(0));
    if (stride_ == 1) return found;
    for (int64_t& offset : found)
      offset = offset % plan_.shape.channel() * stride_ + offset / plan_.shape.channel();
    return found;
  }

  int64_t packed_channels() const {
    return stride_ > 1 ? stride_ : plan_.groups_in_tile * plan_.blocks.size(0);
  }
  // In pairs.
  InputStrides strides() const {
    const ImageSource<bfloat16>& x = plan_.problem.x;
    if (!in_place_) return {plan_.shape.columns * stride_, stride_, false};
    return {plan_.h.source_step * x.row_stride / 2, plan_.w.source_step * x.column_stride / 2, true};
  }
  const float* place(int64_t image, int64_t pair, const ConvTile& tile) const {
    return reinterpret_cast<const float*>(plan_.first_element(image, 2 * pair, tile));
  }

  void pack_tile(int64_t image, int64_t pair, int64_t pairs, const ConvTile& tile,
                 float* packed_input) const {
    const ConvWeights<bfloat16>& weights = plan_.problem.weights;
    const int64_t channels = std::min(2 * pairs, weights.groups * weights.inputs - 2 * pair);
    if (stride_ > 1) {
      bf16_pack::pack_channel_pairs_by_pixel(plan_.problem.x, image, 2 * pair, channels, plan_.h, plan_.w,
                                             plan_.shape, tile, stride_, packed_input);
    } else {
      bf16_pack::pack_channel_pairs(plan_.problem.x, image, 2 * pair, channels, plan_.h, plan_.w, plan_.shape,
                                    tile, packed_input);
    }
  }

  void pack_panel_of_weights(int64_t group, int64_t block, int64_t panel, float* packed_weights) const {
    const ConvWeights<bfloat16>& weights = plan_.problem.weights;
    const int64_t width = plan_.panels.width(panel), line = round_up(width, n), taps = weights.taps();
    const int64_t first = plan_.panels.begin(panel), count = std::min(width, weights.outputs - first);
    const int64_t most = std::max<int64_t>(2, channels_in_block(taps) / 2 * 2);
    const int64_t begin = 2 * plan_.blocks.begin(block);
    const int64_t end = std::min(begin + 2 * plan_.blocks.size(block), weights.inputs);
    Scratch scratch;
    float* const read = scratch.take<float>(most * taps * line);
    for (int64_t c = begin; c < end; c += most) {
      const int64_t channels = std::min(most, end - c);
      read_taps(weights, {group, c, channels, first, count}, line, read);
      for (const Plan::Phase& phase : plan_.phases) {
        float* to =
            packed_weights + plan_.packed(phase, group, block, panel) + (c - begin) / 2 * phase.taps * width;
        for (int64_t i = 0; i < channels; i += 2) {
          for (const math::ConvTap& r : phase.h->taps) {
            for (const math::ConvTap& s : phase.w->taps) {
              const float* const from = read + (i * taps + r.kernel * weights.columns + s.kernel) * line;
              bf16_pack::join_weights(from, i + 1 < channels ? from + taps * line : nullptr, width, to);
              to += width;
            }
          }
        }
      }
    }
  }

  // In one chain: the sums are rounded to 8 bits in the end.
  void multiply_pixels(int64_t pixels, int64_t vectors, int64_t depth, const float* x, const int64_t* offsets,
                       const float* weight, float* c, int64_t ldc, bool accumulate) const {
    const int64_t stride = strides().pixel;
    pair_pixel_kernel_of(pixels, vectors)(depth, x, stride, offsets, weight, c, ldc, accumulate);
  }
  static ChannelKernel<float> channel_kernel(int64_t channels, int64_t vectors) {
    return pair_channel_kernel_of(channels, vectors);
  }

 private:
  const Plan& plan_;
  int64_t stride_ = 1;  // of pixels in the packed input: where it is not 1, channels are neighbours there
  bool in_place_ = false;
};

// A term is a product of a pair of pixels of the input and one of the gradient.
class PixelPairTerms {
 public:
  using Plan = DirectGradientPlan<bfloat16>;
  // A term takes half the bytes of a float, and each block packs the gradient again.
  static constexpr int64_t kBlockTerms = 2 * kConvDepth;

  explicit PixelPairTerms(const Plan& plan) : plan_(plan) {
    if (plan.sums.terms == 1 && plan.problem.x.channels_are_neighbours())
      stride_ = odd_stride(plan.sums.blocks.size(0));
  }

  int64_t packed_channels() const {
    return stride_ > 1 ? stride_ : plan_.sums.tiles.groups_in_tile * plan_.sums.blocks.size(0);
  }

  void pack_tile(int64_t image, int64_t channel, int64_t channels, const ConvTile& tile,
                 float* packed_input) const {
    const WeightGradientProblem<bfloat16>& p = plan_.problem;
    if (stride_ > 1) {
      bf16_pack::pack_pixel_pairs(p.x, image, channel, channels, p.h, p.w, plan_.shape, tile, stride_,
                                  packed_input);
    } else {
      bf16_pack::pack_singles(p.x, image, channel, channels, p.h, p.w, plan_.shape, tile,
                              reinterpret_cast<bfloat16*>(packed_input));
    }
  }

  // Returns the number of pairs.
  int64_t pack_gradients(const TileImages& images, int64_t group, const ConvTile& tile, float* packed) const {
    const ImageSource<bfloat16>& grad = plan_.problem.grad;
    const ChannelPanels<float>& panels = plan_.sums.panels;
    const int64_t outputs = plan_.problem.weights.outputs;
    // Rows that follow each other without a gap are one long row, if no pair would be of two of them.
    const bool joined = tile.columns * grad.column_stride == grad.row_stride && tile.columns % 2 == 0;
    const int64_t rows = joined ? 1 : tile.rows, columns = joined ? tile.rows * tile.columns : tile.columns;
    const int64_t pairs = ceil_div(columns, 2), total = images.count * rows * pairs;
    for (int64_t i = 0; i < images.count; ++i) {
      const int64_t origin = (images.first + i) * grad.image_stride + group * outputs * grad.channel_stride +
                             tile.row * grad.row_stride + tile.column * grad.column_stride;
      for (int64_t row = 0; row < rows; ++row) {
        bf16_pack::for_each_segment(grad, columns, [&](int64_t first, int64_t count) {
          const int64_t from = origin + row * grad.row_stride + first * grad.column_stride;
          for (int64_t k = 0; k < panels.padded(); k += n) {
            const int64_t panel = k / panels.kWide, width = panels.width(panel);
            bf16_pack::pack_pair_row(grad, from + k * grad.channel_stride, count,
                                     std::clamp<int64_t>(outputs - k, 0, n), width,
                                     packed + panels.begin(panel) * total +
                                         ((i * rows + row) * pairs + first / 2) * width + k % panels.kWide);
          }
        });
      }
    }
    return total;
  }

  void add_to_bias(int64_t pairs, const float* packed, float* sums, bool accumulate) const {
    const ChannelPanels<float>& panels = plan_.sums.panels;
    for (int64_t k = 0; k < panels.padded(); k += n) {
      const int64_t panel = k / panels.kWide, width = panels.width(panel);
      bf16_pack::add_pairs(pairs, packed + panels.begin(panel) * pairs + k % panels.kWide, width, sums + k,
                           accumulate);
    }
  }

  void add_products(const GradientProducts<float>& products) const {
    if (stride_ == 1) return add_tap_runs(plan_, products, pair_weight_kernel_of);
    const ChannelPanels<float>& panels = plan_.sums.panels;
    const int64_t ld = panels.padded();
    const EvenSplit strips(products.depth, ceil_div(products.depth, kPixels));
    for (int64_t panel = 0; panel < panels.parts; ++panel) {
      for (int64_t strip = 0; strip < strips.parts; ++strip) {
        const int64_t first = strips.begin(strip);
        const auto kernel = pair_channel_gradient_kernel_of(strips.size(strip), panels.width(panel) / n);
        kernel(products.pixels, products.input + first, stride_,
               products.grad + panels.begin(panel) * products.packed_pixels,
               products.sums + first * ld + panels.begin(panel), ld, products.accumulate);
      }
    }
  }

 private:
  const Plan& plan_;
  int64_t stride_ =
      1;  // of pairs of pixels in the packed input: where it is not 1, channels are neighbours there
};

}  // namespace

#endif

// A pair of channels is of one group; pairs of pixels have micro-kernels for vectors along channels, and
// tiles of one group, only.
template <class Problem>
bool Bf16Dot::can([[maybe_unused]] const Problem& p) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<typename Problem::Value, bfloat16>) {
    if constexpr (kIsCorrelation<Problem>) {
      return cpu_features().avx512_bf16 && (p.weights.groups == 1 || p.weights.inputs % 2 == 0);
    } else {
      const ChannelPanels<float> panels(p.weights.outputs, std::min<int64_t>(p.w.count, 4 * n));
      return cpu_features().avx512_bf16 && panels.vectors_along_channels && !joins_groups(p);
    }
  }
#endif
  return false;
}

// There is nothing to gain where one channel is all there is.
template <class Problem>
bool Bf16Dot::suits(const Problem& p) {
  return !kIsCorrelation<Problem> || p.weights.inputs > 1;
}

template <class Problem>
void Bf16Dot::run([[maybe_unused]] const Problem& p) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Problem, CorrelationProblem<bfloat16>>) {
    DirectCorrelation<bfloat16, ChannelPairTerms>(p).run();
  } else if constexpr (std::is_same_v<Problem, WeightGradientProblem<bfloat16>>) {
    DirectWeightGradient<bfloat16, PixelPairTerms>(p).run(p.weight, p.bias);
  }
#endif
}

PYOPS_CONV2D_ALGORITHM(Bf16Dot)

}  // namespace pyops::cpu
