// Scratch memory of the CPU kernels: one arena per thread.
//
//   Scratch scratch;                                 // opens a scope on the calling thread
//   float* const sums = scratch.take<float>(count);  // distinct from all other memory of open scopes
//
// A scope's memory is given back when it ends. Scopes nest: a caller's buffers stay its own while the same
// thread works on a part of the job in a scope within. Where an algorithm needs several buffers at a time, it
// keeps them in a struct that names them.
//
// A fresh page costs a fault, so an arena keeps its memory between calls, and grows only. Its contents are
// whatever was left there.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "cpu/simd/vec.h"

namespace pyops::cpu {

class ScratchArena {
 public:
  // Where the free memory begins.
  struct Mark {
    size_t block;
    size_t used;   // bytes of that block
    size_t taken;  // bytes of all of them
  };

  static ScratchArena& of_this_thread() {
    static thread_local ScratchArena arena;
    return arena;
  }

  Mark mark() const { return now_; }

  // Memory that lives until release() of a mark from before.
  void* take(size_t bytes) {
    bytes = (bytes + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
    while (now_.block < blocks_.size() && now_.used + bytes > blocks_[now_.block].size) {
      ++now_.block;
      now_.used = 0;
    }
    if (now_.block == blocks_.size()) {
      blocks_.emplace_back(std::max({bytes, blocks_.empty() ? most_ : 0, size_t{kVectorBytes}}));
    }
    char* const memory = static_cast<char*>(blocks_[now_.block].memory.get()) + now_.used;
    now_.used += bytes;
    now_.taken += bytes;
    most_ = std::max(most_, now_.taken);
    return memory;
  }

  void release(const Mark& mark) {
    now_ = mark;
    // One block that is large enough for all takes the place of many.
    if (mark.taken == 0 && blocks_.size() > 1) blocks_.clear();
  }

 private:
  struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t{kVectorBytes}); }
  };
  struct Block {
    explicit Block(size_t bytes)
        : memory(::operator new(bytes, std::align_val_t{kVectorBytes})), size(bytes) {}
    std::unique_ptr<void, Free> memory;
    size_t size;
  };

  std::vector<Block> blocks_;
  Mark now_{0, 0, 0};
  size_t most_ = 0;  // bytes that were ever taken at a time
};

// A scope of the calling thread's scratch memory. It must end on the thread and in the order of its kind:
// keep it in a local variable.
class Scratch {
 public:
  Scratch() : arena_(ScratchArena::of_this_thread()), mark_(arena_.mark()) {}
  ~Scratch() { arena_.release(mark_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Uninitialised, aligned to kVectorBytes.
  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(arena_.take(static_cast<size_t>(count) * sizeof(T)));
  }

 private:
  ScratchArena& arena_;
  ScratchArena::Mark mark_;
};

}  // namespace pyops::cpu
