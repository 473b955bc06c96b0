// The convolution's forward pass and data gradient: a correlation of step 1 (math/conv2d.h), tile by tile.
//
//   correlate       cuts the output into tiles and hands them to threads
//   multiply_tile   walks a tile's groups and blocks of input channels, filling the slab as it goes
//   sweep_*         visits the micro-tiles
//
// What becomes of a tile is the sink's business (output.h). Every output is summed by one thread in an
// order that depends on the problem alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "cpu/conv2d/microkernels.h"
#include "cpu/conv2d/output.h"
#include "cpu/conv2d/pack_input.h"
#include "cpu/conv2d/taps.h"
#include "cpu/runtime/parallel.h"

namespace pyops::cpu {

// Terms of a block of sums: its panel of weights, about 40 KB, stays in the L1 cache while pixels pass by.
inline constexpr int64_t kConvDepth = 320;
// Terms that are added one after the other before what they come to joins the sum: longer chains of alike
// terms would lose accuracy to torch's.
inline constexpr int64_t kChainedTerms = 64;
// Bytes of a tile's sums; they and its slab stay in L2.
inline constexpr int64_t kTileBytes = 192 << 10;
// Pixels that should share a panel of weights while it is in the L1 cache.
inline constexpr int64_t kSharedPixels = 128;

// The calling thread's buffer number `slot`, kept between calls so that its pages are faulted in once.
template <int slot, class Acc>
Acc* conv_buffer(int64_t count) {
  struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t{kVectorBytes}); }
  };
  static thread_local std::unique_ptr<void, Free> buffer;
  static thread_local int64_t capacity = 0;
  const int64_t bytes = count * static_cast<int64_t>(sizeof(Acc));
  if (bytes > capacity) {
    buffer.reset();
    capacity = 0;
    buffer.reset(::operator new(static_cast<size_t>(bytes), std::align_val_t{kVectorBytes}));
    capacity = bytes;
  }
  return static_cast<Acc*>(buffer.get());
}

// Calls f(first, count) for the terms of each chain of a sum; once if there are none, for the zeros.
template <class F>
void for_each_chain(int64_t depth, const F& f) {
  const EvenSplit chains(depth, std::max<int64_t>(1, ceil_div(depth, kChainedTerms)));
  for (int64_t i = 0; i < chains.parts; ++i) f(chains.begin(i), chains.size(i));
}

// Output channels of a group in panels: of whole vectors for pixel_kernel, else of rows for channel_kernel.
template <class Acc>
struct ChannelPanels {
  static constexpr int64_t n = Vec<Acc>::kLanes, kWide = kChannelVectors * n;

  // Vectors along channels waste what is missing from the last one, vectors along pixels what is missing at
  // the end of a row; they cost a little more, their loads being unaligned.
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

// Images that share a tile, `most` at a time, where one tile has all the pixels of one and as long as threads
// have as many tiles: what is summed in which order does not depend on it.
template <class Tiles>
EvenSplit batched(int64_t images, const Tiles& tiles, int64_t most) {
  if (tiles.rows.parts() * tiles.columns.parts() > 1) most = 1;
  const int64_t wanted = round_up(ceil_div(images, std::max<int64_t>(1, most)), ThreadPool().threads());
  return EvenSplit(images, std::max<int64_t>(1, std::min(images, wanted)));
}

template <class T>
class Correlation {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  // One axis for each phase of the output: all of them read the same part of the source.
  Correlation(const ImageSource<T>& x, const ConvWeights<T>& weights,
              const std::vector<math::CorrelationAxis>& h, const std::vector<math::CorrelationAxis>& w,
              TileSink<T>& sink, int64_t images)
      : x_(x),
        weights_(weights),
        h_(h.front()),
        w_(w.front()),
        sink_(sink),
        images_(images),
        blocks_(1, 1),
        panels_(weights.outputs, std::min<int64_t>(w.front().count, 4 * n)),
        shape_(h.front(), w.front(), 1, 1) {
    int64_t taps = 0;
    for (const math::CorrelationAxis& rows : h) {
      for (const math::CorrelationAxis& columns : w) {
        phases_.push_back(
            {&rows, &columns, static_cast<int64_t>(rows.taps.size() * columns.taps.size()), 0, {}});
        taps = std::max(taps, phases_.back().taps);
      }
    }
    const int64_t blocks = std::max<int64_t>(1, ceil_div(weights.inputs * taps, kConvDepth));
    blocks_ = EvenSplit(weights.inputs, std::min(weights.inputs, blocks));
    choose_tiles();
  }

