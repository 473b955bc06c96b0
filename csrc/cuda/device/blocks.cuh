// How many blocks a launch takes.
#pragma once

#include <algorithm>

#include "cuda/launch.h"

namespace pyops::cuda {

// For so many items, of which a block takes `per_block` in a turn. With more than kMaxBlocks, blocks take
// several turns; there is always at least one.
inline unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>(std::clamp<int64_t>(ceil_div(items, per_block), 1, kMaxBlocks));
}

}  // namespace pyops::cuda
