// The convolution's gradients of weight and bias: sums over the pixels of all images.
//
// The pixels are cut into chunks by the problem alone. Each chunk's sums are kept apart, in float32 (float64
// for double), and merged in order, so the result has the same bits for any number of threads. A unit of work
// is a chunk, a block of input channels and a group or, where groups are small, several. A chunk has one or
// more tiles, and a tile the pixels of several images where images are small.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/conv2d/gradient.h"
#include "cpu/conv2d/winograd.h"

namespace pyops::cpu {

template <class T>
class WeightGradient {
 public:
  using Acc = acc_t<T>;
  static constexpr int64_t n = Vec<Acc>::kLanes;

  // `weights` describes the gradient that will be written; its values are not read.
  WeightGradient(const ImageSource<T>& x, const ImageSource<T>& grad, const ConvWeights<T>& weights,
                 const math::CorrelationAxis& h, const math::CorrelationAxis& w, int64_t images,
                 bool may_transform = true)
      : x_(x),
        grad_(grad),
        weights_(weights),
        h_(h),
        w_(w),
        images_(images),
        transforms_(may_transform && suits_winograd<Acc>(h, w, weights.inputs, weights.outputs, images)),
        pieces_(h, w),
        terms_(transforms_ ? 16 * pieces_.count() : static_cast<int64_t>(h.taps.size() * w.taps.size())),
        blocks_(weights.inputs,
                std::min(weights.inputs, transforms_
                                             ? ceil_div(weights.inputs * pieces_.count(), kGradientChannels)
                                             : ceil_div(weights.inputs * terms_, kConvDepth))),
        panels_(weights.outputs, std::min<int64_t>(w.count, 4 * n)),
        shape_(h, w, 1, 1) {
    grad_h_ = identity(h.count);
    grad_w_ = identity(w.count);
    places_ = places();
    transforms_ ? choose_squares() : choose_tiles();
    choose_chunks();
  }

  virtual ~WeightGradient() = default;

  // Writes the gradients; either may be null.
  void run(T* weight, T* bias) {
    partial_ = conv_buffer<0, Acc>(chunks_.parts * chunk_size() + n);
    const int64_t channel_blocks = weight ? blocks_.parts : 1;
    const double work =
        double(tiles_) * double(shape_.plane()) * double(weights_.groups) * double(group_size());
    if (tiles_ > 0) {
      parallel_claim(chunks_.parts * group_blocks() * channel_blocks, work, [&](int64_t unit) {
        const int64_t block = unit % channel_blocks, rest = unit / channel_blocks;
        sum_chunk(rest / group_blocks(), rest % group_blocks(), block, weight != nullptr,
                  bias != nullptr && block == 0);
      });
    }
    if (bias) merge_bias(bias);
    if (weight && !merge_weight(weight)) {  // an infinity or a NaN has spread
      WeightGradient(x_, grad_, weights_, h_, w_, images_, false).run(weight, nullptr);
    }
  }

 protected:
  // Neighbouring images that share a tile.
  struct Images {
    int64_t first;
    int64_t count;
  };

  // Output channels of the sums that are merged and written in one go.
  static constexpr int64_t kMergedChannels = 4 * n;

  static math::CorrelationAxis identity(int64_t count) {
    math::CorrelationAxis axis{count, 0, 1, count, 0, 1, {}};
    axis.add({0, 0, 0});
    return axis;
  }

  int64_t group_blocks() const { return ceil_div(weights_.groups, groups_in_tile_); }
  int64_t depth() const { return weights_.inputs * terms_; }
  int64_t group_size() const { return depth() * panels_.padded(); }
  // A chunk's sums: [groups][input channels, taps][padded output channels], then [groups][padded] for the
  // bias.
  int64_t chunk_size() const { return round_up(weights_.groups * (group_size() + panels_.padded()), n); }
  Acc* weight_sums(int64_t chunk, int64_t group) const {
    return partial_ + chunk * chunk_size() + group * group_size();
  }
  Acc* bias_sums(int64_t chunk, int64_t group) const {
    return partial_ + chunk * chunk_size() + weights_.groups * group_size() + group * panels_.padded();
  }

