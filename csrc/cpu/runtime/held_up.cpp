// What held_up.h says of waits.
#include "cpu/runtime/held_up.h"

#include <algorithm>
#include <chrono>

namespace pyops::cpu {

double HeldUp::now() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::nano>(time).count();
}

void HeldUp::waited(double block, double begin, double end) {
  const double wait = end - begin;
  if (wait < kLeast + kBlocks * block) return;
  const double last = rest_.load(std::memory_order_relaxed);
  const bool soon = begin < until_.load(std::memory_order_relaxed) + std::max(last, kSoon);
  const double rest = std::min(soon ? std::max(2 * last, kRest * wait) : wait, kMostRest);
  wait_.store(wait, std::memory_order_relaxed);
  rest_.store(rest, std::memory_order_relaxed);
  until_.store(end + rest, std::memory_order_relaxed);
}

HeldUp& HeldUp::of_this_process() {
  static HeldUp state;
  return state;
}

}  // namespace pyops::cpu
