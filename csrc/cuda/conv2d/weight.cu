// The convolution's weight gradient on CUDA: for each group a product of the output's gradient [outputs,
// pixels] and the input [pixels, terms], gathered while it is loaded.
//
// There are few outputs and terms and many pixels, so the pixels are cut into parts; how depends on the
// problem alone. The sums of the parts stay apart, in float32 (float64 for double), until a second kernel
// adds them up in order.
#include "cuda/conv2d/algorithms.cuh"
#include "cuda/conv2d/weight.cuh"
#include "cuda/device/reduce.cuh"

namespace pyops::cuda {
namespace {

constexpr const char* kOp = "conv2d_backward";
constexpr int64_t kFewestPixels = 128;  // of a part
constexpr int kMergeElements = 32;      // of a block of the merging kernel
constexpr int kMergeThreads = 256;

struct WeightSum {
  ConvPhase down;
  ConvPhase across;
  int source_height;
  int source_width;
  int step_down;
  int step_across;
  int width;  // of the output
  int plane;  // pixels of an image of it
  Divisor by_width;
  Divisor by_plane;
  int64_t pixels;
  int part;  // pixels
  int groups;
  int outputs;  // per group
  int terms;    // taps x channels
  Divisor by_channels;
};

// Loads kDepth pixels of the gradient and of each kExtent channels from `first` on.
template <class T, class Tile>
class GradientLoader {
 public:
  __device__ __forceinline__ GradientLoader(const ConvSource<T>& grad, int group, int first, int64_t pixel,
                                            int count)
      : pitch_(grad.strides.column), count_(count) {
    const int channel = first + static_cast<int>(threadIdx.x % Tile::kChunksPerRow) * kChunk<T>;
    inside_ = channel < grad.channels;
    from_ = grad.data + pixel * pitch_ + group * grad.channels + (inside_ ? channel : 0);
  }

  __device__ __forceinline__ void fetch(char* tile, int step) const {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int row = threadIdx.x / Tile::kChunksPerRow + i * (kConvThreads / Tile::kChunksPerRow);
      const int pixel = step * kDepth<T> + row;
      const bool valid = inside_ && pixel < count_;
      copy_async(tile + Tile::offset(row, threadIdx.x % Tile::kChunksPerRow),
                 from_ + (valid ? pixel * pitch_ : 0), valid);
    }
  }
  __device__ __forceinline__ void finish(char*) const {}

 private:
  static constexpr int kPieces = Tile::kExtent * kStageBytes / kPackBytes / kConvThreads;
  const T* from_;
  int64_t pitch_;
  int count_;
  bool inside_;
};

// Loads the input's elements at kDepth pixels and kExtent terms from `first` on. With kPacks a thread always
// has the same chunk of terms, of one tap. Otherwise neighbouring threads have neighbouring pixels.
template <class T, class Tile, bool kPacks>
class TermLoader {
 public:
  __device__ __forceinline__ TermLoader(const WeightSum& s, const ConvSource<T>& source, int group, int first,
                                        int64_t pixel, int count)
      : s_(s), source_(source), first_(first), count_(count) {
    const int64_t image = math::quotient<int64_t>(pixel, s.plane);
    in_image_ = static_cast<int>(pixel - image * s.plane);
    data_ = source.data + image * source.strides.image + group * source.channels * source.strides.channel;
  }

