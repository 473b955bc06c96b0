// Calls of torch's C functions. Their codes say that something failed; what torch says of it becomes the
// message, as if torch's own op had been called ("DefaultCPUAllocator: can't allocate memory", "CUDA out of
// memory", ...).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

// From torch 2.13 on; null before.
extern "C" const char* torch_exception_get_what_without_backtrace() __attribute__((weak));

namespace pyops {

[[noreturn]] __attribute__((noinline, cold)) inline void fail_as_torch(const char* call) {
  if (torch_exception_get_what_without_backtrace != nullptr) {
    throw std::runtime_error(torch_exception_get_what_without_backtrace());
  }
  const std::string text = call;
  throw std::runtime_error("torch's " + text.substr(0, text.find('(')) + " failed");
}

}  // namespace pyops

#define PYOPS_TORCH_CALL(call) ((call) == 0 ? static_cast<void>(0) : ::pyops::fail_as_torch(#call))
