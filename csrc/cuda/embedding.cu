// Embedding on CUDA.
//
// Backward sorts the positions by row and sums them in chunks of fixed size. A row that lies within one chunk
// is finished there. A row that crosses the chunk's borders leaves at most two partial sums per chunk, and
// these are the positions of the next, smaller pass. So even a row that most positions name is summed by many
// threads, and always in the same order.
#include <climits>

#include "binding/embedding.h"
#include "binding/sort.h"
#include "cuda/device/columns.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/device/tensor.cuh"
#include "math/embedding.h"

namespace pyops::cuda {
namespace {

constexpr int kThreads = kColumnTileThreads;
constexpr int kMinBlocks = 4;     // 64 registers per thread
constexpr int kMinSumBlocks = 2;  // 128
constexpr int kChunk = 32;        // sorted positions that one group of threads sums
constexpr int kBatch = 4;         // of them, loaded together

// ---- forward -------------------------------------------------------------------------------------------

template <class T, class Index, int kWidth>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    gather_kernel(EmbeddingShape s, ColumnTiling tiling, const T* weight, const Index* indices, T* output) {
  using Acc = acc_t<T>;
  for_each_tile<kWidth>(tiling, s.positions, [&](int64_t i, int64_t column) {
    if (column >= s.dim) return;
    const int64_t row = indices[i];
    Acc values[kWidth];
#pragma unroll
    for (Acc& value : values) value = math::quiet_nan<Acc>();
    // An index out of range addresses nothing: its row is NaN.
    if (row >= 0 && row < s.rows) {
      Columns<T, kWidth> columns;
      columns.load(weight + row * s.row_stride + column * s.column_stride);
      columns.for_each([&](int k, Acc value) { values[k] = value; });
    }
    Columns<T, kWidth>::store(output + i * s.dim + column, values);
  });
}

template <class T, class Index>
void gather(const EmbeddingShape& s, const T* weight, const Index* indices, T* output, cudaStream_t stream) {
  constexpr int kSize = Pack<T>::kSize;
  const bool packed = s.column_stride == 1 && s.dim % kSize == 0 && s.row_stride % kSize == 0 &&
                      same_alignment(weight, output);
  const auto run = [&](auto kernel, int width) {
    const ColumnTiling tiling = ColumnTiling::of(s.dim, width);
    launch(kernel, tiling.blocks(s.positions), kThreads, 0, stream, s, tiling, weight, indices, output);
  };
  packed ? run(gather_kernel<T, Index, kSize>, kSize) : run(gather_kernel<T, Index, 1>, 1);
}

Tensor embedding_forward(Tensor weight, Tensor indices) {
  const char* op = "embedding_forward";
  const EmbeddingShape s = check_embedding_table(weight, indices, op);
  const DeviceScope device(weight);
  Tensor output = new_tensor(weight, embedded_shape(indices, s.dim), weight.scalar_type());
  if (s.positions * s.dim == 0) return output;
  dispatch_floating(weight.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    dispatch_index(indices, [&](auto index) {
      gather(s, data<T>(weight), data<decltype(index)>(indices), mutable_data<T>(output), device.stream);
    });
  });
  return output;
}

// ---- sorted positions ----------------------------------------------------------------------------------

// Rows in ascending order. Keys equal to `rows` come last and need no work.
struct Keys {
  const int32_t* narrow;
  const int64_t* wide;
  __device__ __forceinline__ int64_t operator[](int64_t i) const { return narrow ? narrow[i] : wide[i]; }
};

// The row of each position; `rows` for the padding row and for indices out of range, which sorts them last.
template <class Index, class Key>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    make_keys_kernel(const Index* indices, int64_t count, int64_t rows, int64_t padding_idx, Key* keys) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t row = indices[i];
    keys[i] = static_cast<Key>(row >= 0 && row < rows && row != padding_idx ? row : rows);
  }
}

// Rows of fewer are sorted by 32 bits, in half as many passes.
const int64_t kNarrowRows = unless_in_tests(INT_MAX, 10);

struct SortedPositions {
  Tensor values, order;
  Keys keys() const {
    const bool narrow = values.scalar_type() == ScalarType::Int;
    return {narrow ? data<int32_t>(values) : nullptr, narrow ? nullptr : data<int64_t>(values)};
  }
};

SortedPositions sort_positions(const Tensor& indices, int64_t rows, int64_t padding_idx,
                               cudaStream_t stream) {
  const int64_t count = indices.numel();
  const bool narrow = rows < kNarrowRows;
  Tensor keys = new_tensor(indices, {count}, narrow ? ScalarType::Int : ScalarType::Long);
  const unsigned blocks = blocks_for(count, kThreads);
  dispatch_index(indices, [&](auto tag) {
    using Index = decltype(tag);
    const auto run = [&](auto kernel, auto* out) {
      launch(kernel, blocks, kThreads, 0, stream, data<Index>(indices), count, rows, padding_idx, out);
    };
    narrow ? run(make_keys_kernel<Index, int32_t>, mutable_data<int32_t>(keys))
           : run(make_keys_kernel<Index, int64_t>, mutable_data<int64_t>(keys));
  });
  auto [values, order] = stable_sort(keys);
  return {values, order};
}

