// Annotations that let one header serve the host compiler and nvcc.
#pragma once

#if defined(__CUDACC__)
#define PYOPS_HD __host__ __device__ __forceinline__
#else
#define PYOPS_HD inline __attribute__((always_inline))
#endif

// Marks a pointer that no other pointer in the function aliases; without it the compiler must
// assume that every store changes the next load.
#define PYOPS_RESTRICT __restrict__

// Before a loop of a few dozen known iterations, such as a polynomial's.
#if defined(__CUDACC__)
#define PYOPS_UNROLL _Pragma("unroll")
#else
#define PYOPS_UNROLL _Pragma("GCC unroll 32")
#endif
