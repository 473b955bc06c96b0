// The loops of the elementwise losses. Elements are visited in chunks. Those of 16 bits, repeated factors and
// the last, incomplete chunk are first laid out in cache, so that visit_chunk, which is compiled once per
// loss, sees only whole vectors of float or double.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>

#include "binding/loss.h"
#include "common/integers.h"
#include "cpu/runtime/elementwise.h"

namespace pyops::cpu {

// The losses of a chunk are added up in its own type, chunks in double: of float, a lane adds up eight in a
// row, however wide vectors are.
constexpr int64_t kChunk = 8 * kUnroll * Vec<float>::kLanes;

struct TermSum {
  double loss = 0;
  double weight = 0;

  TermSum& operator+=(const TermSum& other) {
    loss += other.loss;
    weight += other.weight;
    return *this;
  }
};

// What is read and written. Null stands for a factor of 1, or for an output that is not wanted.
template <class T>
struct Chunk {
  const T* input;
  const T* target;
  const T* weight = nullptr;
  const T* pos_weight = nullptr;
  const T* upstream = nullptr;
  T* value = nullptr;
  T* gradient = nullptr;
  T* negated_gradient = nullptr;
};

template <class Acc>
using ChunkVisitor = std::function<TermSum(const Chunk<Acc>&, int64_t length)>;

template <class Acc>
double sum_lanes(const Vec<Acc> (&sums)[kUnroll]) {
  static_assert(kUnroll == 4);
  Acc lanes[Vec<Acc>::kLanes];
  store(lanes, (sums[0] + sums[1]) + (sums[2] + sums[3]));
  double total = 0;
  for (Acc lane : lanes) total += lane;
  return total;
}

// Visits whole vectors: the sum of the losses if kValue, the gradients, times `scale`, if kSlope.
template <bool kValue, bool kSlope, class Acc, class Loss>
TermSum visit_chunk(const Loss& loss, const Chunk<Acc>& c, int64_t length, Acc scale) {
  using V = Vec<Acc>;
  constexpr int kLanes = V::kLanes;
  V losses[kUnroll], weights[kUnroll];
  for (int u = 0; u < kUnroll; ++u) losses[u] = weights[u] = V(Acc(0));

  const auto term_of = [&](int64_t i, V& loss_sum, V& weight_sum) __attribute__((always_inline)) {
    const V p = Loss::kHasPosWeight ? load<Acc>(c.pos_weight + i) : V(Acc(1));
    math::LossTerm<V> term = loss(load<Acc>(c.input + i), load<Acc>(c.target + i), p);
    if (c.weight) {
      const V w = load<Acc>(c.weight + i);
      term = {term.value * w, term.slope * w};
      weight_sum += w;
    }
    if (kValue) loss_sum += term.value;
    if (kSlope) term.slope = term.slope * (c.upstream ? load<Acc>(c.upstream + i) : V(scale));
    return term;
  };
  const auto write = [&](int64_t i, const math::LossTerm<V>& term) __attribute__((always_inline)) {
    if (kValue && c.value) store(c.value + i, term.value);
    if (kSlope) store(c.gradient + i, term.slope);
    if (kSlope && c.negated_gradient) store(c.negated_gradient + i, -term.slope);
  };
  int64_t i = 0;
  for (; i + kUnroll * kLanes <= length; i += kUnroll * kLanes) {
    // All loads before the first store, across which the compiler could not move them.
    math::LossTerm<V> terms[kUnroll];
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) terms[u] = term_of(i + u * kLanes, losses[u], weights[u]);
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) write(i + u * kLanes, terms[u]);
  }
  for (; i < length; i += kLanes) write(i, term_of(i, losses[0], weights[0]));
  return {sum_lanes(losses), c.weight ? sum_lanes(weights) : static_cast<double>(length)};
}

// The visitor of a loss. `scale` multiplies the gradients of a reduced loss.
template <bool kValue, bool kSlope, class Acc>
ChunkVisitor<Acc> chunk_visitor(const LossArguments& a, Acc scale = 1) {
  ChunkVisitor<Acc> visitor;
  math::dispatch_loss<Acc>(a.kind, a.parameter, a.pos_weight.has_value(), [&](const auto& loss) {
    visitor = [loss, scale](const Chunk<Acc>& c, int64_t length) {
      return visit_chunk<kValue, kSlope>(loss, c, length, scale);
    };
  });
  return visitor;
}

// ---- laying out -----------------------------------------------------------------------------------------

// How elements lie in a buffer.
enum class Laid {
  kInOrder,
  kInPairs,  // in the order of TwoVectors, of which there is a whole number
};

// Elements [0, length) of p, zeros after them: where they lie, else in `buffer`.
template <class T>
const acc_t<T>* lay_out(const T* p, int64_t length, bool in_place, acc_t<T>* buffer,
                        Laid laid = Laid::kInOrder) {
  constexpr int kLanes = Vec<acc_t<T>>::kLanes;
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    if (in_place || !p) return p;
  }
  if (!p) return nullptr;
  if (laid == Laid::kInPairs) {
    for (int64_t i = 0; i < length; i += 2 * kLanes) {
      const auto v = TwoVectors<T>::load(p + i);
      store(buffer + i, v.first);
      store(buffer + i + kLanes, v.second);
    }
    return buffer;
  }
  for_each_vector<acc_t<T>>(length,
                            [&](int64_t i, int lanes) { store(buffer + i, load_lanes(p + i, lanes)); });
  return buffer;
}

