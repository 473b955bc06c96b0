// Embedding on the CPU: rows gathered forward; backward sorts the positions by row and sums rows in parallel.
#include "math/embedding.h"

#include <atomic>
#include <cstring>
#include <memory>

#include "binding/embedding.h"
#include "common/integers.h"
#include "cpu/runtime/output_cache.h"
#include "cpu/runtime/parallel.h"
#include "cpu/simd/loops.h"
#include "cpu/simd/stream.h"

namespace pyops::cpu {
namespace {

// ---- indices -------------------------------------------------------------------------------------------

struct IndexRange {
  int64_t smallest = INT64_MAX;
  int64_t largest = INT64_MIN;

  void operator+=(const IndexRange& other) {
    smallest = std::min(smallest, other.smallest);
    largest = std::max(largest, other.largest);
  }
};

// Before anything of the caller's is written: an index out of range must leave no trace.
template <class Index>
void check_range(const Index* indices, const EmbeddingShape& s) {
  const IndexRange range = parallel_sum<IndexRange>(s.positions, 1, [&](int64_t begin, int64_t end) {
    Index smallest = indices[begin], largest = indices[begin];
    for (int64_t i = begin; i < end; ++i) {
      smallest = std::min(smallest, indices[i]);
      largest = std::max(largest, indices[i]);
    }
    return IndexRange{smallest, largest};
  });
  if (s.positions == 0) return;
  PYOPS_CHECK_INDEX(range.smallest >= 0, bad_index_message(range.smallest, s.rows));
  PYOPS_CHECK_INDEX(range.largest < s.rows, bad_index_message(range.largest, s.rows));
}

// ---- forward -------------------------------------------------------------------------------------------

// Copies a row, past the caches if `stream`.
template <class Word>
void copy_row(const Word* row, Word* out, int64_t n, bool stream) {
  using Line = Vec<float>;
  constexpr int64_t kWords = sizeof(Line) / sizeof(Word);
  stream = can_stream(out, stream);
  int64_t c = 0;
  for (; c + kWords <= n; c += kWords) {
    const Line line = load<float>(reinterpret_cast<const float*>(row + c));
    put(reinterpret_cast<float*>(out + c), line, Line::kLanes, stream);
  }
  if (c < n) memcpy(out + c, row + c, (n - c) * sizeof(Word));
}

// Rows are copied as bits. The rows of a table that no cache holds may lie anywhere, so those that follow are
// fetched meanwhile. Returns whether all indices are in range; rows of others are left out.
template <class Word, class Index>
bool gather(const Word* weight, const Index* indices, Word* output, const EmbeddingShape& s) {
  constexpr int64_t kLine = 64 / sizeof(Word), kMaxLines = 16, kCached = 1 << 18, kAheadBytes = 4096;
  const int64_t row_bytes = s.dim * static_cast<int64_t>(sizeof(Word));
  const int64_t ahead = std::clamp<int64_t>(kAheadBytes / std::max<int64_t>(row_bytes, 1), 2, 16);
  const bool cached = s.rows * row_bytes <= kCached, stream = s.positions * row_bytes >= kStreamBytes;
  const int64_t fetched = cached ? 0 : std::min(s.dim, kMaxLines * kLine);
  const auto is_row = [&](Index index) { return index >= 0 && index < s.rows; };
  std::atomic<bool> good{true};
  parallel_for(s.positions, s.dim, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (!is_row(indices[i])) {
        good.store(false, std::memory_order_relaxed);
        continue;
      }
      const Word* row = weight + indices[i] * s.row_stride;
      Word* const out = output + i * s.dim;
      if (s.column_stride != 1) {
        for (int64_t c = 0; c < s.dim; ++c) out[c] = row[c * s.column_stride];
        continue;
      }
      if (i + ahead < end && is_row(indices[i + ahead])) {
        const Word* later = weight + indices[i + ahead] * s.row_stride;
        for (int64_t c = 0; c < fetched; c += kLine) __builtin_prefetch(later + c);
      }
      copy_row(row, out, s.dim, stream);
    }
    if (stream) end_of_streams();
  });
  return good;
}

template <class T>
struct WordOf {
  using type =
      std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
};

Tensor embedding_forward(Tensor weight, Tensor indices) {
  const char* op = "embedding_forward";
  const EmbeddingShape s = check_embedding_table(weight, indices, op);
  Tensor output = new_output(weight, embedded_shape(indices, s.dim), weight.scalar_type());
  dispatch_floating(weight.scalar_type(), op, [&](auto tag) {
    using Word = typename WordOf<decltype(tag)>::type;
    dispatch_index(indices, [&](auto index) {
      using Index = decltype(index);
      const Index* const positions = data<Index>(indices);
      const bool good = gather(data<Word>(weight), positions, mutable_data<Word>(output), s);
      if (!good) check_range(positions, s);
    });
  });
  return output;
}

