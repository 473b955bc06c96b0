// The convolution's forward pass and data gradient by Winograd's algorithm (winograd.h), where a
// kernel of 3 x 3 taps or more moves in steps of 1. As in correlate.h, every output is formed by one
// thread in an order that depends on the problem alone.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/conv2d/winograd.h"

namespace pyops::cpu {

template <class T>
class WinogradCorrelation {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  WinogradCorrelation(const ImageSource<T>& x, const ConvWeights<T>& weights, const math::CorrelationAxis& h,
                      const math::CorrelationAxis& w, TileSink<T>& sink, int64_t images)
      : x_(x),
        weights_(weights),
        h_(h),
        w_(w),
        sink_(sink),
        images_(images),
        pieces_(h, w),
        panels_(weights.outputs, n),
        tiles_(sink.cut(h.count, w.count, 4 * kWantedSquares, 2)),
        shape_(h, w, round_up(tiles_.rows.largest(), 2), round_up(tiles_.columns.largest(), 2)),
        batches_(batched(images, tiles_, kWantedSquares / squares_of(h.count, w.count))),
        layout_(SquareLayout<Acc>::of(batches_.size(0), tiles_.rows.largest(), tiles_.columns.largest())),
        blocks_(weights.inputs,
                std::min(weights.inputs, ceil_div(weights.inputs * pieces_.count() * layout_.squares,
                                                  kSquareTerms * std::max(kSquares, layout_.squares)))) {
    for (int64_t position = 0; position < 16; ++position) list_terms(position);
  }

  // Whether all outputs are what direct sums would give; if not, they are to be formed again.
  bool run() {
    transform_weights();
    const int64_t tiles = tiles_.rows.parts() * tiles_.columns.parts();
    const double work = double(images_) * double(h_.count * w_.count) *
                        double(weights_.outputs * weights_.inputs * pieces_.count()) * 4;
    std::atomic<bool> finite{true};
    parallel_claim(weights_.groups * batches_.parts * tiles, work, [&](int64_t i) {
      const int64_t group = i / (batches_.parts * tiles), batch = i / tiles % batches_.parts;
      if (!form_tile(group, batch, i % tiles)) finite.store(false, std::memory_order_relaxed);
    });
    return finite.load();
  }

 private:
  static constexpr int64_t kWantedSquares = kSquares / kPixels * kPixels;

  // The pieces of the kernel that have products at a position; with a channel each makes a term of its sums.
  struct Terms {
    std::vector<int64_t> pieces;
    std::vector<int64_t> offsets;  // of a block's terms in the transformed input
  };

  void list_terms(int64_t position) {
    Terms& terms = terms_[position];
    for (int64_t piece = 0; piece < pieces_.count(); ++piece) {
      if (pieces_.has(piece, position)) terms.pieces.push_back(piece);
    }
    for (int64_t channel = 0; channel < blocks_.size(0); ++channel) {
      for (int64_t piece : terms.pieces)
        terms.offsets.push_back((channel * pieces_.count() + piece) * layout_.squares);
    }
  }

  int64_t terms_at(int64_t position) const { return static_cast<int64_t>(terms_[position].pieces.size()); }

  // In the order of use: [group][block][position][panel][input channel][piece][output channel of the panel].
  int64_t position_size(int64_t channels) const { return channels * pieces_.count() * panels_.padded(); }
  Acc* transformed(int64_t group, int64_t block, int64_t position, int64_t panel) const {
    const int64_t channels = blocks_.size(block);
    return packed_ + 16 * position_size(group * weights_.inputs + blocks_.begin(block)) +
           position * position_size(channels) + panels_.begin(panel) * channels * pieces_.count();
  }

  void transform_weights() {
    packed_ = conv_buffer<0, Acc>(16 * position_size(weights_.groups * weights_.inputs));
    const int64_t in_group = blocks_.parts * panels_.parts;
    const int64_t cost = 40 * pieces_.count() * blocks_.size(0) * panels_.kWide;
    parallel_for(weights_.groups * in_group, cost, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        transform_panel(task / in_group, task % in_group / panels_.parts, task % panels_.parts);
    });
  }

  void transform_panel(int64_t group, int64_t block, int64_t panel) const {
    const int64_t width = panels_.width(panel), first = panels_.begin(panel), taps = weights_.taps();
    const int64_t count = std::min(width, weights_.outputs - first), most = channels_in_block(taps);
    Acc* const read = conv_buffer<1, Acc>(most * taps * width);
    alignas(kVectorBytes) Acc piece_taps[9 * ChannelPanels<Acc>::kWide];
    Acc* next[16];
    for (int p = 0; p < 16; ++p) next[p] = transformed(group, block, p, panel);
    for (int64_t c = 0; c < blocks_.size(block); ++c) {
      if (c % most == 0) {
        const int64_t channels = std::min(most, blocks_.size(block) - c);
        read_taps(weights_, {group, blocks_.begin(block) + c, channels, first, count}, width, read);
      }
      for (int64_t piece = 0; piece < pieces_.count(); ++piece) {
        Acc* to[16];
        for (int p = 0; p < 16; ++p) {
          const bool needed = pieces_.has(piece, p);
          to[p] = needed ? next[p] : nullptr;
          next[p] += needed ? width : 0;
        }
        pick_taps(piece, read + c % most * taps * width, width, piece_taps);
        transform_weight(piece_taps, width, to);
      }
    }
  }