  virtual ~Correlation() = default;

  void run() {
    if (images_ == 0 || h_.count == 0 || w_.count == 0) return;
    pack_weights();
    const int64_t tiles = batches_.parts * group_blocks() * tiles_.rows.parts() * tiles_.columns.parts();
    double taps = 0;
    for (const Phase& phase : phases_) taps += double(phase.taps);
    const double work = double(images_) * double(h_.count * w_.count) * double(weights_.groups) *
                        double(weights_.outputs * weights_.inputs) * taps;
    parallel_claim(tiles, work, [&](int64_t tile) { multiply_tile(tile); });
  }

 protected:
  struct Phase {
    const math::CorrelationAxis* h;
    const math::CorrelationAxis* w;
    int64_t taps;
    int64_t packed;  // where its weights begin within a group's
    std::vector<int64_t> offsets;

    // The part of a tile that this phase, which may be shorter than the first, has.
    ConvTile part(const ConvTile& tile) const {
      ConvTile part = tile;
      part.rows = std::max<int64_t>(0, std::min(tile.rows, h->count - tile.row));
      part.columns = std::max<int64_t>(0, std::min(tile.columns, w->count - tile.column));
      return part;
    }
  };

  int64_t group_blocks() const { return ceil_div(weights_.groups, groups_in_tile_); }
  // Where a panel's weights of a block of input channels lie, panels of a block one after the other.
  Acc* packed(const Phase& phase, int64_t group, int64_t block, int64_t panel) const {
    return packed_ + group * packed_group_ + phase.packed +
           blocks_.begin(block) * phase.taps * panels_.padded() +
           panels_.begin(panel) * blocks_.size(block) * phase.taps;
  }

  void choose_tiles() {
    constexpr int64_t kMostPixels = 1024;
    const int64_t pixels = std::min<int64_t>(
        kMostPixels,
        std::max<int64_t>(4 * kPixels, kTileBytes / static_cast<int64_t>(sizeof(Acc)) /
                                           std::max(panels_.padded() * static_cast<int64_t>(phases_.size()),
                                                    blocks_.base + 1)));
    if (h_.count == 0 || w_.count == 0) return;
    tiles_ = sink_.cut(h_.count, w_.count, pixels, 1);
    shape_ = SlabShape(h_, w_, tiles_.rows.largest(), tiles_.columns.largest());
    batches_ = batched(images_, tiles_, kSharedPixels / (h_.count * w_.count));
    // Few channels in a group: several groups at a time, so that neighbours in memory are read together.
    const bool together = x_.channel_stride == 1 || sink_.joins_channels();
    if (together && blocks_.parts == 1 && std::max(weights_.inputs, weights_.outputs) < n) {
      groups_in_tile_ = std::min(weights_.groups, ceil_div(n, std::min(weights_.inputs, weights_.outputs)));
    }
    for (Phase& phase : phases_) phase.offsets = shape_.offsets(*phase.h, *phase.w, blocks_.size(0));
  }