  void choose_tiles() {
    // A panel of the packed gradient stays in L1; dot_kernel, which adds lanes up at the end, wants more.
    const int64_t pixels = panels_.vectors_along_channels ? 24 * n : 64 * n;
    column_tiles_ = EvenSplit(w_.count, ceil_div(w_.count, pixels));
    const int64_t columns = column_tiles_.size(0);
    row_tiles_ = EvenSplit(h_.count, ceil_div(h_.count, std::max<int64_t>(1, pixels / columns)));
    shape_ = SlabShape(h_, w_, row_tiles_.size(0), columns);
    share_tiles(panels_.vectors_along_channels ? pixels / std::max<int64_t>(1, h_.count * w_.count) : 1);
    const bool together = x_.channel_stride == 1 || grad_.channel_stride == 1;
    if (together && blocks_.parts == 1 && std::max(weights_.inputs, weights_.outputs) < n) {
      groups_in_tile_ = std::min(weights_.groups, ceil_div(n, std::min(weights_.inputs, weights_.outputs)));
    }
    offsets_ = shape_.offsets(h_, w_, blocks_.size(0));
    find_runs();
  }

  // As many squares as the kernel's constant allows.
  void choose_squares() {
    const int64_t high = ceil_div(h_.count, 2), wide = ceil_div(w_.count, 2);
    column_tiles_ = EvenSplit(wide, ceil_div(wide, kSquares));
    const int64_t columns = column_tiles_.size(0), rows = 1 + (kSquares - round_up(columns, n)) / columns;
    row_tiles_ = EvenSplit(high, ceil_div(high, rows));
    shape_ = SlabShape(h_, w_, 2 * row_tiles_.size(0), 2 * columns);
    share_tiles(1 + (kSquares - SquareLayout<Acc>::of(1, h_.count, w_.count).squares) / (high * wide));
  }

  // Puts up to `most` images into a tile if it has all the pixels of one, as long as enough tiles remain.
  void share_tiles(int64_t most) {
    constexpr int64_t kUnits = 8;
    const int64_t units = blocks_.parts * weights_.groups;
    most = std::min(most, images_ * units / kUnits);
    if (row_tiles_.parts * column_tiles_.parts > 1 || most < 2) most = 1;
    batches_ = EvenSplit(images_, std::max<int64_t>(1, ceil_div(images_, most)));
  }

  // Enough units for many threads, as long as the chunks' sums stay small and soon merged.
  void choose_chunks() {
    tiles_ = images_ == 0 ? 0 : batches_.parts * row_tiles_.parts * column_tiles_.parts;
    constexpr int64_t kUnits = 32, kMostBytes = int64_t{32} << 20, kFewTiles = 8;
    const int64_t wanted = ceil_div(kUnits, group_blocks() * blocks_.parts);
    const int64_t affordable = kMostBytes / (chunk_size() * static_cast<int64_t>(sizeof(Acc)));
    const int64_t useful = transforms_ ? tiles_ / kFewTiles : tiles_;
    chunks_ = EvenSplit(tiles_, std::max<int64_t>(1, std::min({wanted, affordable, useful})));
  }

