// A row's class index.
#pragma once

#include "cuda/launch.h"

namespace pyops::cuda {

struct RowTarget {
  int64_t index;
  bool ignored;
  bool valid;  // not ignored and a class that exists; only then may `index` be used to address memory
};

__device__ __forceinline__ RowTarget read_target(const int64_t* targets, int64_t row, int64_t classes,
                                                 int64_t ignore_index) {
  const int64_t index = targets[row];
  const bool ignored = index == ignore_index;
  return {index, ignored, !ignored && index >= 0 && index < classes};
}

}  // namespace pyops::cuda
