// How threads are laid over the rows of a [batch, classes, inner] tensor, for every op that reduces rows.
//
// ContiguousRows (inner == 1): a group of threads per row, a few lanes of a warp or a whole block, each
// moving 16 bytes at a time. CachedRows: the same, and a row visited twice is read once and kept in registers
// in between. ColumnRows (inner > 1, and rows too short to share): neighbouring threads take neighbouring
// rows, which coalesces, and the classes of a row are dealt to `lanes` threads.
// A kernel is a template over the layouts and sees one interface: every thread of a block visits the same
// number of rows (for_each_row), some of them inactive, so reductions are safe inside.
#pragma once

#include <algorithm>

#include "cuda/device/memory.cuh"
#include "cuda/device/reduce.cuh"

namespace pyops::cuda {

struct RowShape {
  int64_t rows;
  int64_t classes;
  int64_t inner;
  int lanes;     // threads that share a row
  bool aligned;  // the tensors' rows reach 16-byte boundaries together
};

struct RowLaunch {
  RowShape shape;
  bool columns;
  unsigned blocks;
  unsigned threads;
  int64_t packs_per_thread;
};

constexpr int kMaxRowThreads = 512;
constexpr int kMaxCachedThreads = 256;
constexpr int kColumnThreads = 256;
constexpr int64_t kShortRow = 16;    // up to here one thread per row beats a shared row
constexpr int64_t kManyRows = 2048;  // enough rows to fill a large GPU with one warp each

inline int next_power_of_two(int64_t n, int low, int high) {
  int power = low;
  while (power < high && power < n) power *= 2;
  return power;
}

// The launch depends on the shape alone, never on the device: results are the same on every GPU.
template <class T>
RowLaunch plan_rows(int64_t batch, int64_t classes, int64_t inner, bool aligned,
                    int max_lanes = kMaxRowThreads) {
  RowLaunch plan{};
  plan.shape = {batch * inner, classes, inner, 1, aligned};
  const int64_t rows = plan.shape.rows;
  plan.columns = inner > 1 || classes <= kShortRow;
  if (plan.columns) {
    if (classes > 2 * kShortRow && rows < 128 * kManyRows) plan.shape.lanes = 8;
    plan.threads = kColumnThreads;
  } else {
    const int64_t packs = (classes + Pack<T>::kSize - 1) / Pack<T>::kSize;
    if (packs > kMaxPacks) plan.shape.aligned = false;
    const int64_t per_lane = rows >= kManyRows ? 4 : 1;
    const int64_t wanted = (packs + per_lane - 1) / per_lane;
    // Lanes of one warp need no barrier, so a warp takes up to twice its share before a block takes over.
    plan.shape.lanes = wanted <= 2 * kWarpSize ? next_power_of_two(wanted, 4, kWarpSize)
                                               : next_power_of_two(wanted, 4 * kWarpSize, max_lanes);
    plan.threads = std::max(plan.shape.lanes, 4 * kWarpSize);
    plan.packs_per_thread = (packs + plan.shape.lanes - 1) / plan.shape.lanes;
  }
  const int64_t rows_per_block = plan.threads / plan.shape.lanes;
  const int64_t blocks = (rows + rows_per_block - 1) / rows_per_block;
  plan.blocks = static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, kMaxBlocks));
  return plan;
}

// One row as a thread sees it.
struct Row {
  int64_t index;   // in row order, batch-major
  int64_t offset;  // of class 0
  bool active;     // false for a thread past the last row, which only joins the reductions
};

// Classes first, first + step, ... of the elements that one call of a visitor gets.
struct ClassRange {
  int64_t first;
  int64_t step;
  __device__ __forceinline__ int64_t operator[](int k) const { return first + k * step; }
};

constexpr int kMaxReduced = 3;  // values that one reduction merges