// ---- backward ------------------------------------------------------------------------------------------

// One pass: `count` summands in order of their rows. Summand i is row order[i] of the source, or row i.
struct Pass {
  Keys keys;
  const int64_t* order;
  int64_t count;
  int64_t rows;
  int64_t dim;

  __device__ __forceinline__ int64_t chunks() const { return (count + kChunk - 1) / kChunk; }
};

// All sorted keys, to divide by how often a row occurs. No keys: do not divide.
struct Frequencies {
  Keys keys;
  int64_t count;

  __device__ __forceinline__ int64_t before(int64_t key) const {  // keys that are smaller
    int64_t low = 0, high = count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (keys[middle] < key) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
  __device__ __forceinline__ int64_t of(int64_t key) const {
    return keys.narrow || keys.wide ? before(key + 1) - before(key) : 1;
  }
};

// Chunk c leaves two partial sums: number 2c is of a row that began in an earlier chunk, number 2c + 1 of one
// that goes on in the next. A row that does both leaves its sum in the first and zeros in the second, so the
// partial sums of a row are neighbours. A partial sum that does not exist has the key `rows`.
template <class Acc>
struct Partials {
  int64_t* keys;
  Acc* sums;
};

template <class T, class Source, int kWidth>
__global__ void __launch_bounds__(kThreads, kMinSumBlocks)
    sum_rows_kernel(Pass pass, ColumnTiling tiling, Frequencies frequencies, const Source* source,
                    Partials<acc_t<T>> partials, T* grad) {
  using Acc = acc_t<T>;
  for_each_tile<kWidth>(tiling, pass.chunks(), [&](int64_t chunk, int64_t column) {
    const bool active = column < pass.dim;
    const int64_t first = chunk * kChunk;
    const int64_t last = first + kChunk < pass.count ? first + kChunk : pass.count;
    int64_t key = pass.keys[first], head_key = pass.rows, tail_key = pass.rows;
    bool began_before = first > 0 && pass.keys[first - 1] == key;
    Acc sum[kWidth] = {};
    const auto finish = [&](bool goes_on) {
      if (key >= pass.rows) return;
      if (!began_before && !goes_on) {
        if (!active) return;
        const Acc divisor = static_cast<Acc>(frequencies.of(key));
#pragma unroll
        for (int k = 0; k < kWidth; ++k) sum[k] /= divisor;
        Columns<T, kWidth>::store(grad + key * pass.dim + column, sum);
        return;
      }
      Acc* const head = partials.sums + 2 * chunk * pass.dim + column;
      if (began_before) {
        head_key = key;
        if (active) Columns<Acc, kWidth>::store(head, sum);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) sum[k] = Acc(0);
      }
      if (!goes_on) return;
      tail_key = key;
      if (active) Columns<Acc, kWidth>::store(head + pass.dim, sum);
    };
    for (int64_t i = first; i < last; i += kBatch) {
      Columns<Source, kWidth> loaded[kBatch];
      int64_t keys[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        keys[k] = i + k < last ? pass.keys[i + k] : pass.rows;
        if (!active || keys[k] >= pass.rows) continue;
        const int64_t row = pass.order ? pass.order[i + k] : i + k;
        loaded[k].load(source + row * pass.dim + column);
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        if (i + k >= last) continue;
        if (keys[k] != key) {
          finish(false);
          key = keys[k];
          began_before = false;
#pragma unroll
          for (int j = 0; j < kWidth; ++j) sum[j] = Acc(0);
        }
        if (active && key < pass.rows) loaded[k].for_each([&](int j, Acc value) { sum[j] += value; });
      }
    }
    finish(last < pass.count && pass.keys[last] == key);
    if (column != 0 || partials.keys == nullptr) return;
    partials.keys[2 * chunk] = head_key;
    partials.keys[2 * chunk + 1] = tail_key;
  });
}

