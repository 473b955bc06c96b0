// Large outputs that are made row by row, stored past the caches.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/simd/stream.h"

namespace pyops::cpu {

// Whether the output of a call on as many bytes, read and written, goes past the caches.
constexpr bool passes_caches(int64_t bytes) { return bytes >= kStreamCallBytes; }

// Copies whole vectors to memory that begins with one, past the caches.
inline void stream_vectors(char* to, const char* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kVectorBytes) {
    const Vec<float> v = load<float>(reinterpret_cast<const float*>(from + i));
    put(reinterpret_cast<float*>(to + i), v, Vec<float>::kLanes, true);
  }
}

// Rows that follow one another in memory, as one thread makes them. Past the caches only whole vectors can be
// stored, and rows end anywhere: they are gathered in a buffer first, some at a time.
template <class T>
class RowsOut {
 public:
  // The first row goes to `to`; none has more than `longest` elements.
  RowsOut(T* to, int64_t longest, bool stream) : to_(reinterpret_cast<char*>(to)) {
    if (!stream) return;
    room_ = std::max<int64_t>(kBytes, longest * static_cast<int64_t>(sizeof(T)));
    memory_.resize(room_ + 2 * kVectorBytes);
    const auto begin = reinterpret_cast<uintptr_t>(memory_.data());
    buffer_ = memory_.data() + (kVectorBytes - begin % kVectorBytes) % kVectorBytes;
    first_ = filled_ = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to_) % kVectorBytes);
    to_ -= first_;
  }
  RowsOut(const RowsOut&) = delete;
  RowsOut& operator=(const RowsOut&) = delete;
  ~RowsOut() {
    if (!buffer_) return;
    flush();
    std::memcpy(to_ + first_, buffer_ + first_, filled_ - first_);
    end_of_streams();
  }

  // Where to write the next n elements, until the next call.
  T* next(int64_t n) {
    const int64_t bytes = n * static_cast<int64_t>(sizeof(T));
    if (!buffer_) {
      char* const row = to_;
      to_ += bytes;
      return reinterpret_cast<T*>(row);
    }
    if (filled_ + bytes > room_ + kVectorBytes) flush();
    char* const row = buffer_ + filled_;
    filled_ += bytes;
    return reinterpret_cast<T*>(row);
  }

 private:
  static constexpr int64_t kBytes = 8192;

  // All but a last vector that is not full.
  void flush() {
    const int64_t whole = filled_ / kVectorBytes * kVectorBytes;
    if (whole == 0) return;
    int64_t begin = 0;
    if (first_ > 0) {
      std::memcpy(to_ + first_, buffer_ + first_, kVectorBytes - first_);
      begin = kVectorBytes;
    }
    stream_vectors(to_ + begin, buffer_ + begin, whole - begin);
    to_ += whole;
    filled_ -= whole;
    std::memcpy(buffer_, buffer_ + whole, filled_);
    first_ = 0;
  }

  char* to_;                // where the buffer's first byte goes
  char* buffer_ = nullptr;  // none: rows are written where they belong
  int64_t room_ = 0;
  int64_t first_ = 0;  // of the buffer, what lies before the first row
  int64_t filled_ = 0;
  std::vector<char> memory_;
};

}  // namespace pyops::cpu