// ---- backward ------------------------------------------------------------------------------------------

// The positions of every row, in their order: those of row r are positions[starts[r]] to
// positions[starts[r + 1] - 1]. Positions of the padding row are left out.
struct RowPositions {
  std::unique_ptr<int64_t[]> starts;
  std::unique_ptr<int64_t[]> positions;
  int64_t largest = 0;  // of the rows' counts

  // A row costs its positions and one more, to be written. cost_before is strictly increasing.
  int64_t cost_before(int64_t row) const { return starts[row] + row; }
};

// A counting sort. It is serial, and touches 8 bytes where the sums touch a row.
template <class Index>
RowPositions sort_positions(const Index* indices, const EmbeddingShape& s, int64_t padding_idx) {
  RowPositions sorted;
  sorted.starts.reset(new int64_t[s.rows + 2]);
  sorted.positions.reset(new int64_t[s.positions]);
  int64_t* const starts = sorted.starts.get();
  std::fill(starts, starts + s.rows + 2, 0);
  // Counted two places up, so that every start is where it belongs once the positions are placed.
  for (int64_t i = 0; i < s.positions; ++i) ++starts[indices[i] + 2];
  if (padding_idx >= 0 && padding_idx < s.rows) starts[padding_idx + 2] = 0;
  for (int64_t r = 2; r < s.rows + 2; ++r) {
    sorted.largest = std::max(sorted.largest, starts[r]);
    starts[r] += starts[r - 1];
  }
  for (int64_t i = 0; i < s.positions; ++i) {
    if (indices[i] != padding_idx) sorted.positions[starts[indices[i] + 1]++] = i;
  }
  return sorted;
}

// kVectors vectors of columns (the last of them `lanes` wide) summed over the positions, in registers.
template <int kVectors, class T>
void sum_columns(const T* grad, int64_t dim, const int64_t* positions, int64_t count, acc_t<T> divisor,
                 T* out, int lanes) {
  using V = Vec<acc_t<T>>;
  V sum[kVectors];
  for (V& v : sum) v = V(acc_t<T>(0));
  for (int64_t i = 0; i < count; ++i) {
    const T* row = grad + positions[i] * dim;
    for (int k = 0; k < kVectors; ++k) sum[k] += load_lanes(row + k * V::kLanes, lanes);
  }
  for (int k = 0; k < kVectors; ++k) {
    store_lanes(out + k * V::kLanes, V(sum[k].v / V(divisor).v), lanes);
  }
}

template <class T>
void sum_row(const T* grad, int64_t dim, int64_t columns, const int64_t* positions, int64_t count,
             bool scale_by_freq, T* out) {
  using Acc = acc_t<T>;
  constexpr int kLanes = Vec<Acc>::kLanes;
  constexpr int kVectors = 8;
  if (count == 0) {
    memset(out, 0, columns * sizeof(T));
    return;
  }
  const Acc divisor = scale_by_freq ? static_cast<Acc>(count) : Acc(1);
  int64_t c = 0;
  for (; c + kVectors * kLanes <= columns; c += kVectors * kLanes) {
    sum_columns<kVectors>(grad + c, dim, positions, count, divisor, out + c, kLanes);
  }
  for_each_vector<Acc>(columns - c, [&](int64_t i, int lanes) {
    sum_columns<1>(grad + c + i, dim, positions, count, divisor, out + c + i, lanes);
  });
}

// Rows are shared out by the cost of their positions. Where one row has a good part of all positions, its
// columns are shared out, too; the sums are the same either way.
template <class T>
void sum_rows(const T* grad, const RowPositions& sorted, const EmbeddingShape& s, bool scale_by_freq,
              T* out) {
  constexpr int64_t kColumns = 64;
  const int64_t cost = sorted.cost_before(s.rows);
  const bool crowded = sorted.largest * 32 > cost;
  const int64_t width = crowded ? kColumns : std::max<int64_t>(s.dim, 1);
  const int64_t strips = ceil_div(s.dim, width);
  parallel_for(cost * strips, std::min(width, s.dim), [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t strip = begin / cost, first = begin % cost, last = std::min(cost, first + end - begin);
      const int64_t column = strip * width;
      int64_t row = 0;
      for (int64_t step = s.rows; step > 0;) {  // the first row that does not cost less before it
        const int64_t half = step / 2;
        const bool right = sorted.cost_before(row + half) < first;
        row = right ? row + half + 1 : row;
        step = right ? step - half - 1 : half;
      }
      for (; row < s.rows && sorted.cost_before(row) < last; ++row) {
        const int64_t start = sorted.starts[row];
        sum_row(grad + column, s.dim, std::min(width, s.dim - column), sorted.positions.get() + start,
                sorted.starts[row + 1] - start, scale_by_freq, out + row * s.dim + column);
      }
      begin += last - first;
    }
  });
}

