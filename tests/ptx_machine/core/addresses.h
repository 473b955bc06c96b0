// Where an access goes: whether it may, and what a profiler would count of it.
#pragma once

#include "operations.h"

namespace ptx {

struct Addresses {
  uint64_t lane[kLanes];
};

// Of base register + offset, in `mask`; lanes outside it get the first lane's.
Addresses addresses(const Warp& w, const Instruction& i, const Operand& base, uint32_t mask);

void check_alignment(const Warp& w, const Addresses& a, uint32_t mask, uint64_t bytes);

// Sorts out the space, checks the access, counts it and returns where it goes: global or shared memory.
Space prepare(Warp& w, Space space, bool is_store, Addresses& a, uint32_t mask, uint64_t bytes);

// For cp.async: that a lane may read those bytes of global memory; and what a profiler would count.
void check_copied(Warp& w, int lane, uint64_t address, uint64_t bytes);
void count_copies(Warp& w, const Instruction& i, uint32_t mask);

// Of memory that a launch has found: it may have been freed since.
void forget_ranges();

// Faults because warp `other` has used the same shared memory.
[[noreturn]] void race(const Warp& w, int lane, int other, const char* what);

}  // namespace ptx
