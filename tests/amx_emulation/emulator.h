// Carries out the instructions of Intel's Advanced Matrix Extensions on CPUs that have none: a handler of the
// signal that such a CPU raises decodes them, as the compiler made them, and does their work.
#pragma once

#include <csignal>
#include <cstdint>
#include <string>

namespace amx {

struct Counts {
  int64_t configured, released, zeroed, loaded, stored, multiplied;
};

// While there is one, instructions on tiles are carried out, on whatever thread.
class Emulation {
 public:
  Emulation();
  ~Emulation();
  Emulation(const Emulation&) = delete;
  Emulation& operator=(const Emulation&) = delete;

  // Of the calling thread, since the emulation began.
  const Counts& counts() const;
  // What was wrong first: an operand out of bounds, a tile that is not configured, tiles left in use.
  std::string error() const;

 private:
  struct sigaction before_;
};

}  // namespace amx
