// Errors of the C++ entries. A message says which function, what it expected and what it got, and not where
// on the builder's disk the check stands, as torch's STD_TORCH_CHECK would.
#pragma once

#include <sstream>
#include <stdexcept>

namespace pyops {

template <class Error, class... Parts>
[[noreturn]] __attribute__((noinline, cold)) void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}

}  // namespace pyops

// Raises RuntimeError, with the parts as its message, unless the condition holds: op, ": input must ...".
#define PYOPS_CHECK(condition, ...) \
  ((condition) ? static_cast<void>(0) : ::pyops::fail<std::runtime_error>(__VA_ARGS__))

// The same for an index out of range, for which torch raises IndexError.
#define PYOPS_CHECK_INDEX(condition, ...) \
  ((condition) ? static_cast<void>(0) : ::pyops::fail<std::out_of_range>(__VA_ARGS__))
