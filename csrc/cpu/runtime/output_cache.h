// Memory for the large outputs of CPU kernels, kept when a tensor dies and handed to the next one.
//
// A fresh buffer costs a page fault per page, and the kernel has to zero it: writing a 250 MB gradient into
// new memory takes twice as long as writing it into used memory, even on 2 MB pages. torch's CPU allocator
// gives large buffers back to the system at once; a training step asks for the same sizes again a moment
// later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "binding/tensor.h"

namespace pyops::cpu {

class OutputCache {
 public:
  struct Stats {
    int64_t limit;        // bytes that may lie idle
    int64_t idle;         // bytes that do
    int64_t in_use;       // bytes of living tensors
    int64_t peak_in_use;  // since the limit was last set
  };

  static OutputCache& instance();

  bool serves(size_t bytes) const { return bytes >= kSmallest && limit_ > 0; }
  void* acquire(size_t bytes);  // null when the system has no more
  void release(void* data);
  void set_limit(int64_t bytes);
  Stats stats();

 private:
  struct Block {
    void* data;
    size_t bytes;
  };

  // Below this, malloc keeps freed memory anyway.
  static constexpr size_t kSmallest = size_t{1} << 20;

  OutputCache();
  bool take_idle(size_t bytes, Block& block);
  void trim();

  std::mutex mutex_;
  std::map<void*, size_t> in_use_;
  std::vector<Block> idle_;  // oldest first
  int64_t limit_;
  int64_t idle_bytes_ = 0;
  int64_t in_use_bytes_ = 0;
  int64_t peak_in_use_ = 0;
  bool huge_pages_;
};

// As new_tensor; large tensors come from the cache.
Tensor new_output(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type);

// As new_tensor_like; large tensors come from the cache.
Tensor new_output_like(const Tensor& like);

}  // namespace pyops::cpu
