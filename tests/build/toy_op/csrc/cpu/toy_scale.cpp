// A tensor times a number, on the CPU.
#include "binding/toy_scale.h"

#include "cpu/runtime/elementwise.h"
#include "cpu/runtime/output_cache.h"

namespace pyops::cpu {
namespace {

Tensor toy_scale(Tensor input, double factor) {
  Tensor output = new_output_like(input);
  dispatch_toy_scale(input, factor, "toy_scale", [&](auto tag, const auto& formula) {
    using T = decltype(tag);
    elementwise(input.numel(), 1, formula, mutable_data<T>(output), data<T>(input));
  });
  return output;
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) { m.impl("toy_scale", TORCH_BOX(&pyops::cpu::toy_scale)); }
