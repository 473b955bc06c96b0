// The correlation by Winograd's algorithm (transforms.h), for kernels of 3 x 3 taps or more that
// move in steps of 1 or 2. As in direct/direct.h, every output is formed by one thread in an order that
// depends on the problem alone.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

#include "cpu/conv2d/algorithms.h"
#include "cpu/conv2d/epilogue.h"
#include "cpu/conv2d/microkernels.h"
#include "cpu/conv2d/pack_weights.h"
#include "cpu/conv2d/packed_weights.h"
#include "cpu/conv2d/winograd/transforms.h"
#include "cpu/conv2d/winograd/weight_gradient.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace pyops::cpu {
namespace {

template <class T>
class WinogradCorrelation {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  explicit WinogradCorrelation(const CorrelationProblem<T>& problem)
      : problem_(problem),
        weights_(problem.weights),
        h_(problem.h.front()),
        w_(problem.w.front()),
        sub_kernels_(h_, w_),
        panels_(weights_.outputs, n),
        tiles_(problem.epilogue->cut(h_.count, w_.count, 4 * kWantedTiles, 2)),
        shape_(h_, w_, round_up(tiles_.rows.largest(), 2), round_up(tiles_.columns.largest(), 2)),
        batches_(batched(problem.images, tiles_, kWantedTiles / winograd_tiles_of(h_.count, w_.count))),
        layout_(WinogradLayout<Acc>::of(batches_.size(0), tiles_.rows.largest(), tiles_.columns.largest())),
        blocks_(weights_.inputs,
                std::min(weights_.inputs, ceil_div(weights_.inputs * sub_kernels_.count() * layout_.tiles,
                                                   block_terms() * std::max(kWinogradTiles, layout_.tiles)))),
        panel_parts_(panels_, weights_.groups * batches_.parts * tiles_.rows.parts() * tiles_.columns.parts(),
                     ThreadPool().threads()) {
    for (int64_t position = 0; position < positions(); ++position) list_terms(position);
    for (int64_t i = 0; i < sub_kernels_.count(); ++i) places_.push_back(places_of(i));
  }

  // Whether all outputs are what direct sums would give; if not, they are to be formed again.
  bool run() const {
    Scratch scratch;
    const Acc* const weights = packed_weights(problem_, packed_order(),
                                              positions() * position_size(weights_.groups * weights_.inputs),
                                              scratch, [&](Acc* to) { transform_weights(to); });
    if (weights == nullptr) return true;
    const int64_t tiles = tiles_.rows.parts() * tiles_.columns.parts();
    const double work = double(problem_.images) * double(h_.count * w_.count) *
                        double(weights_.outputs * weights_.inputs * sub_kernels_.count()) * 4;
    std::atomic<bool> finite{true};
    const int64_t parts = panel_parts_.parts();
    parallel_claim(weights_.groups * batches_.parts * tiles * parts, work, [&](int64_t task) {
      const int64_t i = task / parts, group = i / (batches_.parts * tiles);
      const PanelRange range = panel_parts_.range(panels_, task % parts);
      if (!form_tile(group, i / tiles % batches_.parts, i % tiles, range, weights))
        finite.store(false, std::memory_order_relaxed);
    });
    return finite.load();
  }

 private:
  static constexpr int64_t kMostPositions = 16;
  static constexpr int64_t kWantedTiles = kWinogradTiles / kPixels * kPixels;
  // Terms of kWinogradTiles sums, of 16 and of 9 positions: their transformed input fits the L2 cache beside
  // the sums.
  int64_t block_terms() const { return positions() == kMostPositions ? 64 : 192; }

  // The sub-kernels that have products at a position; each makes a term of a sum with a channel.
  struct Terms {
    std::vector<int64_t> sub_kernels;
    std::vector<int64_t> offsets;  // of a block's terms in the transformed input
  };