Tensor embedding_backward(Tensor grad_output, Tensor indices, int64_t num_weights, int64_t padding_idx,
                          bool scale_grad_by_freq) {
  const char* op = "embedding_backward";
  const EmbeddingShape s = check_embedding_backward(grad_output, indices, num_weights, op);
  Tensor grad_weight = new_output(grad_output, {s.rows, s.dim}, grad_output.scalar_type());
  dispatch_floating(grad_output.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    dispatch_index(indices, [&](auto index) {
      const auto* positions = data<decltype(index)>(indices);
      check_range(positions, s);
      if (s.rows * s.dim == 0) return;
      sum_rows(data<T>(grad_output), sort_positions(positions, s, padding_idx), s, scale_grad_by_freq,
               mutable_data<T>(grad_weight));
    });
  });
  return grad_weight;
}

// ---- renormalisation -----------------------------------------------------------------------------------

// Independent partial norms, which the compiler keeps in vectors, joined in a fixed order.
template <class T, class Norm>
acc_t<T> row_norm(const T* row, int64_t n, int64_t stride, const Norm& norm) {
  using Acc = acc_t<T>;
  constexpr int kParts = 16;
  Acc parts[kParts];
  for (Acc& part : parts) part = norm.start();
  int64_t i = 0;
  for (; i + kParts <= n; i += kParts) {
    for (int k = 0; k < kParts; ++k) {
      parts[k] = norm.join(parts[k], norm.term(to_acc(row[(i + k) * stride])));
    }
  }
  for (; i < n; ++i) parts[0] = norm.join(parts[0], norm.term(to_acc(row[i * stride])));
  for (int k = 1; k < kParts; ++k) parts[0] = norm.join(parts[0], parts[k]);
  return norm.finish(parts[0]);
}

template <class T>
void renorm_rows(T* weight, const std::vector<int64_t>& used, const EmbeddingShape& s, double max_norm,
                 double norm_type) {
  using Acc = acc_t<T>;
  math::dispatch_norm<Acc>(norm_type, [&](auto norm) {
    parallel_for(used.size(), 2 * s.dim, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T* const row = weight + used[i] * s.row_stride;
        const double factor = math::renorm_factor(row_norm(row, s.dim, s.column_stride, norm), max_norm);
        if (factor == 1.0) continue;
        for (int64_t c = 0; c < s.dim; ++c) {
          T& x = row[c * s.column_stride];
          x = from_acc<T>(to_acc(x) * static_cast<Acc>(factor));
        }
      }
    });
  });
}

// Each row that an index names, once.
template <class Index>
std::vector<int64_t> used_rows(const Index* indices, const EmbeddingShape& s) {
  std::vector<bool> seen(s.rows, false);
  std::vector<int64_t> used;
  for (int64_t i = 0; i < s.positions; ++i) {
    if (seen[indices[i]]) continue;
    seen[indices[i]] = true;
    used.push_back(indices[i]);
  }
  return used;
}

void embedding_renorm_(Tensor weight, Tensor indices, double max_norm, double norm_type) {
  const char* op = "embedding_renorm_";
  const EmbeddingShape s = check_embedding_renorm(weight, indices, op);
  dispatch_floating(weight.scalar_type(), op, [&](auto tag) {
    using T = decltype(tag);
    dispatch_index(indices, [&](auto index) {
      const auto* positions = data<decltype(index)>(indices);
      check_range(positions, s);
      if (s.dim == 0) return;
      renorm_rows(mutable_data<T>(weight), used_rows(positions, s), s, max_norm, norm_type);
    });
  });
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("embedding_forward", TORCH_BOX(&pyops::cpu::embedding_forward));
  m.impl("embedding_backward", TORCH_BOX(&pyops::cpu::embedding_backward));
  m.impl("embedding_renorm_", TORCH_BOX(&pyops::cpu::embedding_renorm_));
}