// `grad` is full of zeros. Each pass has a sixteenth of the summands of the pass before.
template <class T, int kWidth>
void sum_rows(const EmbeddingShape& s, const SortedPositions& sorted, bool scale_by_freq,
              const Tensor& grad_output, T* grad, cudaStream_t stream) {
  using Acc = acc_t<T>;
  const ColumnTiling tiling = ColumnTiling::of(s.dim, kWidth);
  const Frequencies frequencies{scale_by_freq ? sorted.keys() : Keys{nullptr, nullptr}, s.positions};
  Pass pass{sorted.keys(), data<int64_t>(sorted.order), s.positions, s.rows, s.dim};
  std::optional<Tensor> keys, sums;
  while (true) {
    const int64_t chunks = ceil_div(pass.count, kChunk);
    std::optional<Tensor> next_keys, next_sums;
    Partials<Acc> partials{nullptr, nullptr};
    if (chunks > 1) {
      next_keys = new_tensor(grad_output, {2 * chunks}, ScalarType::Long);
      next_sums = new_tensor(grad_output, {2 * chunks, s.dim}, accumulate_type(grad_output.scalar_type()));
      partials = {mutable_data<int64_t>(*next_keys), mutable_data<Acc>(*next_sums)};
    }
    const unsigned blocks = tiling.blocks(chunks);
    if (sums) {
      launch(sum_rows_kernel<T, Acc, kWidth>, blocks, kThreads, 0, stream, pass, tiling, frequencies,
             data<Acc>(*sums), partials, grad);
    } else {
      launch(sum_rows_kernel<T, T, kWidth>, blocks, kThreads, 0, stream, pass, tiling, frequencies,
             data<T>(grad_output), partials, grad);
    }
    if (chunks <= 1) return;
    keys = next_keys, sums = next_sums;
    pass = {{nullptr, partials.keys}, nullptr, 2 * chunks, s.rows, s.dim};
  }
}

Tensor embedding_backward(Tensor grad_output, Tensor indices, int64_t num_weights, int64_t padding_idx,
                          bool scale_grad_by_freq) {
  const char* op = "embedding_backward";
  const EmbeddingShape s = check_embedding_backward(grad_output, indices, num_weights, op);
  const DeviceScope device(grad_output);
  Tensor grad_weight = new_tensor(grad_output, {s.rows, s.dim}, grad_output.scalar_type());
  if (s.rows * s.dim == 0) return grad_weight;
  dispatch_floating(grad_output.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    constexpr int kSize = Pack<T>::kSize;
    T* const grad = mutable_data<T>(grad_weight);
    check(cudaMemsetAsync(grad, 0, s.rows * s.dim * sizeof(T), device.stream), "clearing the gradient");
    if (s.positions == 0) return;
    const SortedPositions sorted = sort_positions(indices, s.rows, padding_idx, device.stream);
    const bool packed = s.dim % kSize == 0 && same_alignment(grad, data<T>(grad_output));
    packed ? sum_rows<T, kSize>(s, sorted, scale_grad_by_freq, grad_output, grad, device.stream)
           : sum_rows<T, 1>(s, sorted, scale_grad_by_freq, grad_output, grad, device.stream);
  });
  return grad_weight;
}

// ---- renormalisation -----------------------------------------------------------------------------------

template <class Norm>
struct JoinNorms {
  template <class T>
  static __device__ __forceinline__ T merge(T a, T b) {
    return Norm{}.join(a, b);
  }
};

// A warp takes a sorted position; the warp with a row's first position works on that row.
template <class T, class Norm>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    renorm_kernel(EmbeddingShape s, Keys keys, Norm norm, double max_norm, T* weight) {
  using Acc = acc_t<T>;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kThreads / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarpSize; i < s.positions;
       i += warps) {
    const int64_t key = keys[i];
    if (key >= s.rows || (i > 0 && keys[i - 1] == key)) continue;
    T* const row = weight + key * s.row_stride;
    Acc part[1] = {norm.start()};
    for (int64_t c = lane; c < s.dim; c += kWarpSize)
      part[0] = norm.join(part[0], norm.term(to_acc(row[c * s.column_stride])));
    reduce_lanes<JoinNorms<Norm>>(part, kWarpSize);
    const double factor = math::renorm_factor(norm.finish(part[0]), max_norm);
    if (factor == 1.0) continue;
    for (int64_t c = lane; c < s.dim; c += kWarpSize) {
      T& x = row[c * s.column_stride];
      x = from_acc<T>(to_acc(x) * static_cast<Acc>(factor));
    }
  }
}

void embedding_renorm_(Tensor weight, Tensor indices, double max_norm, double norm_type) {
  const char* op = "embedding_renorm_";
  const EmbeddingShape s = check_embedding_renorm(weight, indices, op);
  const DeviceScope device(weight);
  if (s.positions * s.dim == 0) return;
  const SortedPositions sorted = sort_positions(indices, s.rows, -1, device.stream);
  constexpr int kWarps = kThreads / kWarpSize;
  const unsigned blocks = blocks_for(s.positions, kWarps);
  dispatch_floating(weight.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    math::dispatch_norm<acc_t<T>>(norm_type, [&](auto norm) {
      launch(renorm_kernel<T, decltype(norm)>, blocks, kThreads, 0, device.stream, s, sorted.keys(), norm,
             max_norm, mutable_data<T>(weight));
    });
  });
}

}  // namespace
}  // namespace pyops::cuda

PYOPS_CUDA_LIBRARY_IMPL(m) {
  m.impl("embedding_forward", TORCH_BOX(&pyops::cuda::embedding_forward));
  m.impl("embedding_backward", TORCH_BOX(&pyops::cuda::embedding_backward));
  m.impl("embedding_renorm_", TORCH_BOX(&pyops::cuda::embedding_renorm_));
}
