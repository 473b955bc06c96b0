// 32 lanes that run together as far as they can.
//
// Each lane has a program counter; lanes with the same one form a group, and groups take turns (independent
// thread scheduling, as GPUs have it since Volta). An instruction that needs other lanes waits until they
// come.
#pragma once

#include <bit>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "program.h"

namespace ptx {

struct Block;

// How the lanes of a T are kept.
template <class T>
using Word = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

struct AsyncCopy {
  uint32_t lane;
  uint64_t to;    // shared offset
  uint64_t from;  // global address
  uint32_t bytes, given;
  const Instruction* instruction;
};

struct Group {
  uint32_t pc = 0, lanes = 0;
  bool waiting = false;  // at an instruction that needs other lanes
};

struct Warp {
  enum State { kReady, kAtBarrier, kExited };

  Block* block = nullptr;
  uint32_t number = 0;
  uint8_t* registers = nullptr;
  const uint8_t* constants = nullptr;
  uint32_t* written = nullptr;  // per register: which lanes hold a value
  uint32_t existing = 0, exited = 0;
  State state = kReady;
  uint64_t ran = 0;  // instructions
  const Instruction* at_barrier = nullptr;
  uint32_t pc = 0, active = 0;  // the group that runs
  std::vector<Group> others;
  std::deque<std::vector<AsyncCopy>> copies[kLanes];  // groups of each lane, the last one open
  const Instruction* current = nullptr;

  template <class T>
  const Word<T>* in(const Operand& o) const {
    return reinterpret_cast<const Word<T>*>((o.constant ? constants : registers) + o.offset);
  }
  template <class T>
  Word<T>* out(const Operand& o) {
    return reinterpret_cast<Word<T>*>(registers + o.offset);
  }
  uint32_t predicate(const Operand& o) const {
    const uint32_t mask = *reinterpret_cast<const uint32_t*>((o.constant ? constants : registers) + o.offset);
    return o.negated ? ~mask : mask;
  }
  uint32_t is_written(const Operand& o) const { return written[o.register_]; }

  // For lanes in `mask`: the register now holds a value, or, where not in `good`, still none.
  void note(const Operand& o, uint32_t mask, uint32_t good) {
    uint32_t& w = written[o.register_];
    w = (w & ~mask) | (good & mask);
  }

  void set_predicate(const Operand& o, uint32_t mask, uint32_t value, uint32_t good) {
    if (o.register_ == 0) return;  // the sink `_`
    uint32_t& p = *reinterpret_cast<uint32_t*>(registers + o.offset);
    p = (p & ~mask) | (value & mask);
    note(o, mask, good);
  }

  // Faults where a lane in `mask` has no value in `o`, which `what` is about to use.
  void need(const Operand& o, uint32_t mask, const char* what) const {
    if (mask & ~is_written(o)) [[unlikely]]
      uninitialised(o, mask, what);
  }
  [[noreturn]] void uninitialised(const Operand& o, uint32_t mask, const char* what) const;

  // Faults for the first lane in `lanes`.
  [[noreturn]] void fail(uint32_t lanes, const std::string& what) const;

  // True when every lane in `needed` is here. Else the group will wait, and the caller returns at once.
  bool gather(uint32_t needed, uint32_t mask);

  void branch(uint32_t taken, uint32_t mask, uint32_t target);
  void exit(uint32_t mask);

  // Runs until the warp has to wait for others, or for `steps` instructions; returns how many it ran.
  uint64_t run(uint64_t steps);

 private:
  void settle(bool choose);
  void next_group();
};

inline int first_lane(uint32_t mask) { return std::countr_zero(mask); }

}  // namespace ptx