// Two halves of a shared array for reductions in turns. A thread writes a half again only after the barrier
// of the reduction in between, which every thread reaches after reading the half.
template <class T>
struct ScratchTurns {
  T* halves;
  int turn;
  __device__ __forceinline__ T* next(int half_size) {
    T* half = halves + turn * half_size;
    turn ^= 1;
    return half;
  }
};

template <class T>
class ContiguousRows {
 public:
  using Acc = acc_t<T>;
  // 64 registers per thread, 128 for double.
  static constexpr int kMaxThreads = kMaxRowThreads;
  static constexpr int kMinBlocks = sizeof(Acc) == 8 ? 1 : 2;
  static constexpr int kScratch = 2 * kMaxReduced * kWarpSize;

  __device__ __forceinline__ ContiguousRows(const RowShape& shape, Acc* scratch)
      : shape_(shape), scratch_{scratch, 0}, lane_(threadIdx.x % shape.lanes) {}

  __device__ __forceinline__ int lane() const { return lane_; }

  template <class F>
  __device__ __forceinline__ void for_each_row(const F& f) {
    const int per_block = blockDim.x / shape_.lanes;
    const int64_t step = static_cast<int64_t>(gridDim.x) * per_block;
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * per_block; first < shape_.rows; first += step) {
      const int64_t index = first + threadIdx.x / shape_.lanes;
      f(Row{index, index * shape_.classes, index < shape_.rows});
    }
  }

  // Over the threads of a row, for all rows of the block at once.
  template <class Op, int kValues>
  __device__ __forceinline__ void reduce(Acc (&values)[kValues]) {
    reduce_group<Op>(values, shape_.lanes, scratch_.next(kWarpSize * kMaxReduced));
    static_assert(kValues <= kMaxReduced);
  }

  // Announces that for_each will visit these inputs more than once.
  template <int kInputs>
  __device__ __forceinline__ void load(const Row&, const T* const (&)[kInputs]) {}

  // Calls f(classes, values) with values[i][k] = inputs[i] at class classes[k], for this thread's share of
  // the row. kUnroll packs are loaded before the first is used, to keep enough bytes in flight.
  template <int kUnroll, int kInputs, class F>
  __device__ __forceinline__ void for_each(const Row& row, const T* const (&inputs)[kInputs],
                                           const F& f) const {
    if (!row.active) return;
    const RowSplit split = this->split(row, inputs[0]);
    visit_ends(row, inputs, split, f);
    int p = lane_;
    for (; p < split.packs - (kUnroll - 1) * shape_.lanes; p += kUnroll * shape_.lanes) {
      visit_packs<kUnroll>(row, inputs, split.head, p, f);
    }
    for (; p < split.packs; p += shape_.lanes) visit_packs<1>(row, inputs, split.head, p, f);
  }

  template <int kSize>
  __device__ __forceinline__ void store(T* out, const Row& row, ClassRange at,
                                        const Acc (&values)[kSize]) const {
    if constexpr (kSize == 1) {
      out[row.offset + at.first] = from_acc<T>(values[0]);
    } else {
      store_pack(out + row.offset + at.first, values);
    }
  }

  __device__ __forceinline__ void fill(T* out, const Row& row, Acc value) const {
    const RowSplit split = this->split(row, out);
    Acc values[Pack<T>::kSize];
#pragma unroll
    for (Acc& v : values) v = value;
    T* const start = out + row.offset;
    for (int64_t c = lane_; c < split.head; c += shape_.lanes) start[c] = from_acc<T>(value);
    for (int p = lane_; p < split.packs; p += shape_.lanes) {
      store_pack(start + split.head + int64_t{p} * Pack<T>::kSize, values);
    }
    for (int64_t c = split.tail + lane_; c < shape_.classes; c += shape_.lanes) start[c] = from_acc<T>(value);
  }

 protected:
  __device__ __forceinline__ RowSplit split(const Row& row, const T* input) const {
    return RowSplit::of(input + row.offset, shape_.classes, shape_.aligned);
  }

  // The elements before the first and after the last pack.
  template <int kInputs, class F>
  __device__ __forceinline__ void visit_ends(const Row& row, const T* const (&inputs)[kInputs],
                                             const RowSplit& split, const F& f) const {
    for (int64_t c = lane_; c < split.head; c += shape_.lanes) visit_one(row, inputs, c, f);
    for (int64_t c = split.tail + lane_; c < shape_.classes; c += shape_.lanes) visit_one(row, inputs, c, f);
  }

  template <int kInputs, class F>
  __device__ __forceinline__ void visit_one(const Row& row, const T* const (&inputs)[kInputs], int64_t c,
                                            const F& f) const {
    Acc values[kInputs][1];
#pragma unroll
    for (int i = 0; i < kInputs; ++i) values[i][0] = to_acc(inputs[i][row.offset + c]);
    f(ClassRange{c, 1}, values);
  }

  template <int kUnroll, int kInputs, class F>
  __device__ __forceinline__ void visit_packs(const Row& row, const T* const (&inputs)[kInputs], int head,
                                              int p, const F& f) const {
    constexpr int kSize = Pack<T>::kSize;
    Pack<T> packs[kUnroll][kInputs];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int i = 0; i < kInputs; ++i) {
        packs[u][i] = load_pack(inputs[i] + row.offset + head + int64_t{p + u * shape_.lanes} * kSize);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) visit_pack(packs[u], head + int64_t{p + u * shape_.lanes} * kSize, f);
  }

  template <int kInputs, class F>
  __device__ __forceinline__ void visit_pack(const Pack<T> (&packs)[kInputs], int64_t first,
                                             const F& f) const {
    Acc values[kInputs][Pack<T>::kSize];
#pragma unroll
    for (int i = 0; i < kInputs; ++i) widen(packs[i], values[i]);
    f(ClassRange{first, 1}, values);
  }

  RowShape shape_;
  ScratchTurns<Acc> scratch_;
  int lane_;
};