  // A thread's memory for a tile.
  struct TileScratch {
    TileScratch(int64_t input_size, int64_t products_size, int64_t sums_size)
        : input(memory.take<Acc>(input_size)),
          products(memory.take<Acc>(products_size)),
          sums(memory.take<Acc>(sums_size + n * n)) {}  // transposition reads past the end
    Scratch memory;
    Acc* input;     // transformed, [position][input channel][sub-kernel][Winograd tile]
    Acc* products;  // [position][Winograd tile][output channel]
    Acc* sums;      // [row][column][output channel]
  };

  int64_t positions() const { return sub_kernels_.positions(); }

  void list_terms(int64_t position) {
    Terms& terms = terms_[position];
    for (int64_t sub_kernel = 0; sub_kernel < sub_kernels_.count(); ++sub_kernel) {
      if (sub_kernels_.has(sub_kernel, position)) terms.sub_kernels.push_back(sub_kernel);
    }
    for (int64_t channel = 0; channel < blocks_.size(0); ++channel) {
      for (int64_t sub_kernel : terms.sub_kernels)
        terms.offsets.push_back((channel * sub_kernels_.count() + sub_kernel) * layout_.tiles);
    }
  }

  // Transformed weights in the order of use:
  // [group][block][position][panel][input channel][sub-kernel][output channel of the panel].
  int64_t position_size(int64_t channels) const { return channels * sub_kernels_.count() * panels_.padded(); }
  int64_t transformed(int64_t group, int64_t block, int64_t position, int64_t panel) const {
    const int64_t channels = blocks_.size(block);
    return positions() * position_size(group * weights_.inputs + blocks_.begin(block)) +
           position * position_size(channels) + panels_.begin(panel) * channels * sub_kernels_.count();
  }
  // From position to position of the transformed input. With one cache line more, what is stored to all
  // positions at once does not fall into one set of the L1 cache.
  int64_t input_position() const { return blocks_.size(0) * sub_kernels_.count() * layout_.tiles + n; }

  PackedOrder packed_order() const {
    return {'w',           weights_.groups, weights_.inputs,  weights_.outputs,
            blocks_.parts, weights_.rows,   weights_.columns, h_.source_step};
  }

  void transform_weights(Acc* to) const {
    const int64_t in_group = blocks_.parts * panels_.parts;
    const int64_t cost = 40 * sub_kernels_.count() * blocks_.size(0) * panels_.kWide;
    parallel_for(weights_.groups * in_group, cost, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        transform_panel(task / in_group, task % in_group / panels_.parts, task % panels_.parts, to);
    });
  }

  void transform_panel(int64_t group, int64_t block, int64_t panel, Acc* all) const {
    const int64_t width = panels_.width(panel), first = panels_.begin(panel), taps = weights_.taps();
    const int64_t count = std::min(width, weights_.outputs - first), most = channels_in_block(taps);
    Scratch scratch;
    Acc* const read = scratch.take<Acc>(most * taps * width);
    alignas(kVectorBytes) const Acc zeros[ChannelPanels<Acc>::kWide] = {};
    Acc* next[kMostPositions];
    for (int64_t p = 0; p < positions(); ++p) next[p] = all + transformed(group, block, p, panel);
    for (int64_t c = 0; c < blocks_.size(block); ++c) {
      if (c % most == 0) {
        const int64_t channels = std::min(most, blocks_.size(block) - c);
        read_taps(weights_, {group, blocks_.begin(block) + c, channels, first, count}, width, read);
      }
      for (int64_t sub_kernel = 0; sub_kernel < sub_kernels_.count(); ++sub_kernel) {
        Acc* to[kMostPositions];
        for (int64_t p = 0; p < positions(); ++p) {
          const bool needed = sub_kernels_.has(sub_kernel, p);
          to[p] = needed ? next[p] : nullptr;
          next[p] += needed ? width : 0;
        }
        const Acc* from[9];
        for (int i = 0; i < 9; ++i) {
          const int64_t place = places_[sub_kernel][i];
          from[i] = place < 0 ? zeros : read + (c % most * taps + place) * width;
        }
        with_transforms(sub_kernels_, sub_kernel, [&](auto down, auto across) {
          transform_weight<decltype(down), decltype(across)>(from, width, to);
        });
      }
    }
  }

