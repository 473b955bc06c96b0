// Nearest-neighbour interpolation: which input element an output element copies, along one dimension.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"

namespace pyops::math {

// One spatial dimension. The index formula is ATen's nearest_neighbor_compute_source_index and, with `exact`,
// nearest_neighbor_exact_compute_source_index: float32, whatever the dtype.
struct NearestAxis {
  int64_t input = 1;
  int64_t output = 1;
  float scale = 1;    // input elements per output element
  float inverse = 1;  // a hint only
  bool exact = false;
  int64_t repeat = 0;  // outputs of each input element, where all have 2^n and none is rounded; else 0

  // `factor` is the scale factor the caller gave, or 0: then the sizes decide.
  static NearestAxis of(int64_t input, int64_t output, double factor, bool exact) {
    const float scale = factor > 0 ? static_cast<float>(1.0 / factor)
                                   : static_cast<float>(input) / static_cast<float>(output);
    return {input, output, scale, 1.0f / scale, exact, repeat_of(input, output, scale)};
  }

  // Positions are multiples of 1 / 2^(n + 1) then, and float32 has them all.
  static int64_t repeat_of(int64_t input, int64_t output, float scale) {
    const int64_t times = input > 0 ? output / input : 0;
    const bool power = times > 0 && (times & (times - 1)) == 0 && output <= int64_t{1} << 22;
    return power && times * input == output && scale == 1.0f / static_cast<float>(times) ? times : 0;
  }

  PYOPS_HD int64_t source(int64_t at) const {
    const float position = (static_cast<float>(at) + (exact ? 0.5f : 0.0f)) * scale;
    // Not a minimum of integers: a position beyond them, or NaN, must not become one.
    return position < static_cast<float>(input - 1) ? static_cast<int64_t>(position) : input - 1;
  }

  // The first output element whose source is `at` or a later one; `output` when there is none. source()
  // never decreases, so those that copy `at` are first_output(at) to first_output(at + 1) - 1.
  PYOPS_HD int64_t first_output(int64_t at) const {
    if (repeat > 0) return at * repeat;
    const float hint = ::ceilf(static_cast<float>(at) * inverse - (exact ? 0.5f : 0.0f));
    const int64_t guess = hint > 0 && hint < static_cast<float>(output) ? static_cast<int64_t>(hint) : 0;
    if ((guess == 0 || source(guess - 1) < at) && source(guess) >= at) return guess;
    int64_t low = 0, high = output;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (source(middle) < at) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

}  // namespace pyops::math
