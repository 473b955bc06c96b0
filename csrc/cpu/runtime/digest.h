// A digest of memory, by which changes are noticed of which nobody tells: such as those through Tensor.data.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/integers.h"
#include "cpu/runtime/parallel.h"
#include "cpu/simd/vec.h"

namespace pyops::cpu {

// Two sums over all bits, as Fletcher's: the second tells where in the first something was added. Each lane
// of a vector has its own pair; blocks are joined in order. High bits are added to lower ones first: what
// changes all words alike, as another sign or exponent does, would vanish in a sum of 2^n words.
inline uint64_t digest_of_block(const char* from, int64_t bytes) {
  Words sum{}, weighted{};
  const auto add = [&](const char* at, size_t count) {
    Words words{};
    std::memcpy(&words, at, count);
    sum += words ^ (words >> 15);
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

inline uint64_t joined_digest(uint64_t digest, uint64_t next) {
  digest = (digest ^ next) * 0x9e3779b97f4a7c15u;
  return digest ^ digest >> 32;
}

inline uint64_t digest_of(const void* from, int64_t bytes) {
  constexpr int64_t kBlock = 1 << 16;
  const auto of_block = [&](int64_t i) {
    return digest_of_block(static_cast<const char*>(from) + i * kBlock, std::min(kBlock, bytes - i * kBlock));
  };
  if (bytes <= kBlock) return of_block(0);
  std::vector<uint64_t> digests(ceil_div(bytes, kBlock));
  parallel_for(static_cast<int64_t>(digests.size()), kBlock / 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) digests[i] = of_block(i);
  });
  uint64_t digest = 0;
  for (const uint64_t one : digests) digest = joined_digest(digest, one);
  return digest;
}

}  // namespace pyops::cpu
