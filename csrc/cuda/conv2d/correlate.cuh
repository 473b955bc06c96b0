// Output and data gradient of the convolution: for each phase and group a product of the source [pixels,
// terms], gathered while it is loaded, and the packed weights [terms, outputs]. A term is a tap and a
// channel.
#pragma once

#include "cuda/conv2d/epilogue.cuh"
#include "cuda/conv2d/geometry.cuh"
#include "cuda/conv2d/tile.cuh"

namespace pyops::cuda {

// The pixels that a tile's rows stand for: neighbours in the list of all images' pixels.
struct PixelStrip {
  int64_t first;
  int64_t pixels;
  int height;
  int width;

  // False for a row beyond the last pixel.
  __device__ __forceinline__ bool find(int row, ConvPixel& at) const {
    const bool inside = first + row < pixels;
    at = ConvPixel::of(inside ? first + row : 0, height, width);
    return inside;
  }
};

// Loads the source's part of a tile: kExtent pixels, and of each the terms of a step. With kPacks, four
// threads share a pixel and each copies 16 bytes. Otherwise neighbouring threads have neighbouring pixels and
// gather single elements.
template <class T, class Tile, bool kPacks>
class SourceLoader {
 public:
  template <class Pixels>
  __device__ __forceinline__ SourceLoader(const Correlation& c, const ConvPhase& h, const ConvPhase& w,
                                          const ConvSource<T>& source, const Divisor& by_channels, int group,
                                          const Pixels& pixels)
      : c_(c), h_(h), w_(w), source_(source), by_channels_(by_channels) {
    depth_ = h.taps * w.taps * source.channels;
    const T* const data = source.data + group * source.channels * source.strides.channel;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      ConvPixel at;
      const bool inside = pixels.find(row(i), at);
      image_[i] = data + at.image * source.strides.image;
      top_[i] = inside ? at.row * c.source_step_down : std::numeric_limits<int>::min() / 2;
      left_[i] = at.column * c.source_step_across;
    }
  }

  __device__ __forceinline__ int steps() const { return (depth_ + kDepth<T> - 1) / kDepth<T>; }

  __device__ __forceinline__ void fetch(char* tile, int step) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      Term term(*this, step * kDepth<T> + chunk(i) * kChunk<T>);
      if constexpr (kPacks) {
        const T* from = find(term, i);
        copy_async(tile + Tile::offset(row(i), chunk(i)), from ? from : image_[i], from != nullptr);
      } else {
        gather(term, held_[i]);
      }
    }
  }

  __device__ __forceinline__ void finish(char* tile) const {
    if constexpr (!kPacks) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i)
        *reinterpret_cast<uint4*>(tile + Tile::offset(row(0), chunk(i))) =
            uint4{held_[i][0], held_[i][1], held_[i][2], held_[i][3]};
    }
  }

 private:
  static constexpr int kPieces = Tile::kExtent * Tile::kChunksPerRow / kConvThreads;
  static constexpr int kRows = kPacks ? kPieces : 1;

  static __device__ __forceinline__ int row(int i) {
    return kPacks ? threadIdx.x / Tile::kChunksPerRow + i * (kConvThreads / Tile::kChunksPerRow)
                  : threadIdx.x % Tile::kExtent;
  }
  static __device__ __forceinline__ int chunk(int i) {
    return kPacks ? threadIdx.x % Tile::kChunksPerRow
                  : threadIdx.x / Tile::kExtent + i * (kConvThreads / Tile::kExtent);
  }

  struct Term {
    int number, channel, tap_down, tap_across;
    __device__ __forceinline__ Term(const SourceLoader& s, int number) : number(number) {
      const int tap = s.by_channels_.divide(number);
      channel = number - tap * s.source_.channels;
      tap_down = s.w_.by_taps.divide(tap);
      tap_across = tap - tap_down * s.w_.taps;
    }
    __device__ __forceinline__ void advance(const SourceLoader& s) {
      ++number;
      if (++channel < s.source_.channels) return;
      channel = 0;
      if (++tap_across < s.w_.taps) return;
      tap_across = 0;
      ++tap_down;
    }
  };

  // Null where there is only padding.
  __device__ __forceinline__ const T* find(const Term& term, int i) const {
    const int y = top_[i] + h_.first_offset + term.tap_down * h_.offset_step;
    const int x = left_[i] + w_.first_offset + term.tap_across * w_.offset_step;
    const bool inside = term.number < depth_ &&
                        static_cast<unsigned>(y) < static_cast<unsigned>(c_.source_height) &&
                        static_cast<unsigned>(x) < static_cast<unsigned>(c_.source_width);
    const ImageStrides& strides = source_.strides;
    return inside ? image_[i] + y * strides.row + x * strides.column + term.channel * strides.channel
                  : nullptr;
  }

  __device__ __forceinline__ void gather(Term& term, uint32_t (&words)[4]) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) words[k] = 0;
