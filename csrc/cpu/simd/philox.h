// Random draws for neighbouring elements, many Philox counters at a time.
//
// A counter lives in a 64-bit lane, of which the rounds use the low half: the multiplication of low halves to
// a 64-bit product exists on every x86, and both halves of the product stay where the next round wants them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/philox.h"
#include "cpu/simd/vec.h"
#include "math/dropout.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a block's words are read as 16-bit draws in order");

namespace pyops::cpu {

typedef uint64_t Counters __attribute__((vector_size(kVectorBytes)));
constexpr int kCounterLanes = kVectorBytes / 8;

// The low half of each lane times that of the other operand's.
PYOPS_HD Counters multiply_low(Counters a, Counters b) {
#if defined(__AVX512F__)
  return (Counters)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Counters)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Counters)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// The high half in the low one's place. A shuffle, because shifts wait for the multiplications' port on
// Intel.
PYOPS_HD Counters high_half(Counters a) {
#if defined(__AVX512F__)
  return (Counters)_mm512_shuffle_epi32((__m512i)a, _MM_PERM_DDBB);
#elif defined(__AVX2__)
  return (Counters)_mm256_shuffle_epi32((__m256i)a, 0xf5);
#elif defined(__SSE2__)
  return (Counters)_mm_shuffle_epi32((__m128i)a, 0xf5);
#else
  return a >> 32;
#endif
}

PYOPS_HD Counters xor3(Counters a, Counters b, Counters c) {
#if defined(__AVX512F__)
  return (Counters)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
#else
  return a ^ b ^ c;
#endif
}

// The numbers that the lanes add to the first block: within each 128 bits, lane 0 of all comes before lane 1
// of all, which is the order store_blocks leaves them in.
PYOPS_HD Counters lane_order() {
  constexpr int kWays = kVectorBytes / 16;
  Counters order;
  for (int lane = 0; lane < kCounterLanes; ++lane) order[lane] = lane / 2 + kWays * (lane % 2);
  return order;
}

typedef uint16_t Halves __attribute__((vector_size(kVectorBytes)));

// Whether any 16 bits of the vectors that it has seen are a certain number.
class Ties {
 public:
#if defined(__AVX512F__)
  PYOPS_HD explicit Ties(uint16_t wanted) : wanted_(_mm512_set1_epi16(static_cast<short>(wanted))) {}
  PYOPS_HD void see(Counters a) { found_ |= _mm512_cmpeq_epi16_mask((__m512i)a, wanted_); }
  PYOPS_HD bool any() const { return found_ != 0; }

 private:
  __m512i wanted_;
  __mmask32 found_ = 0;
#else
  PYOPS_HD explicit Ties(uint16_t wanted) : wanted_(Halves{} + wanted) {}
  PYOPS_HD void see(Counters a) { found_ |= (Counters)((Halves)a == wanted_); }
  PYOPS_HD bool any() const {
    uint64_t any = 0;
    for (int lane = 0; lane < kCounterLanes; ++lane) any |= found_[lane];
    return any != 0;
  }

 private:
  Halves wanted_;
  Counters found_ = {};
#endif
};

// Writes the words c0, c1, c2, c3 of every lane, block after block.
PYOPS_HD void store_blocks(uint16_t* draws, Counters c0, Counters c1, Counters c2, Counters c3, Ties& ties) {
  const Counters low = (c0 & 0xffffffffu) | (c1 << 32), high = (c2 & 0xffffffffu) | (c3 << 32);
  Counters even, odd;
#if defined(__AVX512F__)
  even = (Counters)_mm512_unpacklo_epi64((__m512i)low, (__m512i)high);
  odd = (Counters)_mm512_unpackhi_epi64((__m512i)low, (__m512i)high);
#elif defined(__AVX2__)
  even = (Counters)_mm256_unpacklo_epi64((__m256i)low, (__m256i)high);
  odd = (Counters)_mm256_unpackhi_epi64((__m256i)low, (__m256i)high);
#else
  for (int lane = 0; lane < kCounterLanes; lane += 2) {
    even[lane] = low[lane], even[lane + 1] = high[lane];
    odd[lane] = low[lane + 1], odd[lane + 1] = high[lane + 1];
  }
#endif
  ties.see(even);
  ties.see(odd);
  memcpy(draws, &even, sizeof(even));
  memcpy(draws + kVectorBytes / 2, &odd, sizeof(odd));
}

// Vectors whose multiplications overlap; as many as the registers hold.
constexpr int kPhiloxVectors = kVectorBytes == 64 ? 4 : 2;

struct PhiloxKeys {
  uint64_t round[kPhiloxRounds][2];

  explicit PhiloxKeys(const PhiloxSeed& seed) {
    uint32_t k[2] = {seed.key[0], seed.key[1]};
    for (auto& keys : round) {
      for (int i = 0; i < 2; ++i) keys[i] = k[i], k[i] += kPhiloxWeyl[i];
    }
  }
};

