// Division that rounds up, and numbers cut into parts.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pyops {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// `count` items cut into `parts` parts whose sizes differ by at most one.
struct EvenSplit {
  EvenSplit(int64_t count, int64_t parts_) : parts(parts_), base(count / parts_), longer(count % parts_) {}
  int64_t begin(int64_t part) const { return part * base + std::min(part, longer); }
  int64_t size(int64_t part) const { return base + (part < longer ? 1 : 0); }

  int64_t parts;
  int64_t base;
  int64_t longer;
};

}  // namespace pyops
