// A kernel as the machine runs it: every operand is a place in a register file, every instruction a function.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ptx.h"

namespace ptx {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

struct Warp;
struct Instruction;

// Runs one instruction for the lanes in `mask`. The program counter is already past it.
using Handler = void (*)(Warp&, const Instruction&, uint32_t mask);

// Where the 32 lanes of a value lie. Values of up to 32 bits take a uint32_t per lane, wider ones a uint64_t,
// predicates one bit per lane of a single uint32_t.
struct Operand {
  uint32_t offset = 0;     // in bytes, into the warp's registers or the program's constants
  uint32_t register_ = 0;  // its number, for the masks of what has been written; 0: always written
  uint8_t bits = 0;
  bool constant = false;
  bool negated = false;
};

// What instructions are counted as.
enum class Class : uint8_t {
  kInteger,
  kFloat32,
  kFloat64,
  kHalf,
  kConvert,
  kSpecial,  // the unit for ex2, rcp, ...
  kMove,
  kControl,
  kLoadGlobal,
  kStoreGlobal,
  kLoadShared,
  kStoreShared,
  kAsyncCopy,
  kTensor,
  kWarp,  // shuffles, votes and reductions
  kBarrier,
  kAtomic,
  kFence,
  kCount,
};

struct Instruction {
  Handler run = nullptr;
  const Operand* operands = nullptr;
  const Operand* guard = nullptr;
  int64_t offset = 0;   // of an address
  uint32_t target = 0;  // of a branch
  uint32_t number = 0;  // what else a handler wants to know
  uint8_t count = 0;    // elements of a vector, registers of a fragment
  Class type = Class::kMove;
  const Statement* statement = nullptr;
};

enum Special : uint32_t {
  kTidX,
  kTidY,
  kTidZ,
  kNtidX,
  kNtidY,
  kNtidZ,
  kCtaidX,
  kCtaidY,
  kCtaidZ,
  kNctaidX,
  kNctaidY,
  kNctaidZ,
  kLaneid,
  kWarpid,
  kNwarpid,
  kLanemaskEq,
  kLanemaskLt,
  kLanemaskLe,
  kLanemaskGt,
  kLanemaskGe,
  kSpecials,
};

// Shared addresses start here: an offset that was meant for something else then is out of bounds.
constexpr uint64_t kSharedStart = 1024;
// Between shared variables, so that an overrun shows.
constexpr uint64_t kSharedGap = 128;
// Generic addresses of shared memory; no host address lies here.
constexpr uint64_t kSharedWindow = uint64_t{0x5a} << 56;

struct SharedVariable {
  uint64_t first, bytes;
};

struct Program {
  const Entry* entry = nullptr;
  std::string module;
  const std::map<int, std::string>* files = nullptr;
  std::vector<Instruction> code;
  std::deque<std::vector<Operand>> operands;
  std::vector<uint8_t> constants;
  uint32_t register_bytes = 0;
  uint32_t registers = 0;
  std::vector<SharedVariable> shared;
  uint64_t static_shared = 0;  // bytes that the variables take, without gaps
  uint64_t dynamic_first = 0;  // offset of the launch's own shared memory
  std::vector<uint64_t> parameter_offsets;
  uint64_t parameter_bytes = 0;
  bool communicates = false;     // has atomics or fences: its blocks may read what others write
  bool reads_constants = false;  // has ld.global.nc
};

class Loaded;  // api.h

// `symbols` are the module's variables in global memory, by name.
std::unique_ptr<Program> decode(const Module& module, const Entry& entry,
                                const std::map<std::string, uint64_t>& symbols);

std::string describe(const Program& program, const Statement& statement);

}  // namespace ptx
