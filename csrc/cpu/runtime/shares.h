// The items of a loop as threads claim them.
//
// Each thread has a share of neighbouring items, the same in every loop over as many: it finds in its caches
// what it left there. It claims its items in blocks, and when it is through it claims blocks of the others: a
// thread whose core has gone to another process holds up no more than the block it is in.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "common/integers.h"

namespace pyops::cpu {

class Shares {
 public:
  Shares(int64_t count, int64_t threads, int64_t block, bool reversed)
      : count_(count),
        block_(std::max<int64_t>(1, block)),
        blocks_(ceil_div(count, block_)),
        shares_(std::min({threads, kMost, blocks_})),
        reversed_(reversed) {
    for (int64_t i = 0; i < shares_; ++i) share_[i].next.store(begin(i), std::memory_order_relaxed);
  }

  // Calls f(begin, end) for blocks until none is left; every thread calls it with its number.
  template <class F>
  void work(int64_t thread, const F& f) {
    for (int64_t i = 0; i < shares_; ++i) {
      const int64_t share = (thread + i) % shares_, end = begin(share + 1);
      std::atomic<int64_t>& next = share_[share].next;
      while (next.load(std::memory_order_relaxed) < end) {
        const int64_t claimed = next.fetch_add(1, std::memory_order_relaxed);
        if (claimed >= end) break;
        // Backwards within each share, too.
        const int64_t b = reversed_ ? begin(share) + end - 1 - claimed : claimed;
        f(b * block_, std::min(count_, (b + 1) * block_));
      }
    }
  }

 private:
  static constexpr int64_t kMost = 64;  // more threads than that share shares
  struct alignas(64) Share {
    std::atomic<int64_t> next;
  };

  int64_t begin(int64_t share) const { return blocks_ * share / shares_; }

  int64_t count_;
  int64_t block_;
  int64_t blocks_;
  int64_t shares_;
  bool reversed_;
  Share share_[kMost];
};

}  // namespace pyops::cpu