  void sum_chunk(int64_t chunk, int64_t group_block, int64_t block, bool weight, bool bias) const {
    const int64_t first_group = group_block * groups_in_tile_, first_channel = blocks_.begin(block);
    const int64_t groups = std::min(groups_in_tile_, weights_.groups - first_group);
    const int64_t channels = blocks_.size(block);
    // The slab of transformed channels is another one (transform_channels).
    const int64_t image_slab = transforms_ ? 0 : slab_channels() * shape_.channel();
    Acc* const slab = conv_buffer<1, Acc>(batches_.size(0) * image_slab + n);
    const int64_t line = panels_.vectors_along_channels ? 1 : row_tiles_.size(0) * column_tiles_.size(0);
    const int64_t unit = transforms_ ? 4 : 1;  // outputs of a square
    const int64_t grad_size = panels_.vectors_along_channels ? batches_.size(0) * unit * row_tiles_.size(0) *
                                                                   column_tiles_.size(0) * panels_.padded()
                                                             : groups_in_tile_ * weights_.outputs * line;
    Acc* const grad = conv_buffer<2, Acc>(grad_size + n);
    for (int64_t i = chunks_.begin(chunk); i < chunks_.begin(chunk) + chunks_.size(chunk); ++i) {
      const int64_t column_tile = i % column_tiles_.parts, rest = i / column_tiles_.parts;
      const int64_t row_tile = rest % row_tiles_.parts, batch = rest / row_tiles_.parts;
      const Images images{batches_.begin(batch), batches_.size(batch)};
      const ConvTile tile = tile_at(row_tile, column_tile);
      const bool accumulate = i > chunks_.begin(chunk);
      if (weight && !transforms_) {
        for (int64_t k = 0; k < images.count; ++k) {
          fill(images.first + k, first_group * weights_.inputs + first_channel, groups * channels, tile,
               slab + k * image_slab);
        }
      }
      if (!panels_.vectors_along_channels) {
        const SlabShape planes(grad_h_, grad_w_, row_tiles_.size(0), column_tiles_.size(0));
        fill_slab(grad_, images.first, first_group * weights_.outputs, groups * weights_.outputs, grad_h_,
                  grad_w_, planes, tile, grad);
      }
      for (int64_t g = 0; g < groups; ++g) {
        Acc* const sums = weight_sums(chunk, first_group + g) + first_channel * terms_ * panels_.padded();
        Acc* const bias_to = bias ? bias_sums(chunk, first_group + g) : nullptr;
        const Acc* const group_slab = slab + g * channels * shape_.channel();
        if (panels_.vectors_along_channels) {
          const int64_t pixels = pack_gradients(images, first_group + g, tile, grad);
          if (bias_to) add_to_bias(pixels, grad, bias_to, accumulate);
          if (!weight) continue;
          if constexpr (std::is_same_v<Acc, float>) {
            if (transforms_) {
              add_squares(images, (first_group + g) * weights_.inputs + first_channel, channels, tile, grad,
                          sums, accumulate);
              continue;
            }
          }
          add_weights(images, tile, group_slab, image_slab, channels * terms_, pixels, grad, sums,
                      accumulate);
        } else {
          const Acc* const planes = grad + g * weights_.outputs * line;
          if (bias_to) {
            add_planes(tile, weights_.outputs, column_tiles_.size(0), line, planes, bias_to, accumulate);
          }
          if (weight) add_dots(tile, group_slab, channels * terms_, line, planes, sums, accumulate);
        }
      }
    }
  }

  ConvTile tile_at(int64_t row_tile, int64_t column_tile) const {
    const int64_t side = transforms_ ? 2 : 1;
    const int64_t row = side * row_tiles_.begin(row_tile), column = side * column_tiles_.begin(column_tile);
    return {row, std::min(side * row_tiles_.size(row_tile), h_.count - row), column,
            std::min(side * column_tiles_.size(column_tile), w_.count - column)};
  }

  // What terms are made of, and how they are multiplied (bf16.h does otherwise).
  virtual void fill(int64_t image, int64_t channel, int64_t channels, const ConvTile& tile, Acc* slab) const {
    fill_slab(x_, image, channel, channels, h_, w_, shape_, tile, slab);
  }
  virtual int64_t slab_channels() const { return groups_in_tile_ * blocks_.size(0); }
  virtual WeightKernel<Acc> weight_kernel(int64_t length, int64_t runs, int64_t vectors) const {
    return weight_kernel_of<Acc>(length, runs, vectors);
  }
  virtual void add_to_bias(int64_t pixels, const Acc* packed, Acc* sums, bool accumulate) const {
    add_packed(panels_, pixels, packed, sums, accumulate);
  }

