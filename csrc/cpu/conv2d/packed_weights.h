// Weights that are packed once and used by many calls, for inference on few images, where packing takes as
// long as the products.
//
// How an algorithm packs depends on the problem. It says how in a header in front of the packed weights, and
// takes them only if the header is its own; otherwise it packs as ever. The header also has a digest of all
// the weights, by which changes are noticed of which the caller knows nothing (Tensor.data): to read the
// weights once more takes a fraction of packing them.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "cpu/conv2d/problem.h"
#include "cpu/runtime/digest.h"
#include "cpu/runtime/scratch.h"
#include "cpu/simd/vec.h"

namespace pyops::cpu {

struct PackedWeights {
  enum class Use {
    kMeasure,  // say how many bytes they take, and form nothing
    kFill,     // pack into the memory, and form nothing
    kRead,     // take them from the memory, if they are of the same problem and weights
  };
  Use use;
  void* memory = nullptr;  // aligned to kVectorBytes
  int64_t bytes = 0;
  bool was_read = false;
  bool unchanged = false;  // the caller knows that the weights are those that were packed
};

// What the order of packed weights depends on: the algorithm's name and how it cuts the problem.
using PackedOrder = std::array<int64_t, 12>;

template <class T>
struct PackedHeader {
  PackedOrder order;
  int64_t elements;  // packed
  uint64_t digest;   // of the weights

  PackedHeader(const PackedOrder& order_, int64_t elements_)
      : order(order_), elements(elements_), digest(0) {}
  void add_digest(const ConvWeights<T>& w) {  // they are dense
    digest =
        digest_of(w.values, w.groups * w.inputs * w.outputs * w.taps() * static_cast<int64_t>(sizeof(T)));
  }
  bool equals(const void* other, bool unchanged) const {
    PackedHeader in_memory = *this;
    std::memcpy(static_cast<void*>(&in_memory), other, sizeof(PackedHeader));
    return order == in_memory.order && elements == in_memory.elements &&
           (unchanged || digest == in_memory.digest);
  }
  static constexpr int64_t bytes() {
    return (static_cast<int64_t>(sizeof(PackedHeader)) + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
  }
};

// The packed weights of a problem, by pack(to) or from memory; null if nothing is to be formed.
template <class T, class Pack>
const acc_t<T>* packed_weights(const CorrelationProblem<T>& problem, const PackedOrder& order,
                               int64_t elements, Scratch& scratch, const Pack& pack) {
  using Acc = acc_t<T>;
  PackedWeights* const packed = problem.packed;
  if (packed != nullptr) {
    const int64_t bytes = PackedHeader<T>::bytes() + elements * static_cast<int64_t>(sizeof(Acc));
    if (packed->use == PackedWeights::Use::kMeasure) {
      packed->bytes = bytes;
      return nullptr;
    }
    PackedHeader<T> header(order, elements);
    if (!packed->unchanged) header.add_digest(problem.weights);
    Acc* const behind = reinterpret_cast<Acc*>(static_cast<char*>(packed->memory) + PackedHeader<T>::bytes());
    if (packed->use == PackedWeights::Use::kFill) {
      std::memcpy(packed->memory, static_cast<const void*>(&header), sizeof(header));
      pack(behind);
      return nullptr;
    }
    const bool aligned = reinterpret_cast<uintptr_t>(packed->memory) % kVectorBytes == 0;
    if (aligned && packed->bytes == bytes && header.equals(packed->memory, packed->unchanged)) {
      packed->was_read = true;
      return behind;
    }
  }
  Acc* const to = scratch.take<Acc>(elements);
  pack(to);
  return to;
}

}  // namespace pyops::cpu
