// Instructions that a CPU may have beyond the variant of the library that is loaded (setup.py, CPU_FLAGS).
// They are asked for at run time; what uses them stands in translation units of its own.
#pragma once

#include <string>
#include <vector>

namespace pyops::cpu {

struct CpuFeatures {
  bool avx512_bf16;  // VDPBF16PS
  bool amx_bf16;     // tiles, and TDPBF16PS
  bool amx_float32;  // products of float32 by tiles, in parts (cpu/gemm/bf16/parts.h)
  bool amx_twin;     // tiles in software (cpu/simd/tiles.h), for tests
};

// What may be used: what the CPU and the operating system have or, where the environment variable
// PYOPS_CPU_FEATURES is set, what of it the variable names, by commas. `amx_float32`, which no machine has
// timed, and `amx_twin` have to be named. `none` names nothing. Throws for names that are unknown.
const CpuFeatures& cpu_features();

// The names of what may be used.
std::vector<std::string> cpu_feature_names();

}  // namespace pyops::cpu