  // Where a sub-kernel's taps lie among all of a kernel's, in the order in which the correlation visits the
  // source; -1 for those that it lacks.
  using TapPlaces = std::array<int64_t, 9>;

  TapPlaces places_of(int64_t sub_kernel) const {
    TapPlaces places;
    places.fill(-1);
    for (const math::ConvTap& r : h_.taps) {
      for (const math::ConvTap& s : w_.taps) {
        if (sub_kernels_.sub_kernel(r, s) == sub_kernel)
          places[sub_kernels_.tap(r, s)] = r.kernel * weights_.columns + s.kernel;
      }
    }
    return places;
  }

  // Whether all is finite.
  bool form_tile(int64_t group, int64_t batch, int64_t index, const PanelRange& range,
                 const Acc* weights) const {
    const int64_t across = tiles_.columns.parts(), row_tile = index / across, column_tile = index % across;
    const ConvTile tile{tiles_.rows.begin(row_tile),
                        tiles_.rows.size(row_tile),
                        tiles_.columns.begin(column_tile),
                        tiles_.columns.size(column_tile),
                        row_tile,
                        column_tile};
    const ConvTile whole = in_winograd_tiles(tile);
    const int64_t padded = range.padded, line = whole.columns, in_image = whole.rows * line / 4;
    const TileScratch scratch(positions() * input_position(), positions() * layout_.tiles * padded,
                              whole.rows * line * padded);
    multiply(group, batch, whole, range, weights, scratch);
    Vec<Acc> not_finite = Acc(0);
    for (int64_t i = 0; i < batches_.size(batch); ++i) {
      const auto transform = sub_kernels_.side() == 4 ? &transform_output<4, Acc> : &transform_output<3, Acc>;
      transform(scratch.products + i * in_image * padded, layout_.tiles * padded, padded, whole.rows / 2,
                whole.columns / 2, line, scratch.sums, not_finite);
      problem_.epilogue->take(batches_.begin(batch) + i, group * weights_.outputs + range.first, range.count,
                              h_, w_, tile, TileSums<Acc>{scratch.sums, line * padded, padded, 1});
    }
    return horizontal_sum(not_finite) == 0;
  }

  void multiply(int64_t group, int64_t batch, const ConvTile& whole, const PanelRange& range,
                const Acc* weights, const TileScratch& scratch) const {
    const int64_t padded = range.padded, in_image = whole.rows * whole.columns / 4;
    const int64_t count = batches_.size(batch) * in_image;
    const WinogradStrides strides{sub_kernels_.count() * layout_.tiles, layout_.tiles, input_position()};
    const EvenSplit strips(count, ceil_div(count, kPixels));
    for (int64_t block = 0; block < blocks_.parts; ++block) {
      for (int64_t i = 0; i < batches_.size(batch); ++i) {
        transform_channels(problem_.x, batches_.begin(batch) + i,
                           group * weights_.inputs + blocks_.begin(block), blocks_.size(block), h_, w_,
                           sub_kernels_, shape_, whole, strides, scratch.input + i * in_image);
      }
      for (int64_t position = 0; position < positions(); ++position) {
        const Terms& terms = terms_[position];
        const int64_t depth = blocks_.size(block) * static_cast<int64_t>(terms.sub_kernels.size());
        for (int64_t panel = range.begin; panel < range.end; ++panel) {
          const Acc* const weight = weights + transformed(group, block, position, panel);
          const int64_t width = panels_.width(panel);
          for (int64_t strip = 0; strip < strips.parts; ++strip) {
            const auto kernel = pixel_kernel_of<Acc>(strips.size(strip), width / n);
            const int64_t at = position * layout_.tiles + strips.begin(strip);
            const Acc* const from = scratch.input + position * input_position() + strips.begin(strip);
            for_each_chain(depth, [&](int64_t begin, int64_t terms_in_chain) {
              kernel(terms_in_chain, from, terms.offsets.data() + begin, weight + begin * width,
                     scratch.products + at * padded + panels_.begin(panel) - range.first, padded,
                     block + begin > 0);
            });
          }
        }
      }
    }
  }

