// Tiles of 16 rows of 64 bytes, and products of tiles of bfloat16: Intel's Advanced Matrix Extensions (AMX),
// and a twin in software with the same results, so that kernels for tiles run on every machine's tests.
//
// A kernel is a template over the kind of tiles:
//
//   template <class Tiles>
//   void kernel(...) {
//     Tiles::template zero<0>();
//     Tiles::template load<4>(a, stride);  // 16 rows, `stride` bytes apart
//     Tiles::template load<6>(b, 64);
//     Tiles::template multiply_add<0, 4, 6>();
//     Tiles::template store<0>(c, ldc * sizeof(float));
//   }
//
// and runs within a scope, `typename Tiles::Scope scope;`, that each thread opens for itself. There are 8
// tiles. multiply_add<c, a, b> adds to c[16, 16], float32, the product of a[16, 32], bfloat16, and b[32, 16],
// bfloat16, whose rows lie in pairs: b's row i holds, for each column, the terms 2 i and 2 i + 1. Numbers
// that are subnormal count as zeros, as with VDPBF16PS.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/simd/features.h"

#if defined(__AVX512F__)
#include <immintrin.h>

namespace pyops::cpu {

constexpr int kTiles = 8;
constexpr int kTileRows = 16;
constexpr int64_t kTileRowBytes = 64;
constexpr int64_t kTileBytes = kTileRows * kTileRowBytes;
constexpr int64_t kTileDepth = 32;  // terms of a product, which are bfloat16

// GCC before 11 has an assembler that may not know the instructions; Clang wants them named in each function.
#if defined(__GNUC__) && __GNUC__ >= 11 && !defined(__clang__)
#define PYOPS_HAS_AMX 1
#else
#define PYOPS_HAS_AMX 0
#endif

#if PYOPS_HAS_AMX

// The CPU's own; only where cpu_features().amx_bf16. The clobbers keep GCC from moving stores past the
// instructions, which its own intrinsics do not.
struct AmxTiles {
  class Scope {
   public:
    Scope() {
      alignas(64) Configuration c{};
      c.palette = 1;
      for (int tile = 0; tile < kTiles; ++tile) c.row_bytes[tile] = kTileRowBytes, c.rows[tile] = kTileRows;
      __asm__ volatile("ldtilecfg %0" ::"m"(c));
    }
    ~Scope() { __asm__ volatile("tilerelease" ::: "memory"); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    struct Configuration {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    };
    static_assert(sizeof(Configuration) == 64);
  };

  template <int tile>
  static inline __attribute__((always_inline)) void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(tile));
  }
  template <int tile>
  static inline __attribute__((always_inline)) void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(tile) : "memory");
  }
  template <int tile>
  static inline __attribute__((always_inline)) void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(tile) : "memory");
  }
  template <int c, int a, int b>
  static inline __attribute__((always_inline)) void multiply_add() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
  }
};

#endif

struct TwinTiles {
  struct Scope {
    Scope() { memset(&tiles(), 0, sizeof(State)); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
  };

  template <int tile>
  static void zero() {
    memset(tiles().rows[tile], 0, kTileBytes);
  }
  template <int tile>
  static void load(const void* from, int64_t stride) {
    for (int i = 0; i < kTileRows; ++i) {
      memcpy(tiles().rows[tile][i], static_cast<const char*>(from) + i * stride, kTileRowBytes);
    }
  }
  template <int tile>
  static void store(void* to, int64_t stride) {
    for (int i = 0; i < kTileRows; ++i) {
      memcpy(static_cast<char*>(to) + i * stride, tiles().rows[tile][i], kTileRowBytes);
    }
  }
  template <int c, int a, int b>
  static void multiply_add() {
    multiply_add(tiles().rows[c], tiles().rows[a], tiles().rows[b]);
  }

 private:
  struct State {
    alignas(64) uint32_t rows[kTiles][kTileRows][kTileRowBytes / 4];
  };
  static State& tiles() {
    static thread_local State state;
    return state;
  }

  static __m512 zero_if_subnormal(__m512 x) {
    const __mmask16 tiny = _mm512_fpclass_ps_mask(x, 0x20);
    return _mm512_mask_and_ps(x, tiny, x, _mm512_castsi512_ps(_mm512_set1_epi32(int(0x80000000u))));
  }

  // The order of TDPBF16PS: the first terms of all pairs in one chain, the second in another, and c last.
  static void multiply_add(uint32_t (*c)[16], const uint32_t (*a)[16], const uint32_t (*b)[16]) {
    const __m512i high = _mm512_set1_epi32(int(0xffff0000u));
    for (int i = 0; i < kTileRows; ++i) {
      __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
      for (int k = 0; k < kTileRows; ++k) {
        const __m512i left = _mm512_set1_epi32(int(a[i][k])), right = _mm512_load_si512(b[k]);
        const __m512i pairs[2][2] = {{_mm512_slli_epi32(left, 16), _mm512_slli_epi32(right, 16)},
                                     {_mm512_and_si512(left, high), _mm512_and_si512(right, high)}};
        for (int j = 0; j < 2; ++j) {
          const __m512 x = zero_if_subnormal(_mm512_castsi512_ps(pairs[j][0]));
          const __m512 y = zero_if_subnormal(_mm512_castsi512_ps(pairs[j][1]));
          sum[j] = zero_if_subnormal(_mm512_fmadd_ps(x, y, sum[j]));
        }
      }
      const __m512 total = zero_if_subnormal(_mm512_add_ps(sum[0], sum[1]));
      const __m512 before = zero_if_subnormal(_mm512_castsi512_ps(_mm512_load_si512(c[i])));
      _mm512_store_ps(c[i], zero_if_subnormal(_mm512_add_ps(before, total)));
    }
  }
};

// Whether kernels for tiles may run.
inline bool has_tiles() { return cpu_features().amx_bf16 || cpu_features().amx_twin; }

// Calls f(Tiles{}) with the kind that may be used; only where has_tiles().
template <class F>
inline auto with_tiles(const F& f) {
#if PYOPS_HAS_AMX
  if (cpu_features().amx_bf16) return f(AmxTiles{});
#endif
  return f(TwinTiles{});
}

}  // namespace pyops::cpu

#endif