// Up to kPacks packs of kInputs inputs per thread; RowLaunch::packs_per_thread says whether a row fits. A
// launch for it must be planned with max_lanes = kMaxCachedThreads, because it needs about 100 registers per
// thread.
template <class T, int kInputs, int kPacks>
class CachedRows : public ContiguousRows<T> {
 public:
  static constexpr int kMaxThreads = kMaxCachedThreads;
  static constexpr int kMinBlocks = 1;
  using ContiguousRows<T>::ContiguousRows;

  __device__ __forceinline__ void load(const Row& row, const T* const (&inputs)[kInputs]) {
    if (!row.active) return;
    const RowSplit split = this->split(row, inputs[0]);
#pragma unroll
    for (int u = 0; u < kPacks; ++u) {
      const int p = this->lane_ + u * this->shape_.lanes;
      if (p >= split.packs) break;
#pragma unroll
      for (int i = 0; i < kInputs; ++i) {
        packs_[u][i] = load_pack(inputs[i] + row.offset + split.head + int64_t{p} * Pack<T>::kSize);
      }
    }
  }

  template <int, class F>
  __device__ __forceinline__ void for_each(const Row& row, const T* const (&inputs)[kInputs],
                                           const F& f) const {
    if (!row.active) return;
    const RowSplit split = this->split(row, inputs[0]);
    this->visit_ends(row, inputs, split, f);
#pragma unroll
    for (int u = 0; u < kPacks; ++u) {
      const int p = this->lane_ + u * this->shape_.lanes;
      if (p >= split.packs) break;
      Pack<T> packs[kInputs];
#pragma unroll
      for (int i = 0; i < kInputs; ++i) packs[i] = forget_widened(packs_[u][i]);
      this->visit_pack(packs, split.head + int64_t{p} * Pack<T>::kSize, f);
    }
  }

 private:
  Pack<T> packs_[kPacks][kInputs];
};