  // A tile of one group's gradient, image after image; returns its pixels.
  virtual int64_t pack_gradients(const Images& images, int64_t group, const ConvTile& tile,
                                 Acc* packed) const {
    const int64_t pixels = tile.rows * tile.columns, total = images.count * pixels;
    const int64_t origin = group * weights_.outputs * grad_.channel_stride + tile.row * grad_.row_stride +
                           tile.column * grad_.column_stride;
    for (int64_t i = 0; i < images.count; ++i) {
      pack_gradient(grad_, origin + (images.first + i) * grad_.image_stride, weights_.outputs, tile, panels_,
                    i * pixels, total, packed);
    }
    return total;
  }

  virtual void add_weights(const Images& images, const ConvTile& tile, const Acc* slab, int64_t image_slab,
                           int64_t depth, int64_t packed_pixels, const Acc* grad, Acc* sums,
                           bool accumulate) const {
    const int64_t ld = panels_.padded();
    const WeightKernelPixels pixels{images.count, image_slab, tile.rows, shape_.columns, tile.columns};
    for (int64_t panel = 0; panel < panels_.parts; ++panel) {
      const Acc* const right = grad + panels_.begin(panel) * packed_pixels;
      Acc* const to = sums + panels_.begin(panel);
      for (int64_t length = 1; length <= kMostRun; ++length) {
        // Runs are in the order of channels: those of this block come first.
        const std::vector<int64_t>& all = runs_[length];
        const int64_t count = std::lower_bound(all.begin(), all.end(), depth) - all.begin();
        if (count == 0) continue;
        const EvenSplit parts(count, ceil_div(count, kWeights / length));
        for (int64_t part = 0; part < parts.parts; ++part) {
          weight_kernel(length, parts.size(part), panels_.width(panel) / n)(
              pixels, slab, offsets_.data(), all.data() + parts.begin(part), right, to, ld, accumulate);
        }
      }
    }
  }

  // The sums of a tile in Winograd's domain, [input channel][piece][position][output channel].
  void add_squares(const Images& images, int64_t first_channel, int64_t channels, const ConvTile& tile,
                   const Acc* grad, Acc* sums, bool accumulate) const {
    constexpr SquareLayout<Acc> layout{kSquares};
    const ConvTile squares = covered(tile);
    const int64_t ld = panels_.padded(), in_image = squares.rows * squares.columns / 4;
    const int64_t piece_size = blocks_.size(0) * layout.channel(), pixels = tile.rows * tile.columns;
    Acc* const input = conv_buffer<3, Acc>(pieces_.count() * piece_size + n);
    Acc* const output = conv_buffer<4, Acc>(16 * kSquares * ld);
    for (int64_t i = 0; i < images.count; ++i) {
      transform_channels(x_, images.first + i, first_channel, channels, h_, w_, pieces_, shape_, squares,
                         {layout.channel(), piece_size, kSquares}, input + i * in_image);
      for (int64_t panel = 0; panel < panels_.parts; ++panel) {
        const int64_t begin = panels_.begin(panel), width = panels_.width(panel);
        transform_output_gradient(grad + (begin * images.count + i * width) * pixels, tile.rows, tile.columns,
                                  width, kSquares * ld, output + begin * kSquares + i * in_image * width);
      }
    }
    const EvenSplit runs(channels, ceil_div(channels, kPixels));
    for (int64_t at = 0; at < 16 * pieces_.count(); ++at) {
      const int64_t position = at / pieces_.count(), piece = at % pieces_.count();
      if (!pieces_.has(piece, position)) continue;
      for (int64_t run = 0; run < runs.parts; ++run) {
        const int64_t first = runs.begin(run), height = runs.size(run);
        for (int64_t panel = 0; panel < panels_.parts; ++panel) {
          const auto kernel = square_kernel_of<Acc>(height, panels_.width(panel) / n);
          kernel(images.count * in_image,
                 input + piece * piece_size + first * layout.channel() + position * kSquares,
                 output + (position * ld + panels_.begin(panel)) * kSquares,
                 sums + (first * terms_ + piece * 16 + position) * ld + panels_.begin(panel), terms_ * ld,
                 accumulate);
        }
      }
    }
  }

