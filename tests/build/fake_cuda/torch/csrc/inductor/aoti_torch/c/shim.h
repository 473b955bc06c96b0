// What csrc/cuda/launch.h takes of torch's header.
#pragma once

#include <cstdint>

#define STABLE_TORCH_ERROR_CODE_CHECK(call) static_cast<void>(call)

inline int aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
