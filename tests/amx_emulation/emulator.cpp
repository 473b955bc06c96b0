#include "emulator.h"

#include <ucontext.h>

#include <cmath>
#include <cstring>

namespace amx {
namespace {

constexpr int kTiles = 8, kMostRows = 16, kMostBytes = 64;

struct State {
  bool configured;
  int rows[kTiles], bytes[kTiles];
  alignas(64) uint8_t data[kTiles][kMostRows][kMostBytes];
  Counts counts;
  const char* error;
};

State& state() {
  static thread_local State one;
  return one;
}

void fail(const char* what) {
  if (state().error == nullptr) state().error = what;
}

// ---- decoding ---------------------------------------------------------------------------------------------

uint64_t register_value(const ucontext_t& context, int number) {
  constexpr int kPlaces[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                             REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return static_cast<uint64_t>(context.uc_mcontext.gregs[kPlaces[number]]);
}

struct Instruction {
  int prefix;  // 0: none, 1: 66, 2: F3, 3: F2
  int opcode;
  bool in_memory;
  int reg, rm, third;  // operands
  uint8_t* address;
  int64_t stride;  // from row to row
  bool has_index;
  int length;
};

int32_t read32(const uint8_t* from) {
  int32_t value;
  memcpy(&value, from, sizeof(value));
  return value;
}

// VEX with three bytes, opcode map 0F38, W0, 128 bits: all that tiles have.
bool decode(const ucontext_t& context, Instruction& found) {
  const auto* const code = reinterpret_cast<const uint8_t*>(context.uc_mcontext.gregs[REG_RIP]);
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84) != 0) return false;
  const int reg_high = (~code[1] >> 7 & 1) << 3, index_high = (~code[1] >> 6 & 1) << 3;
  const int base_high = (~code[1] >> 5 & 1) << 3;
  const int mod = code[4] >> 6, rm = code[4] & 7;
  found = {code[2] & 3,    code[3],
           mod != 3,       (code[4] >> 3 & 7) | reg_high,
           rm | base_high, ~code[2] >> 3 & 15,
           nullptr,        0,
           false,          5};
  if (mod == 3) return true;
  int at = 5;
  uint64_t address = 0;
  bool has_base = true;
  int base = rm;
  if (rm == 4) {
    const int sib = code[at++], index = (sib >> 3 & 7) | index_high;
    base = sib & 7;
    found.has_index = index != 4;
    if (found.has_index) found.stride = static_cast<int64_t>(register_value(context, index) << (sib >> 6));
  }
  const bool relative = rm == 5 && mod == 0;
  if (base == 5 && mod == 0) has_base = false;
  if (has_base) address = register_value(context, base | base_high);
  if (mod == 1) {
    address += static_cast<int8_t>(code[at++]);
  } else if (mod == 2 || !has_base) {
    address += read32(code + at);
    at += 4;
  }
  if (relative) address += reinterpret_cast<uint64_t>(code + at);
  found.address = reinterpret_cast<uint8_t*>(address);
  found.length = at;
  return true;
}

// ---- the instructions -------------------------------------------------------------------------------------

bool in_use(int tile) {
  const bool fine = tile < kTiles && state().configured && state().rows[tile] > 0 && state().bytes[tile] > 0;
  if (!fine) fail("a tile that is not configured");
  return fine;
}

void configure(const uint8_t* from) {
  State& s = state();
  if (s.configured) fail("tiles configured that were in use");
  if (from[0] != 1) fail("a palette other than 1");
  for (int i = 1; i < 16; ++i) {
    if (from[i] != 0) fail("reserved bytes of the configuration that are not 0");
  }
  s.configured = true;
  for (int tile = 0; tile < kTiles; ++tile) {
    s.bytes[tile] = from[16 + 2 * tile] | from[17 + 2 * tile] << 8;
    s.rows[tile] = from[48 + tile];
    if (s.bytes[tile] > kMostBytes || s.rows[tile] > kMostRows) fail("a tile larger than tiles are");
  }
  memset(s.data, 0, sizeof(s.data));
  ++s.counts.configured;
}

void release() {
  state().configured = false;
  ++state().counts.released;
}

void zero(int tile) {
  if (!in_use(tile)) return;
  memset(state().data[tile], 0, sizeof(state().data[tile]));
  ++state().counts.zeroed;
}

void load(int tile, const Instruction& i) {
  if (!in_use(tile)) return;
  memset(state().data[tile], 0, sizeof(state().data[tile]));
  for (int row = 0; row < state().rows[tile]; ++row) {
    memcpy(state().data[tile][row], i.address + row * i.stride, state().bytes[tile]);
  }
  ++state().counts.loaded;
}

void store(int tile, const Instruction& i) {
  if (!in_use(tile)) return;
  for (int row = 0; row < state().rows[tile]; ++row) {
    memcpy(i.address + row * i.stride, state().data[tile][row], state().bytes[tile]);
  }
  ++state().counts.stored;
}

float without_subnormals(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

// Element `index` of a row of bfloat16.
float element(const uint8_t* row, int index) {
  uint16_t half;
  memcpy(&half, row + 2 * index, sizeof(half));
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  memcpy(&x, &bits, sizeof(x));
  return without_subnormals(x);
}

// Intel's description of TDPBF16PS: the terms of even and of odd number are summed apart, then together, and
// to the tile last; no step but these rounds, and none has a subnormal result.
void multiply(int c, int a, int b) {
  if (!in_use(c) || !in_use(a) || !in_use(b)) return;
  State& s = state();
  if (c == a || c == b || a == b) fail("a tile that is two operands");
  if (s.rows[a] != s.rows[c] || s.bytes[a] / 4 != s.rows[b] || s.bytes[b] != s.bytes[c]) {
    fail("tiles that do not fit together");
  }
  for (int row = 0; row < s.rows[c]; ++row) {
    for (int column = 0; column < s.bytes[c] / 4; ++column) {
      float sums[2] = {0, 0};
      for (int pair = 0; pair < s.bytes[a] / 4; ++pair) {
        for (int j = 0; j < 2; ++j) {
          const float x = element(s.data[a][row], 2 * pair + j);
          const float y = element(s.data[b][pair], 2 * column + j);
          sums[j] = without_subnormals(std::fma(x, y, sums[j]));
        }
      }
      float before;
      memcpy(&before, s.data[c][row] + 4 * column, sizeof(before));
      const float after =
          without_subnormals(without_subnormals(before) + without_subnormals(sums[0] + sums[1]));
      memcpy(s.data[c][row] + 4 * column, &after, sizeof(after));
    }
  }
  ++s.counts.multiplied;
}

bool carry_out(const Instruction& i) {
  const int kind = i.opcode << 4 | i.prefix;
  switch (kind) {
    case 0x490:
      if (i.reg != 0) return false;
      i.in_memory ? configure(i.address) : release();
      return true;
    case 0x493:
      if (i.in_memory || i.rm != 0) return false;
      return zero(i.reg), true;
    case 0x4b3:
    case 0x4b2:
      if (!i.in_memory) return false;
      i.opcode == 0x4b && i.prefix == 3 ? load(i.reg, i) : store(i.reg, i);
      return true;
    case 0x5c2:
      if (i.in_memory) return false;
      return multiply(i.reg, i.rm, i.third), true;
    default:
      return false;
  }
}

void handle(int, siginfo_t*, void* raw) {
  auto& context = *static_cast<ucontext_t*>(raw);
  Instruction found;
  if (decode(context, found) && carry_out(found)) {
    context.uc_mcontext.gregs[REG_RIP] += found.length;
    return;
  }
  signal(SIGILL, SIG_DFL);  // no instruction of ours: the process ends by it
}

}  // namespace

Emulation::Emulation() {
  state().counts = {};
  state().error = nullptr;
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, &before_);
}

Emulation::~Emulation() { sigaction(SIGILL, &before_, nullptr); }

const Counts& Emulation::counts() const { return state().counts; }

std::string Emulation::error() const {
  if (state().error != nullptr) return state().error;
  return state().configured ? "tiles left in use" : "";
}

}  // namespace amx
