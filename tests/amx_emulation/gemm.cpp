// The library's kernels for tiles, as the CPU's own tiles or their twin carry them out.
#include "cpu/gemm/bf16/gemm.h"

#include <cstring>
#include <string>

#include "cpu/gemm/bf16/pack.h"
#include "cpu/gemm/grid.h"
#include "cpu/simd/features.h"
#include "emulator.h"

namespace pyops::cpu {

// In place of features.cpp, which asks the CPU.
static CpuFeatures features;
const CpuFeatures& cpu_features() { return features; }

}  // namespace pyops::cpu

using namespace pyops;
using namespace pyops::cpu;

// out[M, N] = a @ b; strides of rows and terms. `counts` gets the instructions that were carried out for the
// CPU. Returns what was wrong with them, or "".
extern "C" __attribute__((visibility("default"))) const char* amx_gemm(
    bool twin, int64_t M, int64_t N, int64_t K, const void* a, int64_t a_row, int64_t a_depth, const void* b,
    int64_t b_row, int64_t b_depth, float* out, int64_t* counts) {
  static std::string error;
  features.amx_bf16 = !twin;
  features.amx_twin = twin;
  const amx::Emulation emulation;
  const auto nothing = [](int64_t, int64_t, int64_t, int64_t) {};
  pair_gemm(tile_pair_kernels(), M, N, K, Operand<bfloat16>{static_cast<const bfloat16*>(a), a_row, a_depth},
            Operand<bfloat16>{static_cast<const bfloat16*>(b), b_row, b_depth}, Serial{},
            StoreSums<float, decltype(nothing)>{out, N, 0.0f, nothing});
  memcpy(counts, &emulation.counts(), sizeof(amx::Counts));
  error = emulation.error();
  return error.c_str();
}
