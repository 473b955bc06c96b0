// Stores past the caches, for large outputs: a line is then not read before it is overwritten, and what the
// caches hold is not driven out by what will not be found there again.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "cpu/simd/vec.h"

namespace pyops::cpu {

// Outputs of at least as many bytes are not found in a cache by whoever reads them next.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

// A call on as many bytes, read and written, leaves nothing in a cache of 32 MB that outlives it.
constexpr int64_t kStreamCallBytes = int64_t{40} << 20;

// Makes streamed stores visible before another thread is told about them.
inline void end_of_streams() { std::atomic_thread_fence(std::memory_order_seq_cst); }

// Stores v, past the caches if `stream`: for outputs that would not be found there again.
template <class T>
PYOPS_HD void put(T* p, Vec<acc_t<T>> v, int lanes, [[maybe_unused]] bool stream) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    if (stream) return _mm512_stream_ps(p, v.v);
  }
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) {
    if (stream) return _mm256_stream_ps(p, v.v);
  }
#endif
  store_lanes(p, v, lanes);
}

template <class T>
bool can_stream(const T* p, bool wanted) {
  return wanted && reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0;
}

}  // namespace pyops::cpu
