// The PTX of tensor cores and asynchronous copies, one wrapper per instruction, each with a twin for the
// emulator. Layouts of the fragments: PTX ISA, "Matrix Fragments for mma.m16n8k16" and "mma.m16n8k8".
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/dtypes.h"
#include "cuda/device/memory.cuh"

namespace pyops::cuda {

struct MatrixA {
  uint32_t words[4];
};
struct MatrixB {
  uint32_t words[2];
};

// Words that ldmatrix loads: of four 8x8 matrices of 16-bit elements (or 8x4 of 32-bit ones).
struct FourMatrices {
  uint32_t words[4];
};

#if defined(__CUDACC__)

// Copies 16 bytes into shared memory, past the registers. Where not `valid` it writes zeros and does not read
// `from`. The bytes go through the L1 cache, where neighbouring taps find them again.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}

// The same past the L1 cache, for what a block reads only once.
__device__ __forceinline__ void copy_async_once(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Returns when at most kPending of this thread's groups of copies are on their way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Lane i names a row of 16 bytes in shared memory; rows 8 j, ..., 8 j + 7 are matrix j. Lane i gets words
// i % 4 of rows i / 4.
__device__ __forceinline__ FourMatrices load_matrices(const void* row) {
  FourMatrices m;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m.words[0]), "=r"(m.words[1]), "=r"(m.words[2]), "=r"(m.words[3])
               : "r"(shared_address(row))
               : "memory");
  return m;
}

// The same with each matrix of 16-bit elements transposed.
__device__ __forceinline__ FourMatrices load_matrices_transposed(const void* row) {
  FourMatrices m;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m.words[0]), "=r"(m.words[1]), "=r"(m.words[2]), "=r"(m.words[3])
               : "r"(shared_address(row))
               : "memory");
  return m;
}

#define PYOPS_MMA(shape_and_types)                                                                    \
  asm volatile("mma.sync.aligned." shape_and_types                                                    \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                     \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                               \
               : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]), \
                 "r"(b.words[1]))

// sum[16, 8] += a[16, k] b[k, 8], with k = 16 for 16-bit elements and 8 for float, which are TF32 then.
template <class T>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const MatrixA& a, const MatrixB& b) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    PYOPS_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  } else if constexpr (std::is_same_v<T, float16>) {
    PYOPS_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  } else {
    PYOPS_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
  }
}

#undef PYOPS_MMA

// A float's bits rounded to TF32: 10 bits of mantissa, ties away from zero.
__device__ __forceinline__ uint32_t round_to_tf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

#else  // the emulator

inline void copy_async(void* to, const void* from, bool valid) {
  emulation::copy_async(to, from, 16, valid ? 16 : 0);
}
inline void copy_async_once(void* to, const void* from) { emulation::copy_async(to, from, 16, 16); }
inline void commit_copies() { emulation::commit_copies(); }
template <int kPending>
void wait_for_copies() {
  emulation::wait_for_copies(kPending);
}

namespace emulated {

struct LoadLane {
  const void* row;
  FourMatrices result;
};

template <bool kTransposed>
void load_matrices(void* const* lanes) {
  const auto element = [&](int matrix, int row, int column) {
    return static_cast<const uint16_t*>(static_cast<LoadLane*>(lanes[8 * matrix + row])->row)[column];
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int row = lane / 4, column = lane % 4 * 2;
    for (int m = 0; m < 4; ++m) {
      const uint32_t low = kTransposed ? element(m, column, row) : element(m, row, column);
      const uint32_t high = kTransposed ? element(m, column + 1, row) : element(m, row, column + 1);
      static_cast<LoadLane*>(lanes[lane])->result.words[m] = high << 16 | low;
    }
  }
}

struct MultiplyLane {
  const MatrixA* a;
  const MatrixB* b;
  float* sum;
};

// Element k of a fragment's row or column, whose words lie in 4 neighbouring lanes. The twin sums the
// products in float32, in order; the hardware has an order of its own.
template <class T>
float fragment_element(const uint32_t* low, const uint32_t* high, int k) {
  if constexpr (sizeof(T) == 2) {
    const uint32_t word = k < 8 ? *low : *high;
    return to_acc(T{static_cast<uint16_t>(word >> (k % 2 * 16))});
  } else {
    return bit_cast<float>((k < 4 ? *low : *high) & 0xffffe000u);
  }
}

template <class T>
void multiply_add(void* const* lanes) {
  constexpr int kDepth = sizeof(T) == 2 ? 16 : 8, kPerWord = 4 / sizeof(T);
  const auto lane_of = [&](int group, int k) {
    return static_cast<MultiplyLane*>(lanes[4 * group + k % (kDepth / 2) / kPerWord]);
  };
  float a[16][kDepth], b[kDepth][8];
  for (int k = 0; k < kDepth; ++k) {
    for (int row = 0; row < 16; ++row) {
      const uint32_t* words = lane_of(row % 8, k)->a->words + row / 8;
      a[row][k] = fragment_element<T>(words, words + 2, k);
    }
    for (int column = 0; column < 8; ++column) {
      const uint32_t* words = lane_of(column, k)->b->words;
      b[k][column] = fragment_element<T>(words, words + 1, k);
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float& sum =
          static_cast<MultiplyLane*>(lanes[4 * (row % 8) + column / 2])->sum[row / 8 * 2 + column % 2];
      for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[k][column];
    }
  }
}

}  // namespace emulated

inline FourMatrices load_matrices(const void* row) {
  emulated::LoadLane lane{row, {}};
  emulation::collective(&lane, emulated::load_matrices<false>, {__FILE__, __LINE__});
  return lane.result;
}
inline FourMatrices load_matrices_transposed(const void* row) {
  emulated::LoadLane lane{row, {}};
  emulation::collective(&lane, emulated::load_matrices<true>, {__FILE__, __LINE__});
  return lane.result;
}
template <class T>
void multiply_add(float (&sum)[4], const MatrixA& a, const MatrixB& b) {
  emulated::MultiplyLane lane{&a, &b, sum};
  emulation::collective(&lane, emulated::multiply_add<T>, {__FILE__, __LINE__});
}
inline uint32_t round_to_tf32(uint32_t bits) {
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
  return ((bits & 0x7f800000u) == 0x7f800000u ? bits : bits + 0x1000u) & 0xffffe000u;
}

#endif

}  // namespace pyops::cuda
