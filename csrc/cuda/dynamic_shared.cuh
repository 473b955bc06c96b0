// Shared memory whose size the launch decides, beyond the 48 KB that a kernel gets without asking.
#pragma once

#include "launch.h"

#if defined(__CUDACC__)
#define PYOPS_DYNAMIC_SHARED(name) extern __shared__ uint4 name[]
#else
#define PYOPS_DYNAMIC_SHARED(name) uint4* const name = static_cast<uint4*>(emulation::dynamic_shared())
#endif

namespace pyops::cuda {

// Lets `kernel` be launched with that many bytes.
template <class Kernel>
void allow_shared(Kernel* kernel, int64_t bytes) {
#if defined(__CUDACC__)
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "asking for shared memory");
#endif
  static_cast<void>(kernel), static_cast<void>(bytes);
}

}  // namespace pyops::cuda