  __device__ __forceinline__ void fetch(char* tile, int step) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int pixel = step * kDepth<T> + row(i), at = in_image_ + pixel;
      const int image = s_.by_plane.divide(at), rest = at - image * s_.plane, line = s_.by_width.divide(rest);
      const int top = line * s_.step_down, left = (rest - line * s_.width) * s_.step_across;
      const T* const base = pixel < count_ ? data_ + image * source_.strides.image : nullptr;
      Term term(*this, first_ + chunk(i) * kChunk<T>);
      if constexpr (kPacks) {
        const T* from = find(term, base, top, left);
        copy_async(tile + Tile::offset(row(i), chunk(i)), from ? from : data_, from != nullptr);
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k) held_[i][k] = 0;
#pragma unroll
        for (int k = 0; k < kChunk<T>; ++k, term.advance(*this)) {
          const T* from = find(term, base, top, left);
          const T value = from ? *from : T{};
          if constexpr (sizeof(T) == 2) {
            held_[i][k / 2] |= static_cast<uint32_t>(value.bits) << (k % 2 * 16);
          } else {
            held_[i][k] = bit_cast<uint32_t>(value);
          }
        }
      }
    }
  }

  __device__ __forceinline__ void finish(char* tile) const {
    if constexpr (!kPacks) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i)
        *reinterpret_cast<uint4*>(tile + Tile::offset(row(i), chunk(i))) =
            uint4{held_[i][0], held_[i][1], held_[i][2], held_[i][3]};
    }
  }

 private:
  static constexpr int kPieces = Tile::kExtent * kStageBytes / kPackBytes / kConvThreads;

  static __device__ __forceinline__ int row(int i) {
    return kPacks ? threadIdx.x / Tile::kChunksPerRow + i * (kConvThreads / Tile::kChunksPerRow)
                  : threadIdx.x % kDepth<T>;
  }
  static __device__ __forceinline__ int chunk(int i) {
    return kPacks ? threadIdx.x % Tile::kChunksPerRow
                  : threadIdx.x / kDepth<T> + i * (kConvThreads / kDepth<T>);
  }

  struct Term {
    int number, channel, tap_down, tap_across;
    __device__ __forceinline__ Term(const TermLoader& l, int number) : number(number) {
      const int tap = l.s_.by_channels.divide(number);
      channel = number - tap * l.source_.channels;
      tap_down = l.s_.across.by_taps.divide(tap);
      tap_across = tap - tap_down * l.s_.across.taps;
    }
    __device__ __forceinline__ void advance(const TermLoader& l) {
      ++number;
      if (++channel < l.source_.channels) return;
      channel = 0;
      if (++tap_across < l.s_.across.taps) return;
      tap_across = 0;
      ++tap_down;
    }
  };

  __device__ __forceinline__ const T* find(const Term& term, const T* base, int top, int left) const {
    const int y = top + s_.down.first_offset + term.tap_down * s_.down.offset_step;
    const int x = left + s_.across.first_offset + term.tap_across * s_.across.offset_step;
    const bool inside = base && term.number < s_.terms &&
                        static_cast<unsigned>(y) < static_cast<unsigned>(s_.source_height) &&
                        static_cast<unsigned>(x) < static_cast<unsigned>(s_.source_width);
    const ImageStrides& strides = source_.strides;
    return inside ? base + y * strides.row + x * strides.column + term.channel * strides.channel : nullptr;
  }

  const WeightSum& s_;
  const ConvSource<T>& source_;
  const T* data_;  // of the part's first image
  int first_;
  int count_;
  int in_image_;
  uint32_t held_[kPacks ? 1 : kPieces][4];
};

template <class T, class TileA, class TileB, class Product, bool kPacks>
__global__ void __launch_bounds__(kConvThreads, 2)
    conv2d_weight_kernel(const __grid_constant__ WeightSum s, const __grid_constant__ ConvSource<T> grad,
                         const __grid_constant__ ConvSource<T> source, typename Product::Acc* partial) {
  PYOPS_DYNAMIC_SHARED(shared);
  const int tiles_across = (s.terms + TileB::kExtent - 1) / TileB::kExtent;
  const int tiles_down = (s.outputs + TileA::kExtent - 1) / TileA::kExtent;
  const int tile_row = blockIdx.x / tiles_across, unit = tile_row / tiles_down;
  const int first_term = (blockIdx.x - tile_row * tiles_across) * TileB::kExtent;
  const int first_output = (tile_row - unit * tiles_down) * TileA::kExtent;
  const int part = unit / s.groups, group = unit - part * s.groups;
  const int64_t first_pixel = static_cast<int64_t>(part) * s.part;
  const int count = static_cast<int>(math::smaller<int64_t>(s.part, s.pixels - first_pixel));
  GradientLoader<T, TileA> a(grad, group, first_output, first_pixel, count);
  TermLoader<T, TileB, kPacks> b(s, source, group, first_term, first_pixel, count);
  Product product;
  sum_products<TileA, TileB>(shared, (count + kDepth<T> - 1) / kDepth<T>, product, a, b);
  typename Product::Acc* const to = partial + static_cast<int64_t>(unit) * s.outputs * s.terms;
  product.for_each([&](int row, int column, typename Product::Acc sum) {
    if (first_output + row < s.outputs && first_term + column < s.terms)
      to[static_cast<int64_t>(first_output + row) * s.terms + first_term + column] = sum;
  });
}

