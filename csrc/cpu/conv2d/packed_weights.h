// Weights that are packed once and used by many calls, for inference on few images, where packing takes as
// long as the products.
//
// How an algorithm packs depends on the problem. It says how in a header in front of the packed weights, and
// takes them only if the header is its own; otherwise it packs as ever. The header also has a digest of all
// the weights, by which changes are noticed of which the caller knows nothing (Tensor.data): to read the
// weights once more takes a fraction of packing them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/integers.h"
#include "cpu/conv2d/problem.h"
#include "cpu/runtime/parallel.h"
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
};

// What the order of packed weights depends on: the algorithm's name and how it cuts the problem.
using PackedOrder = std::array<int64_t, 12>;

// Two sums over all bits, as Fletcher's: the second tells where in the first something was added. Each lane
// of a vector has its own pair; blocks are joined in order.
inline uint64_t digest_of_block(const char* from, int64_t bytes) {
  Words sum{}, weighted{};
  const auto add = [&](const char* at, size_t count) {
    Words words{};
    std::memcpy(&words, at, count);
    sum += words;
    weighted += sum;
  };
  int64_t i = 0;
  for (; i + kVectorBytes <= bytes; i += kVectorBytes) add(from + i, kVectorBytes);
  if (i < bytes) add(from + i, static_cast<size_t>(bytes - i));
  uint64_t digest = 0;
  for (size_t lane = 0; lane < kVectorBytes / sizeof(uint32_t); ++lane) {
    digest = (digest ^ (uint64_t{weighted[lane]} << 32 | sum[lane])) * 0x9e3779b97f4a7c15u;
    digest ^= digest >> 32;
  }
  return digest;
}

inline uint64_t digest_of(const void* from, int64_t bytes) {
  constexpr int64_t kBlock = 1 << 16;
  std::vector<uint64_t> of_block(ceil_div(bytes, kBlock));
  const int64_t blocks = static_cast<int64_t>(of_block.size());
  parallel_for(blocks, kBlock / 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      of_block[i] =
          digest_of_block(static_cast<const char*>(from) + i * kBlock, std::min(kBlock, bytes - i * kBlock));
    }
  });
  uint64_t digest = 0;
  for (const uint64_t one : of_block) digest = (digest ^ one) * 0x9e3779b97f4a7c15u;
  return digest;
}

template <class T>
struct PackedHeader {
  PackedOrder order;
  int64_t elements;  // packed
  uint64_t digest;   // of the weights

  PackedHeader(const PackedOrder& order_, int64_t elements_, const ConvWeights<T>& w)
      : order(order_),
        elements(elements_),
        digest(digest_of(w.values, w.groups * w.inputs * w.outputs * w.taps() *
                                       static_cast<int64_t>(sizeof(T)))) {}  // they are dense
  bool equals(const void* other) const {
    PackedHeader in_memory = *this;
    std::memcpy(static_cast<void*>(&in_memory), other, sizeof(PackedHeader));
    return order == in_memory.order && elements == in_memory.elements && digest == in_memory.digest;
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
    const PackedHeader<T> header(order, elements, problem.weights);
    Acc* const behind = reinterpret_cast<Acc*>(static_cast<char*>(packed->memory) + PackedHeader<T>::bytes());
    if (packed->use == PackedWeights::Use::kFill) {
      std::memcpy(packed->memory, static_cast<const void*>(&header), sizeof(header));
      pack(behind);
      return nullptr;
    }
    const bool aligned = reinterpret_cast<uintptr_t>(packed->memory) % kVectorBytes == 0;
    if (aligned && packed->bytes == bytes && header.equals(packed->memory)) {
      packed->was_read = true;
      return behind;
    }
  }
  Acc* const to = scratch.take<Acc>(elements);
  pack(to);
  return to;
}

}  // namespace pyops::cpu