#pragma unroll
    for (int k = 0; k < kChunk<T>; ++k, term.advance(*this)) {
      const T* from = find(term, 0);
      const T value = from ? *from : T{};
      if constexpr (sizeof(T) == 2) {
        words[k / 2] |= static_cast<uint32_t>(value.bits) << (k % 2 * 16);
      } else if constexpr (sizeof(T) == 4) {
        words[k] = bit_cast<uint32_t>(value);
      } else {
        const uint64_t bits = bit_cast<uint64_t>(value);
        words[2 * k] = static_cast<uint32_t>(bits);
        words[2 * k + 1] = static_cast<uint32_t>(bits >> 32);
      }
    }
  }

  const Correlation& c_;
  const ConvPhase& h_;
  const ConvPhase& w_;
  const ConvSource<T>& source_;
  const Divisor& by_channels_;
  int depth_;
  const T* image_[kRows];  // and group
  int top_[kRows];
  int left_[kRows];
  uint32_t held_[kPacks ? 1 : kPieces][4];
};

// Weights [outputs, terms], padded with zeros to whole tiles.
template <class T, class Tile>
class PackedLoader {
 public:
  __device__ __forceinline__ PackedLoader(const T* weights, const int& padded_depth)
      : from_(weights + static_cast<int64_t>(threadIdx.x / Tile::kChunksPerRow) * padded_depth +
              threadIdx.x % Tile::kChunksPerRow * kChunk<T>),
        padded_depth_(padded_depth) {}

  __device__ __forceinline__ void fetch(char* tile, int step) const {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int row = threadIdx.x / Tile::kChunksPerRow + i * kRowsApart;
      copy_async_once(tile + Tile::offset(row, threadIdx.x % Tile::kChunksPerRow),
                      from_ + static_cast<int64_t>(i * kRowsApart) * padded_depth_ + step * kDepth<T>);
    }
  }
  __device__ __forceinline__ void finish(char*) const {}

 private:
  static constexpr int kRowsApart = kConvThreads / Tile::kChunksPerRow;
  static constexpr int kPieces = Tile::kExtent / kRowsApart;
  const T* from_;
  const int& padded_depth_;  // a kernel's argument costs no register
};

// The sums of a tile on their way through shared memory, a band of rows at a time, so that neighbouring
// threads store neighbours.
template <class Acc, class TileA, class TileB, int kBandRows = 64>
struct ConvBand {
  static constexpr int kRows = kBandRows;
  static constexpr int kBands = TileA::kExtent / kRows;
  static constexpr int kPitch = TileB::kExtent + kPackBytes / sizeof(Acc);
  static constexpr int kPlaceBytes = TileA::kExtent * sizeof(int64_t);
  static constexpr int kBytes = kPlaceBytes + kRows * kPitch * sizeof(Acc);

  int64_t* places;  // where a row's pixel is in the target; -1: nowhere
  Acc* sums;

  explicit __device__ __forceinline__ ConvBand(char* shared)
      : places(reinterpret_cast<int64_t*>(shared)), sums(reinterpret_cast<Acc*>(shared + kPlaceBytes)) {}

  template <class Product>
  __device__ __forceinline__ void take(const Product& product, int band) {
    product.for_each([&](int row, int column, Acc sum) {
      if (row / kRows == band) sums[row % kRows * kPitch + column] = sum;
    });
  }