// The draws of kVectors * kCounterLanes blocks from `block` on.
template <int kVectors>
PYOPS_HD void philox_vectors(const PhiloxKeys& keys, const PhiloxSeed& seed, uint64_t block, uint16_t* draws,
                             Ties& ties) {
  Counters c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    c0[v] = lane_order() + (block + v * kCounterLanes);
    c1[v] = high_half(c0[v]);
    c2[v] = Counters{} + seed.stream[0];
    c3[v] = Counters{} + seed.stream[1];
  }
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const Counters k0 = Counters{} + keys.round[round][0], k1 = Counters{} + keys.round[round][1];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Counters first = multiply_low(c0[v], Counters{} + kPhiloxMultiplier[0]);
      const Counters second = multiply_low(c2[v], Counters{} + kPhiloxMultiplier[1]);
      c0[v] = xor3(high_half(second), c1[v], k0);
      c1[v] = second;
      c2[v] = xor3(high_half(first), c3[v], k1);
      c3[v] = first;
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    store_blocks(draws + v * kCounterLanes * kDrawsPerBlock, c0[v], c1[v], c2[v], c3[v], ties);
  }
}

// Elements whose draws are made at once: they are used from the L1 cache.
constexpr int64_t kDrawChunk = 1024;

// The high halves of draws. Where one equals the threshold's the low half decides, and it is replaced by one
// that lies on the right side of dropout_limit: the comparisons need no more than 16 bits.
class RandomDraws {
 public:
  RandomDraws(const PhiloxSeed& seed, uint32_t high, uint32_t low)
      : seed_(seed), keys_(seed), high_(static_cast<uint16_t>(std::min(high, 0xffffu))), low_(low) {}

  // The draws of `count` <= kDrawChunk elements from element `first` on. A vector's worth behind them may be
  // read, too.
  const uint16_t* fill(int64_t first, int64_t count) {
    constexpr int64_t kBlocks = kPhiloxVectors * kCounterLanes;
    const uint64_t begin = static_cast<uint64_t>(first) / kDrawsPerBlock;
    const uint64_t end = (static_cast<uint64_t>(first + count) + kDrawsPerBlock - 1) / kDrawsPerBlock;
    uint16_t* out = draws_;
    Ties ties(high_);
    for (uint64_t block = begin; block < end;) {
      const bool many = end - block > kCounterLanes;
      many ? philox_vectors<kPhiloxVectors>(keys_, seed_, block, out, ties)
           : philox_vectors<1>(keys_, seed_, block, out, ties);
      block += many ? kBlocks : kCounterLanes;
      out += (many ? kBlocks : kCounterLanes) * kDrawsPerBlock;
    }
    if (ties.any()) settle_ties(static_cast<int64_t>(end - begin));
    return draws_ + first % kDrawsPerBlock;
  }

 private:
  void settle_ties(int64_t blocks) {
    for (int64_t b = 0; b < blocks; ++b) {
      uint16_t* const block = draws_ + b * kDrawsPerBlock;
      uint16_t low_half = 0;
      for (int i = 0; i < kDrawsPerBlock; ++i) low_half ^= block[i];
      for (int i = 0; i < kDrawsPerBlock; ++i) {
        if (block[i] == high_) block[i] = low_half < low_ ? 0 : 0xffff;
      }
    }
  }

  static constexpr int64_t kSlack = kPhiloxVectors * kCounterLanes * kDrawsPerBlock + kVectorBytes;

  PhiloxSeed seed_;
  PhiloxKeys keys_;
  uint16_t high_;
  uint32_t low_;
  alignas(kVectorBytes) uint16_t draws_[kDrawChunk + kSlack];
};

// RandomDraws below it drop. Neither 0 nor 65536, so that there is a draw on both sides; where the
// threshold's high half is 65536, everything is dropped and the scale is 0, too.
PYOPS_HD uint16_t dropout_limit(uint32_t high) {
  return static_cast<uint16_t>(std::min(std::max(high, 1u), 0xffffu));
}

// What the elements with the next draws are multiplied by: 0 or the scale.
template <class Acc>
PYOPS_HD Vec<Acc> dropout_factor(const uint16_t* draws, const math::DropoutRate<Acc>& rate) {
  using V = Vec<Acc>;
#if defined(__AVX512F__)
  const short threshold = static_cast<short>(dropout_limit(rate.high));
  if constexpr (std::is_same_v<Acc, float>) {
    const __m256i loaded = _mm256_loadu_si256((const __m256i*)draws);
    const __mmask16 kept = _mm256_cmpge_epu16_mask(loaded, _mm256_set1_epi16(threshold));
    return typename V::Native(_mm512_maskz_mov_ps(kept, V(rate.scale).v));
  } else {
    const __m128i loaded = _mm_loadu_si128((const __m128i*)draws);
    const __mmask8 kept = _mm_cmpge_epu16_mask(loaded, _mm_set1_epi16(threshold));
    return typename V::Native(_mm512_maskz_mov_pd(kept, V(rate.scale).v));
  }
#else
  typedef uint16_t Draws __attribute__((vector_size(V::kLanes * 2)));
  Draws loaded;
  memcpy(&loaded, draws, sizeof(loaded));
  const typename V::NativeInt wide = __builtin_convertvector(loaded, typename V::NativeInt);
  const typename V::NativeInt threshold = typename V::NativeInt{} + dropout_limit(rate.high);
  return typename V::Native(wide < threshold ? V(Acc(0)).v : V(rate.scale).v);
#endif
}

}  // namespace pyops::cpu