  // The terms in runs that read neighbours, by length.
  void find_runs() {
    const int64_t count = static_cast<int64_t>(offsets_.size());
    for (int64_t begin = 0, end; begin < count; begin = end) {
      for (end = begin + 1; end < count && offsets_[end] == offsets_[end - 1] + 1; ++end) {
        if (end % static_cast<int64_t>(w_.taps.size()) == 0) break;
      }
      const EvenSplit parts(end - begin, ceil_div(end - begin, int64_t{kMostRun}));
      for (int64_t part = 0; part < parts.parts; ++part)
        runs_[parts.size(part)].push_back(begin + parts.begin(part));
    }
  }

  void add_dots(const ConvTile& tile, const Acc* slab, int64_t depth, int64_t line, const Acc* planes,
                Acc* sums, bool accumulate) const {
    const EvenSplit runs(depth, ceil_div(depth, kDotWeights));
    const EvenSplit parts(weights_.outputs, ceil_div(weights_.outputs, kDotChannels));
    for (int64_t part = 0; part < parts.parts; ++part) {
      for (int64_t run = 0; run < runs.parts; ++run) {
        dot_kernel_of<Acc>(runs.size(run), parts.size(part))(
            tile.rows, tile.columns, slab, shape_.columns, offsets_.data() + runs.begin(run),
            planes + parts.begin(part) * line, column_tiles_.size(0), line,
            sums + runs.begin(run) * panels_.padded() + parts.begin(part), panels_.padded(), accumulate);
      }
    }
  }

  // Adds the later chunks' sums to the first's, at the `count` elements from `at`.
  void merge_chunks(const Acc* first, int64_t count, Acc* to) const {
    for_each_vector<Acc>(count, [&](int64_t i, int lanes) {
      Vec<Acc> total = tiles_ > 0 ? load_lanes(first + i, lanes) : Vec<Acc>(Acc(0));
      for (int64_t chunk = 1; chunk < chunks_.parts; ++chunk) {
        total += load_lanes(first + chunk * chunk_size() + i, lanes);
      }
      store_lanes(to + i, total, lanes);
    });
  }

