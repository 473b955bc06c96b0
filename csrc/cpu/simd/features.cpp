#include "cpu/simd/features.h"

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <cstdlib>

#include "binding/tensor.h"

#if defined(__AVX512F__)
#include <cpuid.h>
#endif
#if defined(__AVX512F__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pyops::cpu {
namespace {

struct Named {
  const char* name;
  bool CpuFeatures::* feature;
};
constexpr Named kAll[] = {
    {"avx512_bf16", &CpuFeatures::avx512_bf16},
    {"amx_bf16", &CpuFeatures::amx_bf16},
    {"amx_float32", &CpuFeatures::amx_float32},
    {"amx_twin", &CpuFeatures::amx_twin},
};

#if defined(__AVX512F__)

// The tiles' 8 KiB are not saved at a switch of threads before a process has asked for it (Linux: "Using
// XSTATE features in user space applications").
bool system_grants_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  constexpr uint64_t kTileState = 3u << 17;  // configuration and data
  uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kTileState) == kTileState && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

CpuFeatures detect() {
  constexpr uint32_t kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // leaf 7, EDX
  constexpr uint32_t kAvx512Bf16 = 1u << 5;                     // leaf 7.1, EAX
  uint32_t a = 0, b = 0, c = 0, d = 0, a1 = 0, b1 = 0, c1 = 0, d1 = 0;
  __get_cpuid_count(7, 0, &a, &b, &c, &d);
  if (a >= 1) __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1);
  const bool tiles = (d & kAmxTile) && (d & kAmxBf16) && system_grants_tiles();
  return {(a1 & kAvx512Bf16) != 0, tiles, true, true};
}

#else

CpuFeatures detect() { return {}; }

#endif

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> names;
  for (size_t begin = 0; begin < list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    names.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return names;
}

CpuFeatures chosen() {
  const CpuFeatures here = detect();
  CpuFeatures used = here;
  used.amx_float32 = used.amx_twin = false;
  const char* const wanted = std::getenv("PYOPS_CPU_FEATURES");
  if (wanted == nullptr) return used;
  used = {};
  std::string known;
  for (const Named& one : kAll) known += std::string(one.name) + ", ";
  for (const std::string& name : split(wanted)) {
    bool found = name == "none";
    for (const Named& one : kAll) {
      if (name != one.name) continue;
      used.*one.feature = here.*one.feature;
      found = true;
    }
    PYOPS_CHECK(found, "the environment variable PYOPS_CPU_FEATURES must name, by commas, some of ", known,
                "or none, got '", name, "' in '", wanted, "'");
  }
  used.amx_float32 = used.amx_float32 && (used.amx_bf16 || used.amx_twin);
  return used;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = chosen();
  return features;
}

std::vector<std::string> cpu_feature_names() {
  std::vector<std::string> names;
  for (const Named& one : kAll) {
    if (cpu_features().*one.feature) names.push_back(one.name);
  }
  return names;
}

}  // namespace pyops::cpu

// No tensor says which device is meant, so it stands under the key that needs none.
STABLE_TORCH_LIBRARY_IMPL(pyops, CompositeExplicitAutograd, m) {
  m.impl("cpu_features", TORCH_BOX(&pyops::cpu::cpu_feature_names));
}
