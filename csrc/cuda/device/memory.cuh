// 16-byte accesses to rows of any alignment.
#pragma once

#include <cstdint>

#include "common/dtypes.h"
#include "cuda/launch.h"

namespace pyops::cuda {

constexpr int kPackBytes = 16;
constexpr int64_t kMaxPacks = 1 << 30;

// As many elements as one 16-byte access moves. Its words are taken apart by shifts: a memcpy between them
// and an array of elements makes nvcc access memory byte by byte.
template <class T>
struct Pack {
  static constexpr int kSize = kPackBytes / sizeof(T);
  uint4 bits;
};

template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* p) {
  return {*reinterpret_cast<const uint4*>(p)};
}

// Returns the pack as a value the compiler knows nothing about. It would otherwise widen a pack that is used
// twice only once, and keep the floats in between, in twice the registers.
template <class T>
__device__ __forceinline__ Pack<T> forget_widened(Pack<T> pack) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(pack.bits.x), "+r"(pack.bits.y), "+r"(pack.bits.z), "+r"(pack.bits.w));
#endif
  return pack;
}

template <class T, int kSize>
__device__ __forceinline__ void widen(const Pack<T>& pack, acc_t<T> (&values)[kSize]) {
  static_assert(kSize == Pack<T>::kSize);
  const uint32_t words[4] = {pack.bits.x, pack.bits.y, pack.bits.z, pack.bits.w};
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    if constexpr (std::is_same_v<T, bfloat16>) {  // one instruction each: no 16-bit number in between
      values[k] = bit_cast<float>(k % 2 == 0 ? words[k / 2] << 16 : words[k / 2] & 0xffff0000u);
    } else if constexpr (sizeof(T) == 2) {
      values[k] = to_acc(T{static_cast<uint16_t>(words[k / 2] >> (k % 2 * 16))});
    } else if constexpr (sizeof(T) == 4) {
      values[k] = bit_cast<T>(words[k]);
    } else {
      values[k] = bit_cast<T>(static_cast<uint64_t>(words[2 * k + 1]) << 32 | words[2 * k]);
    }
  }
}

template <class T, int kSize>
__device__ __forceinline__ uint4 narrow(const acc_t<T> (&values)[kSize]) {
  static_assert(kSize == Pack<T>::kSize);
  uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    if constexpr (sizeof(T) == 2) {
      if (k % 2 == 0) words[k / 2] = pair_from_acc<T>(values[k], values[k + 1]);
    } else if constexpr (sizeof(T) == 4) {
      words[k] = bit_cast<uint32_t>(values[k]);
    } else {
      const uint64_t bits = bit_cast<uint64_t>(values[k]);
      words[2 * k] = static_cast<uint32_t>(bits);
      words[2 * k + 1] = static_cast<uint32_t>(bits >> 32);
    }
  }
  return {words[0], words[1], words[2], words[3]};
}

// nvcc splits an assignment of 16 bytes into four stores; an instruction of our own stays whole. It names the
// kind of memory, so there are two of them: a global store into shared memory is an illegal access.
#if defined(__CUDACC__)

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void store_global(void* p, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

__device__ __forceinline__ void store_shared(void* p, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(p)), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}

#else  // the emulator

inline void store_global(void* p, uint4 v) { *static_cast<uint4*>(p) = v; }
inline void store_shared(void* p, uint4 v) { *static_cast<uint4*>(p) = v; }

#endif

template <class T, int kSize>
__device__ __forceinline__ void store_pack(T* p, const acc_t<T> (&values)[kSize]) {
  store_global(p, narrow<T>(values));
}

template <class T, int kSize>
__device__ __forceinline__ void store_pack_in_shared(T* p, const acc_t<T> (&values)[kSize]) {
  store_shared(p, narrow<T>(values));
}

// n contiguous elements from p: single ones up to a 16-byte boundary, then packs, then single ones again.
// Packs are counted in 32 bits to save registers; rows of more than kMaxPacks must not claim to be aligned.
struct RowSplit {
  int head;
  int packs;
  int64_t tail;  // where the single elements start again

  // `aligned` is false where the row of another tensor is accessed alongside and its boundaries lie
  // elsewhere. All elements are single then.
  template <class T>
  static __device__ __forceinline__ RowSplit of(const T* p, int64_t n, bool aligned) {
    constexpr int kSize = Pack<T>::kSize;
    const int past = static_cast<int>(reinterpret_cast<uintptr_t>(p) / sizeof(T) % kSize);
    const int head = (kSize - past) % kSize;
    if (!aligned || head >= n) return {0, 0, 0};
    const int64_t packs = (n - head) / kSize;
    return {head, static_cast<int>(packs), head + packs * kSize};
  }
};

inline bool is_aligned(const void* p, size_t bytes = kPackBytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

// Whether pointers into tensors of one dtype reach 16-byte boundaries at the same element.
template <class... Pointers>
bool same_alignment(const void* first, const Pointers*... others) {
  const auto phase = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % kPackBytes; };
  return ((phase(first) == phase(others)) && ...);
}

}  // namespace pyops::cuda