template <class T>
class ColumnRows {
 public:
  using Acc = acc_t<T>;
  // 64 registers per thread; more for 16-bit types, which take 8 classes at a time, and for double.
  static constexpr int kMaxThreads = kColumnThreads;
  static constexpr int kMinBlocks = sizeof(T) == 2 ? 3 : sizeof(T) == 4 ? 4 : 2;
  static constexpr int kScratch = 2 * kMaxReduced * kColumnThreads;

  __device__ __forceinline__ ColumnRows(const RowShape& shape, Acc* scratch)
      : shape_(shape), scratch_{scratch, 0}, width_(kColumnThreads / shape.lanes) {}

  __device__ __forceinline__ int lane() const { return threadIdx.x / width_; }

  template <class F>
  __device__ __forceinline__ void for_each_row(const F& f) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * width_;
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * width_; first < shape_.rows; first += step) {
      const int64_t index = first + threadIdx.x % width_;
      const int64_t batch = shape_.inner == 1 ? index : index / shape_.inner;
      f(Row{index, batch * shape_.classes * shape_.inner + (index - batch * shape_.inner),
            index < shape_.rows});
    }
  }

  // Lane by lane, in order. The threads of a row are `width_` apart and need not share a warp.
  template <class Op, int kValues>
  __device__ __forceinline__ void reduce(Acc (&values)[kValues]) {
    static_assert(kValues <= kMaxReduced);
    if (shape_.lanes == 1) return;
    Acc* scratch = scratch_.next(kColumnThreads * kMaxReduced);
#pragma unroll
    for (int k = 0; k < kValues; ++k) scratch[k * kColumnThreads + threadIdx.x] = values[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kValues; ++k) {
      const Acc* column = scratch + k * kColumnThreads + threadIdx.x % width_;
      values[k] = column[0];
      for (int j = 1; j < shape_.lanes; ++j) values[k] = Op::merge(values[k], column[j * width_]);
    }
  }

  template <int kInputs>
  __device__ __forceinline__ void load(const Row&, const T* const (&)[kInputs]) {}

  template <int kUnroll, int kInputs, class F>
  __device__ __forceinline__ void for_each(const Row& row, const T* const (&inputs)[kInputs],
                                           const F& f) const {
    if (!row.active) return;
    constexpr int kChunk = Pack<T>::kSize;
    int64_t c = lane();
    for (; c + (kChunk - 1) * shape_.lanes < shape_.classes; c += kChunk * shape_.lanes) {
      visit<kChunk>(row, inputs, c, f);
    }
    for (; c < shape_.classes; c += shape_.lanes) visit<1>(row, inputs, c, f);
  }

  template <int kSize>
  __device__ __forceinline__ void store(T* out, const Row& row, ClassRange at,
                                        const Acc (&values)[kSize]) const {
#pragma unroll
    for (int k = 0; k < kSize; ++k) out[row.offset + at[k] * shape_.inner] = from_acc<T>(values[k]);
  }

  __device__ __forceinline__ void fill(T* out, const Row& row, Acc value) const {
    for (int64_t c = lane(); c < shape_.classes; c += shape_.lanes) {
      out[row.offset + c * shape_.inner] = from_acc<T>(value);
    }
  }

 private:
  template <int kSize, int kInputs, class F>
  __device__ __forceinline__ void visit(const Row& row, const T* const (&inputs)[kInputs], int64_t c,
                                        const F& f) const {
    const ClassRange at{c, shape_.lanes};
    Acc values[kInputs][kSize];
#pragma unroll
    for (int i = 0; i < kInputs; ++i) {
#pragma unroll
      for (int k = 0; k < kSize; ++k) values[i][k] = to_acc(inputs[i][row.offset + at[k] * shape_.inner]);
    }
    f(at, values);
  }

  RowShape shape_;
  ScratchTurns<Acc> scratch_;
  int width_;
};

}  // namespace pyops::cuda