  // Whether all is finite, where it matters.
  bool merge_weight(T* weight) const {
    const int64_t most = channels_in_block(weights_.taps()), blocks = ceil_div(weights_.inputs, most);
    const int64_t panels = ceil_div(weights_.outputs, kMergedChannels), in_group = blocks * panels;
    const int64_t cost = most * terms_ * kMergedChannels * (chunks_.parts + 4);
    std::atomic<bool> finite{true};
    parallel_for(weights_.groups * in_group, cost, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t channel = task % in_group / panels * most, first = task % panels * kMergedChannels;
        const TapRange range{task / in_group, channel, std::min(most, weights_.inputs - channel), first,
                             std::min(kMergedChannels, weights_.outputs - first)};
        if (!merge_block(range, weight)) finite.store(false, std::memory_order_relaxed);
      }
    });
    return finite.load();
  }

  bool merge_block(const TapRange& range, T* weight) const {
    const int64_t ld = panels_.padded(), taps = weights_.taps(), line = round_up(range.outputs, n);
    Acc* const merged = conv_buffer<1, Acc>(range.inputs * terms_ * line);
    // The transform looks for infinities in whole vectors: what lies behind the channels must be theirs, too.
    const int64_t merged_channels = transforms_ ? line : range.outputs;
    const Acc* const from =
        weight_sums(0, range.group) + range.first_input * terms_ * ld + range.first_output;
    for (int64_t row = 0; row < range.inputs * terms_; ++row)
      merge_chunks(from + row * ld, merged_channels, merged + row * line);
    Acc* const ordered = conv_buffer<2, Acc>(range.inputs * taps * line);
    bool finite = true;
    for (int64_t c = 0; c < range.inputs; ++c) {
      Acc* const sums = merged + c * terms_ * line;
      if (transforms_) finite &= transform_pieces(sums, line);
      for (int64_t tap = 0; tap < taps; ++tap)
        std::copy_n(sums + places_[tap] * line, line, ordered + (c * taps + tap) * line);
    }
    write_taps(weights_, range, line, ordered, weight);
    return finite;
  }

  // Where a tap is found among an input channel's sums.
  std::vector<int64_t> places() const {
    std::vector<int64_t> found(weights_.taps());
    int64_t visited = 0;
    for (const math::ConvTap& r : h_.taps) {
      for (const math::ConvTap& s : w_.taps) {
        const int64_t transformed = 16 * pieces_.piece(r.kernel, s.kernel) + pieces_.tap(r.kernel, s.kernel);
        found[r.kernel * weights_.columns + s.kernel] = transforms_ ? transformed : visited;
        ++visited;
      }
    }
    return found;
  }

  // From Winograd's domain, in place. Whether all is finite.
  bool transform_pieces(Acc* sums, int64_t line) const {
    bool finite = true;
    for (int64_t piece = 0; piece < pieces_.count(); ++piece, sums += 16 * line) {
      for (int64_t position = 0; position < 16; ++position) {
        if (!pieces_.has(piece, position)) std::fill_n(sums + position * line, line, Acc(0));  // never summed
      }
      finite &= transform_weight_gradient(line, sums);
    }
    return finite;
  }

  void merge_bias(T* bias) const {
    Acc* const sums = conv_buffer<1, Acc>(panels_.padded() + n);
    for (int64_t group = 0; group < weights_.groups; ++group) {
      merge_chunks(bias_sums(0, group), weights_.outputs, sums);
      for (int64_t k = 0; k < weights_.outputs; ++k)
        bias[group * weights_.outputs + k] = from_acc<T>(sums[k]);
    }
  }

  ImageSource<T> x_;
  ImageSource<T> grad_;
  ConvWeights<T> weights_;
  const math::CorrelationAxis& h_;
  const math::CorrelationAxis& w_;
  math::CorrelationAxis grad_h_;
  math::CorrelationAxis grad_w_;
  int64_t images_;
  bool transforms_;  // whether sums are in Winograd's domain
  WinogradPieces pieces_;
  int64_t terms_;     // of an input channel: taps, or positions of a square of each piece
  EvenSplit blocks_;  // of input channels
  ChannelPanels<Acc> panels_;
  SlabShape shape_;
  EvenSplit row_tiles_{1, 1};
  EvenSplit column_tiles_{1, 1};
  EvenSplit batches_{1, 1};  // of images
  EvenSplit chunks_{1, 1};
  int64_t groups_in_tile_ = 1;
  int64_t tiles_ = 0;
  std::vector<int64_t> offsets_;
  std::vector<int64_t> places_;
  std::vector<int64_t> runs_[kMostRun + 1];
  Acc* partial_ = nullptr;
};

// The gradients of weight and bias; either may be null. `weights` describes the first; its values are not
// read.
template <class T>
void weight_gradient(const ImageSource<T>& x, const ImageSource<T>& grad, const ConvWeights<T>& weights,
                     const math::CorrelationAxis& h, const math::CorrelationAxis& w, int64_t images,
                     T* weight, T* bias);

}  // namespace pyops::cpu