  void pack_weights() {
    packed_group_ = 0;
    for (Phase& phase : phases_) {
      phase.packed = packed_group_;
      packed_group_ += round_up(panels_.padded() * weights_.inputs * phase.taps, n);
    }
    packed_ = conv_buffer<0, Acc>(weights_.groups * packed_group_ + n);
    const int64_t in_group = blocks_.parts * panels_.parts;
    parallel_for(weights_.groups * in_group, packed_group_ / in_group, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        pack_panel_of_weights(task / in_group, task % in_group / panels_.parts, task % panels_.parts);
      }
    });
  }

  // What terms are made of, and how they are multiplied (bf16.h does otherwise).
  virtual void fill(int64_t image, int64_t channel, int64_t channels, const ConvTile& tile, Acc* slab) const {
    fill_slab(x_, image, channel, channels, h_, w_, shape_, tile, slab);
  }
  virtual int64_t slab_channels() const { return groups_in_tile_ * blocks_.size(0); }
  virtual ChannelKernel<Acc> channel_kernel(int64_t channels, int64_t vectors) const {
    return channel_kernel_of<Acc>(channels, vectors);
  }

  virtual void pack_panel_of_weights(int64_t group, int64_t block, int64_t panel) const {
    const int64_t width = panels_.width(panel), line = round_up(width, n), taps = weights_.taps();
    const int64_t first = panels_.begin(panel), count = std::min(width, weights_.outputs - first);
    const int64_t most = channels_in_block(taps);
    Acc* const read = conv_buffer<1, Acc>(most * taps * line);
    for (int64_t c = 0; c < blocks_.size(block); c += most) {
      const int64_t channels = std::min(most, blocks_.size(block) - c);
      read_taps(weights_, {group, blocks_.begin(block) + c, channels, first, count}, line, read);
      for (const Phase& phase : phases_) {
        Acc* to = packed(phase, group, block, panel) + c * phase.taps * width;
        for (int64_t i = 0; i < channels; ++i) {
          for (const math::ConvTap& r : phase.h->taps) {
            for (const math::ConvTap& s : phase.w->taps) {
              std::copy_n(read + (i * taps + r.kernel * weights_.columns + s.kernel) * line, width, to);
              to += width;
            }
          }
        }
      }
    }
  }

  void multiply_tile(int64_t index) const {
    const int64_t column_tile = index % tiles_.columns.parts();
    index /= tiles_.columns.parts();
    const int64_t row_tile = index % tiles_.rows.parts();
    index /= tiles_.rows.parts();
    const int64_t first_group = index % group_blocks() * groups_in_tile_, batch = index / group_blocks();
    const int64_t first_image = batches_.begin(batch), images = batches_.size(batch);
    const int64_t groups = std::min(groups_in_tile_, weights_.groups - first_group);
    const ConvTile tile{tiles_.rows.begin(row_tile),
                        tiles_.rows.size(row_tile),
                        tiles_.columns.begin(column_tile),
                        tiles_.columns.size(column_tile),
                        row_tile,
                        column_tile};
    const bool along_channels = panels_.vectors_along_channels;
    const int64_t line = along_channels ? tile.columns : round_up(tile.columns, n);  // of a row's sums
    const int64_t channels = along_channels ? panels_.padded() : weights_.outputs;
    // [image][phase][group] of both.
    const int64_t group_sums = channels * tile.rows * line, phase_sums = groups_in_tile_ * group_sums;
    const int64_t image_sums = static_cast<int64_t>(phases_.size()) * phase_sums;
    const int64_t image_slab = slab_channels() * shape_.channel();
    // Vectors of pixels read past the end of a row, and transposition past that of the sums.
    Acc* const slab = conv_buffer<1, Acc>(images * image_slab + n);
    Acc* const sums = conv_buffer<2, Acc>(images * image_sums + n * n);
    for (int64_t block = 0; block < blocks_.parts; ++block) {
      const int64_t block_channels = blocks_.size(block);
      for (int64_t i = 0; i < images; ++i) {
        fill(first_image + i, first_group * weights_.inputs + blocks_.begin(block), groups * block_channels,
             tile, slab + i * image_slab);
      }
      for (size_t p = 0; p < phases_.size(); ++p) {
        const ConvTile part = phases_[p].part(tile);
        for (int64_t g = 0; g < groups; ++g) {
          for (int64_t panel = 0; panel < panels_.parts; ++panel) {
            const Acc* const weight = packed(phases_[p], first_group + g, block, panel);
            for (int64_t i = 0; i < images; ++i) {
              const Acc* const from = slab + i * image_slab + g * block_channels * shape_.channel();
              Acc* const to = sums + i * image_sums + p * phase_sums + g * group_sums;
              along_channels
                  ? sweep_pixels(phases_[p], part, line, from, weight, panel, block, to)
                  : sweep_channels(phases_[p], part, line, tile.rows * line, from, weight, panel, block, to);
            }
          }
        }
      }
    }
    for (int64_t i = 0; i < images; ++i) {
      for (size_t p = 0; p < phases_.size(); ++p) {
        take_sums(first_image + i, first_group, groups, phases_[p], phases_[p].part(tile), line,
                  tile.rows * line, sums + i * image_sums + p * phase_sums);
      }
    }
  }

  // Hands over the sums of some groups of an image, a group's planes `plane` apart.
  void take_sums(int64_t image, int64_t first_group, int64_t groups, const Phase& phase, const ConvTile& part,
                 int64_t line, int64_t plane, Acc* sums) const {
    if (!panels_.vectors_along_channels) {
      sink_.take(image, first_group * weights_.outputs, groups * weights_.outputs, *phase.h, *phase.w, part,
                 TileSums<Acc>{sums, line, 1, plane});
      return;
    }
    const int64_t channels = panels_.padded();
    for (int64_t g = 0; g < groups; ++g) {
      sink_.take(image, (first_group + g) * weights_.outputs, weights_.outputs, *phase.h, *phase.w, part,
                 TileSums<Acc>{sums + g * channels * plane, line * channels, channels, 1});
    }
  }

  virtual void sweep_pixels(const Phase& phase, const ConvTile& tile, int64_t line, const Acc* slab,
                            const Acc* weight, int64_t panel, int64_t block, Acc* sums) const {
    if (tile.columns == 0) return;
    const int64_t depth = blocks_.size(block) * phase.taps, ld = panels_.padded();
    const int64_t width = panels_.width(panel);
    const EvenSplit runs(tile.columns, ceil_div(tile.columns, kPixels));
    for (int64_t row = 0; row < tile.rows; ++row) {
      for (int64_t run = 0; run < runs.parts; ++run) {
        const int64_t column = runs.begin(run), pixels = runs.size(run);
        const auto kernel = pixel_kernel_of<Acc>(pixels, width / n);
        for_each_chain(depth, [&](int64_t begin, int64_t terms) {
          kernel(terms, slab + row * shape_.columns + column, phase.offsets.data() + begin,
                 weight + begin * width, sums + (row * line + column) * ld + panels_.begin(panel), ld,
                 block + begin > 0);
        });
      }
    }
  }

  // Vectors of pixels are numbered through the tile's rows and taken several at a time.
  void sweep_channels(const Phase& phase, const ConvTile& tile, int64_t line, int64_t ld, const Acc* slab,
                      const Acc* weight, int64_t panel, int64_t block, Acc* sums) const {
    const int64_t depth = blocks_.size(block) * phase.taps, rows = panels_.width(panel);
    const int64_t in_row = line / n, vectors = tile.rows * in_row;
    const int64_t* const offsets = phase.offsets.data();
    Acc* const to = sums + panels_.begin(panel) * ld;
    for (int64_t v = 0, taken; v < vectors; v += taken) {
      int64_t starts[kMostPixelVectors];
      taken = vectors - v;
      taken = taken >= kMostPixelVectors && rows <= kFewChannels ? kMostPixelVectors
              : taken >= kPixelVectors                           ? kPixelVectors
                                                                 : 1;
      for (int64_t j = 0; j < taken; ++j)
        starts[j] = (v + j) / in_row * shape_.columns + (v + j) % in_row * n;
      const auto kernel = channel_kernel(rows, taken);
      for_each_chain(depth, [&](int64_t begin, int64_t terms) {
        kernel(terms, slab, starts, offsets + begin, weight + begin * rows, to + v * n, ld,
               block + begin > 0);
      });
    }
  }

  ImageSource<T> x_;
  ConvWeights<T> weights_;
  const math::CorrelationAxis& h_;  // of the first phase, which is the longest
  const math::CorrelationAxis& w_;
  TileSink<T>& sink_;
  int64_t images_;
  EvenSplit blocks_;  // of input channels
  ChannelPanels<Acc> panels_;
  SlabShape shape_;
  std::vector<Phase> phases_;
  typename TileSink<T>::Tiles tiles_;
  EvenSplit batches_{1, 1};  // of images
  int64_t groups_in_tile_ = 1;
  int64_t packed_group_ = 0;
  Acc* packed_ = nullptr;
};

// Correlates all images; one axis for each phase of the output. Compiled in correlate.cpp.
template <class T>
void correlate(const ImageSource<T>& x, const ConvWeights<T>& weights,
               const std::vector<math::CorrelationAxis>& h, const std::vector<math::CorrelationAxis>& w,
               TileSink<T>& sink, int64_t images);

}  // namespace pyops::cpu
