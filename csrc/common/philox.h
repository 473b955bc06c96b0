// Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), and the draws that
// random masks are made of.
//
// A mask is a function of a seed and the element's index alone, so CPU, CUDA and Triton produce the same bits
// and backward regenerates what forward used. One evaluation serves kDrawsPerBlock neighbouring elements: on
// a GPU a generator of 32-bit draws would take more time than the memory traffic it decorates.
//
// A draw has 32 bits all the same. The low 16, which decide once in 65536 comparisons, are one number for the
// whole block: the exclusive or of its eight high halves, uniform whatever one of them (or seven) may be.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace pyops {

// Elements per evaluation: its four 32-bit words, each as two 16-bit draws, the low half first.
constexpr int kDrawsPerBlock = 8;

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier[2] = {0xD2511F53u, 0xCD9E8D57u};
constexpr uint32_t kPhiloxWeyl[2] = {0x9E3779B9u, 0xBB67AE85u};

// A seed tensor's two int64: the first is the key, the second the upper half of every counter, whose lower
// half is the number of the block of elements.
struct PhiloxSeed {
  uint32_t key[2];
  uint32_t stream[2];

  static PYOPS_HD PhiloxSeed load(const int64_t* seed) {
    const uint64_t key = static_cast<uint64_t>(seed[0]), stream = static_cast<uint64_t>(seed[1]);
    return {{static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)},
            {static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)}};
  }
};

struct PhiloxBlock {
  uint32_t words[4];
  // The high half of an element's draw.
  PYOPS_HD uint32_t high(int slot) const { return words[slot / 2] >> (slot % 2 * 16) & 0xffffu; }
  // The low half of each.
  PYOPS_HD uint32_t low() const {
    const uint32_t all = words[0] ^ words[1] ^ words[2] ^ words[3];
    return (all ^ all >> 16) & 0xffffu;
  }
};

// The draws of elements [8 block, 8 block + 8).
PYOPS_HD PhiloxBlock philox(const PhiloxSeed& seed, uint64_t block) {
  uint32_t c[4] = {static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), seed.stream[0],
                   seed.stream[1]};
  uint32_t k[2] = {seed.key[0], seed.key[1]};
  constexpr uint32_t kStep[2] = {kPhiloxWeyl[0], kPhiloxWeyl[1]};  // device code has no arrays of namespaces
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t first = static_cast<uint64_t>(kPhiloxMultiplier[0]) * c[0];
    const uint64_t second = static_cast<uint64_t>(kPhiloxMultiplier[1]) * c[2];
    c[0] = static_cast<uint32_t>(second >> 32) ^ c[1] ^ k[0];
    c[1] = static_cast<uint32_t>(second);
    c[2] = static_cast<uint32_t>(first >> 32) ^ c[3] ^ k[1];
    c[3] = static_cast<uint32_t>(first);
    k[0] += kStep[0];
    k[1] += kStep[1];
  }
  return {{c[0], c[1], c[2], c[3]}};
}

}  // namespace pyops
