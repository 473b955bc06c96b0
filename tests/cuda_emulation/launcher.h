// What a launch of the emulated library says of itself, to the fibers of emulator.cpp or to another
// implementation that takes their place.
#pragma once

#include <cstddef>
#include <cstdint>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulation {

// What a launch may take of dynamic shared memory: without asking, and at most on every GPU that is built
// for.
constexpr size_t kDefaultSharedBytes = 48 * 1024;
constexpr size_t kLargestSharedBytes = 99 * 1024;

struct Launch {
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
  size_t max_shared_bytes = kDefaultSharedBytes;
  bool cooperative = false;
};

// A kernel by its address in the emulated library, and what it is called with: a pointer to each parameter,
// and its size.
struct KernelCall {
  const void* kernel;
  uint32_t n_arguments;
  const void* const* arguments;
  const uint32_t* argument_bytes;
};

// Another implementation of the kernels. Its functions throw nothing.
struct Launcher {
  // Null, or what was wrong; the text stays until the thread's next call.
  const char* (*run)(const Launch& launch, const KernelCall& call);
  // How many blocks run at the same time; negative where the kernel is unknown.
  int64_t (*resident_blocks)(const void* kernel, uint32_t threads, size_t shared_bytes);
};

}  // namespace emulation
