// Output and data gradient as matrix products of tiles on CUDA: the launches of correlate.cuh.
#include "cuda/conv2d/algorithms.cuh"
#include "cuda/conv2d/correlate.cuh"

namespace pyops::cuda {
namespace {

constexpr const char* kOp = "conv2d";

int64_t most(int count, const ConvPhase* phases) {
  int64_t result = 0;
  for (int p = 0; p < count; ++p) result = std::max<int64_t>(result, phases[p].count);
  return result;
}

template <class T>
class ImplicitGemm {
 public:
  explicit ImplicitGemm(const CorrelationProblem<T>& p)
      : p_(p),
        c_(p.correlation),
        pixels_(c_.images * most(c_.phases_down, c_.down) * most(c_.phases_across, c_.across)),
        units_(int64_t{c_.phases_down} * c_.phases_across * c_.groups) {}

  void run() const {
    if (pixels_ == 0) return;
    const bool tensor_cores = sizeof(T) == 2 || (sizeof(T) == 4 && conv2d_allows_tf32());
    // Wide tiles read the source less often. Without tensor cores that is not what takes the time.
    const bool wide = tensor_cores && c_.outputs > 64 && p_.source.packs &&
                      ceil_div(pixels_, 128) * ceil_div(c_.outputs, 128) * units_ >= kWholeGpu;
    if constexpr (sizeof(T) == 8) {
      launch_tiles<Fma, 64, 64, true>();
    } else {
      if (wide) return launch_tiles<TensorCores, 128, 128, true>();
      if (tensor_cores) return launch_narrow<TensorCores>();
      if constexpr (sizeof(T) == 4) launch_narrow<Fma>();
    }
  }

 private:
  template <template <class, class, class> class Product>
  void launch_narrow() const {
    p_.source.packs ? launch_tiles<Product, 128, 64, true>() : launch_tiles<Product, 128, 64, false>();
  }

  template <template <class, class, class> class Product, int kTileRows, int kTileColumns, bool kPacks>
  void launch_tiles() const {
    using TileA = DepthInner<T, kTileRows>;
    using TileB = DepthInner<T, kTileColumns>;
    constexpr int kBytes =
        std::max(kPipelineBytes<TileA, TileB>, int(ConvBand<acc_t<T>, TileA, TileB>::kBytes));
    const PackedOperand<T> packed =
        conv_weights<T>(c_, p_.source, p_.weight, p_.strides, p_.inputs, kTileColumns, p_.stream);
    const int64_t tiles_down = ceil_div(pixels_, kTileRows);
    const int64_t blocks = tiles_down * units_ * (packed.weights.padded_outputs / kTileColumns);
    PYOPS_CHECK(blocks < (int64_t{1} << 31), kOp, ": the output is too large: ", blocks, " tiles");
    launch_large(conv2d_correlate_kernel<T, TileA, TileB, Product<T, TileA, TileB>, kPacks>,
                 static_cast<unsigned>(blocks), kConvThreads, kBytes, p_.stream, c_, p_.source,
                 Divisor::of(p_.source.channels), packed.weights, tiles_down, p_.epilogue.over(c_.outputs));
  }

  const CorrelationProblem<T>& p_;
  const Correlation& c_;
  int64_t pixels_;  // of the largest phase
  int64_t units_;   // phases x groups, each with its own weights
};

}  // namespace

template <class T>
void implicit_gemm_correlate(const CorrelationProblem<T>& problem) {
  ImplicitGemm<T>(problem).run();
}

#define PYOPS_INSTANTIATE(T) template void implicit_gemm_correlate<T>(const CorrelationProblem<T>&);
PYOPS_INSTANTIATE(float)
PYOPS_INSTANTIATE(double)
PYOPS_INSTANTIATE(bfloat16)
PYOPS_INSTANTIATE(float16)

}  // namespace pyops::cuda