  template <int kSize>
  __device__ __forceinline__ void load(int row, int column, Acc (&values)[kSize]) const {
    constexpr int kPack = Pack<Acc>::kSize;
#pragma unroll
    for (int first = 0; first < kSize; first += kPack) {
      Acc part[kPack];
      widen(load_pack(sums + row * kPitch + column + first), part);
#pragma unroll
      for (int k = 0; k < kPack; ++k) values[first + k] = part[k];
    }
  }
};

template <class T, class TileA, class TileB, class Product>
__device__ __forceinline__ void store_tile(char* shared, const Product& product, const Correlation& c,
                                           const ConvPhase& h, const ConvPhase& w, int64_t first_pixel,
                                           int group, int first_output, const ConvEpilogue<T>& epilogue) {
  using Acc = acc_t<T>;
  using Band = ConvBand<Acc, TileA, TileB>;
  constexpr int kGroups = TileB::kExtent / kChunk<T>;
  Band band(shared);
  for (int row = threadIdx.x; row < TileA::kExtent; row += kConvThreads) {
    const int64_t pixel = first_pixel + row;
    const ConvPixel at = ConvPixel::of(pixel, h.count, w.count);
    const int64_t y = h.target_first + static_cast<int64_t>(at.row) * c.target_step_down;
    const int64_t x = w.target_first + static_cast<int64_t>(at.column) * c.target_step_across;
    band.places[row] =
        pixel < c.pixels(h, w) ? at.image * c.target.image + y * c.target.row + x * c.target.column : -1;
  }
#pragma unroll 1
  for (int b = 0; b < Band::kBands; ++b) {
    __syncthreads();
    band.take(product, b);
    __syncthreads();
    for (int i = threadIdx.x; i < Band::kRows * kGroups; i += kConvThreads) {
      const int row = epilogue.channels_inner ? i / kGroups : i % Band::kRows;
      const int column = (epilogue.channels_inner ? i % kGroups : i / Band::kRows) * kChunk<T>;
      const int64_t place = band.places[b * Band::kRows + row];
      const int count = math::smaller(kChunk<T>, c.outputs - first_output - column);
      if (place < 0 || count <= 0) continue;
      Acc values[kChunk<T>];
      band.load(row, column, values);
      const int channel = group * c.outputs + first_output + column;
      epilogue.store(values, place + channel * c.target.channel, c.target.channel, channel, count);
    }
  }
}

// A block takes a tile. Blocks with the same pixels follow each other.
template <class T, class TileA, class TileB, class Product, bool kPacks>
__global__ void __launch_bounds__(kConvThreads, 2)
    conv2d_correlate_kernel(const __grid_constant__ Correlation c,
                            const __grid_constant__ ConvSource<T> source,
                            const __grid_constant__ Divisor by_channels,
                            const __grid_constant__ PackedWeights<T> weights, int64_t tiles_down,
                            const __grid_constant__ ConvEpilogue<T> epilogue) {
  PYOPS_DYNAMIC_SHARED(shared);
  const int tiles_across = weights.padded_outputs / TileB::kExtent;
  int64_t rest = math::quotient<int64_t>(blockIdx.x, tiles_across);
  const int first_output = static_cast<int>(blockIdx.x - rest * tiles_across) * TileB::kExtent;
  const int64_t unit = math::quotient<int64_t>(rest, tiles_down);
  const int64_t first_pixel = (rest - unit * tiles_down) * TileA::kExtent;
  const int phase = static_cast<int>(unit) / c.groups, group = static_cast<int>(unit) % c.groups;
  const ConvPhase &h = c.down[phase / c.phases_across], &w = c.across[phase % c.phases_across];
  if (first_pixel >= c.pixels(h, w)) return;
  SourceLoader<T, TileA, kPacks> a(c, h, w, source, by_channels, group,
                                   PixelStrip{first_pixel, c.pixels(h, w), h.count, w.count});
  PackedLoader<T, TileB> b(weights.data + (unit * weights.padded_outputs + first_output) *
                                              static_cast<int64_t>(weights.padded_depth),
                           weights.padded_depth);
  Product product;
  sum_products<TileA, TileB>(shared, a.steps(), product, a, b);
  store_tile<T, TileA, TileB>(shared, product, c, h, w, first_pixel, group, first_output, epilogue);
}

}  // namespace pyops::cuda