// The entries of elements [begin, begin + length): where they lie if that is one piece, else in `buffer`.
template <class T>
const acc_t<T>* lay_out(const Repeated<T>& factor, int64_t begin, int64_t length, bool in_place,
                        acc_t<T>* buffer) {
  int64_t entry = begin / factor.inner % factor.count;
  if (factor.inner == 1) {
    if (entry + length <= factor.count) return lay_out(factor.data + entry, length, in_place, buffer);
    const int64_t once = std::min(length, factor.count);
    for (int64_t i = 0; i < once; ++i) {
      buffer[i] = to_acc(factor.data[entry]);
      if (++entry == factor.count) entry = 0;
    }
    for (int64_t done = once; done < length; done *= 2) {
      memcpy(buffer + done, buffer, sizeof(*buffer) * std::min(done, length - done));
    }
  } else {
    int64_t left = factor.inner - begin % factor.inner;
    for (int64_t done = 0; done < length;) {
      const int64_t run = std::min(left, length - done);
      std::fill_n(buffer + done, run, to_acc(factor.data[entry]));
      done += run;
      left = factor.inner;
      if (++entry == factor.count) entry = 0;
    }
  }
  std::fill_n(buffer + length, (kChunk - length) % Vec<acc_t<T>>::kLanes, acc_t<T>(0));
  return buffer;
}

template <class T>
void write_back(const acc_t<T>* buffer, int64_t length, T* p, Laid laid) {
  constexpr int kLanes = Vec<acc_t<T>>::kLanes;
  if (!p) return;
  if (laid == Laid::kInPairs) {
    for (int64_t i = 0; i < length; i += 2 * kLanes) {
      TwoVectors<T>{load<acc_t<T>>(buffer + i), load<acc_t<T>>(buffer + i + kLanes)}.store(p + i);
    }
    return;
  }
  for_each_vector<acc_t<T>>(
      length, [&](int64_t i, int lanes) { store_lanes(p + i, load<acc_t<T>>(buffer + i), lanes); });
}

// Tensors as pointers; factors stay apart because they are repeated.
template <class T>
struct LossTensors {
  using Acc = acc_t<T>;
  Chunk<T> all;
  Repeated<T> weight;
  Repeated<T> pos_weight;

  explicit LossTensors(const LossArguments& a)
      : all{data<T>(a.input), data<T>(a.target)},
        weight(a.weight, a.weight_inner),
        pos_weight(a.pos_weight, a.pos_weight_inner) {}

  TermSum visit(int64_t begin, int64_t length, const ChunkVisitor<Acc>& visitor) const {
    constexpr int kLanes = Vec<Acc>::kLanes;
    alignas(64) Acc buffers[8][kChunk];
    const bool whole = length % kLanes == 0;
    const bool direct = whole && std::is_same_v<T, Acc>;
    const bool pairs = length % (2 * kLanes) == 0 && !weight.data && !pos_weight.data;
    const Laid laid = pairs ? Laid::kInPairs : Laid::kInOrder;
    const auto at = [=](auto* p) { return p ? p + begin : p; };
    const auto output = [&](T* p, Acc* buffer) {
      if constexpr (std::is_same_v<T, Acc>) {
        if (direct) return at(p);
      }
      return p ? buffer : nullptr;
    };
    Chunk<Acc> c{lay_out(at(all.input), length, whole, buffers[0], laid),
                 lay_out(at(all.target), length, whole, buffers[1], laid),
                 weight.data ? lay_out(weight, begin, length, whole, buffers[2]) : nullptr,
                 pos_weight.data ? lay_out(pos_weight, begin, length, whole, buffers[3]) : nullptr,
                 lay_out(at(all.upstream), length, whole, buffers[4], laid),
                 output(all.value, buffers[5]),
                 output(all.gradient, buffers[6]),
                 output(all.negated_gradient, buffers[7])};
    if (whole) {
      const TermSum sum = visitor(c, length);
      if (!direct) write_outputs(c, begin, length, laid);
      return sum;
    }
    // Elements that fill the last vector weigh nothing: some losses of 0 and 0 are not 0.
    const int64_t padded = round_up(length, kLanes);
    if (!c.weight) {
      std::fill_n(buffers[2], length, Acc(1));
      std::fill_n(buffers[2] + length, padded - length, Acc(0));
      c.weight = buffers[2];
    }
    const TermSum sum = visitor(c, padded);
    write_outputs(c, begin, length, laid);
    return sum;
  }

  // Visits `count` elements, each costing about `cost`.
  TermSum visit_all(int64_t count, int64_t cost, const ChunkVisitor<Acc>& visitor) const {
    return parallel_sum<TermSum>(count, cost, [&](int64_t begin, int64_t end) {
      TermSum sum;
      for (int64_t at = begin; at < end; at += kChunk) sum += visit(at, std::min(kChunk, end - at), visitor);
      return sum;
    });
  }

 private:
  void write_outputs(const Chunk<Acc>& c, int64_t begin, int64_t length, Laid laid) const {
    if (all.value) write_back(c.value, length, all.value + begin, laid);
    if (all.gradient) write_back(c.gradient, length, all.gradient + begin, laid);
    if (all.negated_gradient) write_back(c.negated_gradient, length, all.negated_gradient + begin, laid);
  }
};

}  // namespace pyops::cpu