  // A piece's taps of all of a kernel's, in the order in which the correlation visits the source.
  void pick_taps(int64_t piece, const Acc* all, int64_t width, Acc* taps) const {
    if (pieces_.count() > 1) std::fill_n(taps, 9 * width, Acc(0));
    for (const math::ConvTap& r : h_.taps) {
      for (const math::ConvTap& s : w_.taps) {
        const int64_t row = r.shift - h_.min_shift, column = s.shift - w_.min_shift;
        if (pieces_.piece(row, column) != piece) continue;
        const Acc* const from = all + (r.kernel * weights_.columns + s.kernel) * width;
        std::copy_n(from, width, taps + WinogradPieces::tap(row, column) * width);
      }
    }
  }

  bool form_tile(int64_t group, int64_t batch, int64_t index) const {
    const int64_t across = tiles_.columns.parts(), row_tile = index / across, column_tile = index % across;
    const ConvTile tile{tiles_.rows.begin(row_tile),
                        tiles_.rows.size(row_tile),
                        tiles_.columns.begin(column_tile),
                        tiles_.columns.size(column_tile),
                        row_tile,
                        column_tile};
    const ConvTile squares = covered(tile);
    const int64_t padded = panels_.padded(), line = squares.columns, in_image = squares.rows * line / 4;
    const Acc* const products = multiply(group, batch, squares);
    Acc* const sums = conv_buffer<2, Acc>(squares.rows * line * padded + n * n);
    Vec<Acc> not_finite = Acc(0);
    for (int64_t i = 0; i < batches_.size(batch); ++i) {
      transform_output(products + i * in_image * padded, layout_.squares * padded, padded, squares.rows / 2,
                       squares.columns / 2, line, sums, not_finite);
      sink_.take(batches_.begin(batch) + i, group * weights_.outputs, weights_.outputs, h_, w_, tile,
                 TileSums<Acc>{sums, line * padded, padded, 1});
    }
    return horizontal_sum(not_finite) == 0;
  }

  // [position][square][output channel]
  const Acc* multiply(int64_t group, int64_t batch, const ConvTile& squares) const {
    const int64_t padded = panels_.padded(), in_image = squares.rows * squares.columns / 4;
    const int64_t count = batches_.size(batch) * in_image;
    const int64_t of_channel = pieces_.count() * layout_.squares;
    // A position has all of its channels together. A cache line more, lest what is stored to all positions at
    // once should fall into the same set of the L1 cache.
    const int64_t of_position = blocks_.size(0) * of_channel + n;
    Acc* const input = conv_buffer<3, Acc>(16 * of_position);
    Acc* const products = conv_buffer<4, Acc>(16 * layout_.squares * padded);
    const SquareStrides strides{of_channel, layout_.squares, of_position};
    const EvenSplit runs(count, ceil_div(count, kPixels));
    for (int64_t block = 0; block < blocks_.parts; ++block) {
      for (int64_t i = 0; i < batches_.size(batch); ++i) {
        transform_channels(x_, batches_.begin(batch) + i, group * weights_.inputs + blocks_.begin(block),
                           blocks_.size(block), h_, w_, pieces_, shape_, squares, strides,
                           input + i * in_image);
      }
      for (int64_t position = 0; position < 16; ++position) {
        const Terms& terms = terms_[position];
        const int64_t depth = blocks_.size(block) * static_cast<int64_t>(terms.pieces.size());
        for (int64_t panel = 0; panel < panels_.parts; ++panel) {
          const Acc* const weight = transformed(group, block, position, panel);
          const int64_t width = panels_.width(panel);
          for (int64_t run = 0; run < runs.parts; ++run) {
            const auto kernel = pixel_kernel_of<Acc>(runs.size(run), width / n);
            const int64_t at = position * layout_.squares + runs.begin(run);
            const Acc* const from = input + position * of_position + runs.begin(run);
            for_each_chain(depth, [&](int64_t begin, int64_t count) {
              kernel(count, from, terms.offsets.data() + begin, weight + begin * width,
                     products + at * padded + panels_.begin(panel), padded, block + begin > 0);
            });
          }
        }
      }
    }
    return products;
  }

  ImageSource<T> x_;
  ConvWeights<T> weights_;
  const math::CorrelationAxis& h_;
  const math::CorrelationAxis& w_;
  TileSink<T>& sink_;
  int64_t images_;
  WinogradPieces pieces_;
  ChannelPanels<Acc> panels_;
  typename TileSink<T>::Tiles tiles_;
  SlabShape shape_;
  EvenSplit batches_;  // of images
  SquareLayout<Acc> layout_;
  EvenSplit blocks_;  // of input channels
  Terms terms_[16];   // by position
  Acc* packed_ = nullptr;
};

}  // namespace pyops::cpu
