// Division by numbers that the host knows, without the many steps of a GPU's own.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace pyops::cuda {

// n / divisor for 0 <= n < 2^31 and a divisor known on the host, by one multiplication (Granlund and
// Montgomery 1994, "Division by Invariant Integers using Multiplication").
struct Divisor {
  int divisor = 1;
  uint32_t multiplier = 1;
  int shift = 0;

  static Divisor of(int divisor) {
    Divisor d{divisor, 0, 0};
    while ((int64_t{1} << d.shift) < divisor) ++d.shift;
    const uint64_t excess = (uint64_t{1} << d.shift) - static_cast<uint64_t>(divisor);
    d.multiplier = static_cast<uint32_t>((excess << 32) / static_cast<uint64_t>(divisor) + 1);
    return d;
  }
  PYOPS_HD operator int() const { return divisor; }
  PYOPS_HD int divide(int n) const {
    const auto high =
        static_cast<uint32_t>(static_cast<uint64_t>(static_cast<uint32_t>(n)) * multiplier >> 32);
    return static_cast<int>((high + static_cast<uint32_t>(n)) >> shift);
  }
};

// As math/pooling.h has them of plain numbers.
PYOPS_HD int quotient(int n, const Divisor& d) { return d.divide(n); }
PYOPS_HD int quotient_up(int n, const Divisor& d) { return d.divide(n + d.divisor - 1); }

}  // namespace pyops::cuda