  const CorrelationProblem<T>& problem_;
  const ConvWeights<T>& weights_;
  const math::CorrelationAxis& h_;
  const math::CorrelationAxis& w_;
  SubKernels sub_kernels_;
  ChannelPanels<Acc> panels_;
  typename TileEpilogue<T>::Tiles tiles_;
  PackedInputShape shape_;
  EvenSplit batches_;  // of images
  WinogradLayout<Acc> layout_;
  EvenSplit blocks_;  // of input channels
  PanelParts<Acc> panel_parts_;
  Terms terms_[kMostPositions];    // by position
  std::vector<TapPlaces> places_;  // by sub-kernel
};

// Whether an axis has at least 3 taps without gaps and moves in steps of 1, the last sub-kernel having at
// least 2 of them, or of 2.
bool has_winograd_taps(const math::CorrelationAxis& axis) {
  const int64_t taps = static_cast<int64_t>(axis.taps.size());
  if (taps < 3 || axis.target_step != 1) return false;
  if (axis.source_step == 2) return axis.phases == 2 && axis.max_shift - axis.min_shift == (taps - 1) / 2;
  return axis.source_step == 1 && taps % 3 != 1 && axis.max_shift - axis.min_shift == taps - 1;
}

}  // namespace

template <class Problem>
bool Winograd::can(const Problem& p) {
  using Acc = acc_t<typename Problem::Value>;
  return std::is_same_v<Acc, float> && p.has_one_phase() && has_winograd_taps(p.longest_h()) &&
         has_winograd_taps(p.longest_w()) && p.longest_h().source_step == p.longest_w().source_step &&
         (kIsCorrelation<Problem> || p.longest_h().source_step == 1) && p.images * p.pixels() > 0 &&
         ChannelPanels<Acc>(p.weights.outputs, Vec<Acc>::kLanes).vectors_along_channels;
}

// Both numbers of channels are worth the transforms, and the images have more than a few Winograd tiles, of
// which not too much hangs over their ends. In steps of 2 less is saved, and the sums must fit the L2 cache.
template <class Problem>
bool Winograd::suits(const Problem& p) {
  const int64_t tiles = winograd_tiles_of(p.longest_h().count, p.longest_w().count);
  if (p.images * tiles < kWinogradTiles / 4) return false;
  if (p.longest_h().source_step == 1)
    return 5 * 4 * tiles <= 9 * p.pixels() && std::min(p.weights.inputs, p.weights.outputs) >= 16;
  return 5 * 4 * tiles <= 6 * p.pixels() && std::min(p.weights.inputs, p.weights.outputs) >= 64 &&
         p.weights.outputs <= 256 && p.weights.rows == 3 && p.weights.columns == 3;
}

template <class Problem>
void Winograd::run(const Problem& p) {
  using T = typename Problem::Value;
  if constexpr (std::is_same_v<acc_t<T>, float>) {
    // Where an infinity or a NaN has spread, the sums are formed again.
    if constexpr (kIsCorrelation<Problem>) {
      if (!WinogradCorrelation<T>(p).run()) Direct::run(p);
    } else {
      if (WinogradWeightGradient<T>(p).run(p.weight, p.bias)) return;
      Problem without_bias = p;
      without_bias.bias = nullptr;
      Direct::run(without_bias);
    }
  }
}

PYOPS_CONV2D_ALGORITHM(Winograd)

}  // namespace pyops::cpu