// Adds up the parts [parts, groups, outputs, taps, channels]. Each of an element's eight threads takes every
// eighth part, and their sums are merged in order. Channels of padding are not written.
template <class T>
__global__ void __launch_bounds__(kMergeThreads)
    conv2d_merge_kernel(const acc_t<T>* partial, int parts, int64_t rows, int taps, int taps_across,
                        int channels, int padded_channels, WeightStrides strides, int outputs, T* to) {
  using Acc = acc_t<T>;
  constexpr int kTeams = kMergeThreads / kMergeElements;
  PYOPS_SHARED_ARRAY(Acc, sums, kMergeThreads);
  const int64_t terms = static_cast<int64_t>(taps) * padded_channels, total = rows * terms;
  const int lane = threadIdx.x % kMergeElements, team = threadIdx.x / kMergeElements;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kMergeElements; first < total;
       first += static_cast<int64_t>(gridDim.x) * kMergeElements) {
    const int64_t element = first + lane;
    Acc sum = 0;
#pragma unroll 4
    for (int part = team; part < parts; part += kTeams)
      sum += element < total ? partial[part * total + element] : Acc(0);
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (team == 0 && element < total) {
      for (int other = 1; other < kTeams; ++other) sum += sums[other * kMergeElements + lane];
      const int64_t row = math::quotient<int64_t>(element, terms);
      const int term = static_cast<int>(element - row * terms), tap = term / padded_channels;
      const int channel = term - tap * padded_channels, tap_down = tap / taps_across;
      const int64_t group = math::quotient<int64_t>(row, outputs);
      if (channel < channels)
        to[group * strides.group + (row - group * outputs) * strides.output + channel * strides.input +
           tap_down * strides.row + (tap - tap_down * taps_across) * strides.column] = from_acc<T>(sum);
    }
    __syncthreads();
  }
}

template <class T>
class WeightGradient {
 public:
  explicit WeightGradient(const WeightGradientProblem<T>& p) : p_(p) {
    const Conv2dShape& s = p.shape;
    s_.down = ConvPhase::of(math::forward_axis(s.height));
    s_.across = ConvPhase::of(math::forward_axis(s.width));
    s_.source_height = static_cast<int>(s.height.input);
    s_.source_width = static_cast<int>(s.width.input);
    s_.step_down = static_cast<int>(s.height.stride);
    s_.step_across = static_cast<int>(s.width.stride);
    s_.width = static_cast<int>(s.width.output());
    s_.plane = static_cast<int>(s.height.output() * s.width.output());
    s_.by_width = Divisor::of(s_.width);
    s_.by_plane = Divisor::of(s_.plane);
    s_.pixels = s.images * s_.plane;
    s_.groups = static_cast<int>(s.groups);
    s_.outputs = static_cast<int>(s.out_channels / s.groups);
    s_.terms = s_.down.taps * s_.across.taps * p.source.channels;
    s_.by_channels = Divisor::of(p.source.channels);
  }

  void run() {
    if constexpr (std::is_same_v<T, double>) {
      run_tiles<Fma, 64, 64, true>();
    } else if constexpr (std::is_same_v<T, float>) {
      conv2d_allows_tf32() ? choose_tiles<TensorCores>() : choose_tiles<Fma>();
    } else {
      choose_tiles<TensorCores>();
    }
  }

 private:
  template <template <class, class, class> class Product>
  void choose_tiles() {
    if (!p_.source.packs) return run_tiles<Product, 64, 64, false>();
    s_.outputs > 64 ? run_tiles<Product, 128, 128, true>() : run_tiles<Product, 64, 128, true>();
  }

  template <template <class, class, class> class Product, int kTileRows, int kTileColumns, bool kPacks>
  void run_tiles() {
    using TileA = ExtentInner<T, kTileRows>;
    using TileB = ExtentInner<T, kTileColumns>;
    using Acc = acc_t<T>;
    const int64_t tiles = ceil_div(s_.outputs, kTileRows) * ceil_div(s_.terms, kTileColumns) * s_.groups;
    const int64_t parts = cut(tiles), rows = int64_t{s_.groups} * s_.outputs;
    PYOPS_CHECK(parts * tiles < (int64_t{1} << 31), kOp, ": the weight is too large");
    Tensor partial =
        new_tensor(p_.grad_weight, {parts, rows, s_.terms}, accumulate_type(p_.grad_weight.scalar_type()));
    if (parts > 0) {
      launch_large(conv2d_weight_kernel<T, TileA, TileB, Product<T, TileA, TileB>, kPacks>,
                   static_cast<unsigned>(parts * tiles), kConvThreads, kPipelineBytes<TileA, TileB>,
                   p_.stream, s_, p_.grad, p_.source, mutable_data<Acc>(partial));
    }
    merge_parts(p_, partial);
  }

  // As many parts as occupy a GPU, in whole steps.
  int64_t cut(int64_t tiles) {
    constexpr int64_t kMostPixels = 1 << 18;  // of a part: longer sums lose digits
    const int64_t wanted = std::max(ceil_div(kWholeGpu, tiles), ceil_div(s_.pixels, kMostPixels));
    const int64_t parts = std::min(wanted, ceil_div(s_.pixels, kFewestPixels));
    if (parts == 0) return 0;
    s_.part = static_cast<int>(round_up(ceil_div(s_.pixels, parts), kDepth<T>));
    return ceil_div(s_.pixels, s_.part);
  }

  const WeightGradientProblem<T>& p_;
  WeightSum s_{};
};

}  // namespace

template <class T>
void implicit_gemm_weight_gradient(const WeightGradientProblem<T>& problem) {
  WeightGradient<T>(problem).run();
}

template <class T>
void merge_parts(const WeightGradientProblem<T>& p, const Tensor& parts) {
  const Conv2dShape& s = p.shape;
  const int64_t rows = parts.size(1);
  const auto taps_across = static_cast<int>(s.width.kernel);
  launch(conv2d_merge_kernel<T>, blocks_for(rows * parts.size(2), kMergeElements), kMergeThreads, 0, p.stream,
         data<acc_t<T>>(parts), static_cast<int>(parts.size(0)), rows,
         static_cast<int>(s.height.kernel) * taps_across, taps_across,
         static_cast<int>(s.in_channels / s.groups), p.source.channels,
         weight_strides(s, is_channels_last(p.grad_weight), false),
         static_cast<int>(s.out_channels / s.groups), mutable_data<T>(p.grad_weight));
}

#define PYOPS_INSTANTIATE(T)                                                       \
  template void implicit_gemm_weight_gradient<T>(const WeightGradientProblem<T>&); \
  template void merge_parts<T>(const WeightGradientProblem<T>&, const Tensor&);
PYOPS_INSTANTIATE(float)
PYOPS_INSTANTIATE(double)
PYOPS_INSTANTIATE(bfloat16)
PYOPS_INSTANTIATE(float16)

}  // namespace pyops::cuda
