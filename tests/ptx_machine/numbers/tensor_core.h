// mma.sync and ldmatrix as functions of whole registers.
//
// A register of a warp is `uint32_t[32]` (or `uint64_t[32]` for f64): its lanes side by side. Fragments are
// arrays of pointers to such registers, in the order of the instruction's operand lists.
#pragma once

#include <cstdint>

namespace ptx {

enum class MmaShape { m8n8k4, m16n8k4, m16n8k8, m16n8k16 };
enum class MmaType { f16, bf16, tf32, f32, f64 };

// An instruction mma.sync.aligned.<shape>.row.col.<accumulator>.<operand>.<operand>.<accumulator>.
struct MmaForm {
  MmaShape shape;
  MmaType operand, accumulator;
};

// How many registers each operand has, C and D alike; all zero if PTX has no such form, or this machine lacks
// it: it has those of f16, bf16, tf32 and f64, except the m8n8k4 of f16.
struct MmaRegisters {
  int a, b, c;
};
MmaRegisters mma_registers(MmaForm form);

// D = A B + C. D's registers may be C's.
//
// Products are exact and summed in double, then rounded once, to nearest. Hardware's order and rounding
// inside an mma are unspecified, so that it may differ from this by rounding errors of the accumulator's
// precision. Operands of f64 follow the manual: a chain of fused multiply-adds of doubles. `form` must be a
// supported one.
void mma(MmaForm form, const uint32_t* const a[], const uint32_t* const b[], const uint32_t* const c[],
         uint32_t* const d[]);
void mma_f64(MmaForm form, const uint64_t* const a[], const uint64_t* const b[], const uint64_t* const c[],
             uint64_t* const d[]);

// The same for whether registers were ever written: bit i of a mask tells lane i's state, one mask a
// register. An element of A never written leaves its row of D so, one of B its column, one of C itself.
void mma_poison(MmaForm form, const uint32_t a_written[], const uint32_t b_written[],
                const uint32_t c_written[], uint32_t d_written[]);

// Where ldmatrix.m8n8.b16 takes a register's lower ([0]) and upper ([1]) half from: `offset` bytes behind the
// address that the lane `row_lane` gives.
struct LdmatrixSource {
  uint8_t row_lane[2], offset[2];
};

// Of destination register `matrix` (0 to 3) in `lane`.
inline LdmatrixSource ldmatrix_source(int matrix, int lane, bool transposed) {
  const int group = lane >> 2, in_group = lane & 3;
  LdmatrixSource source;
  for (int half = 0; half < 2; ++half) {
    const int row = transposed ? 2 * in_group + half : group;
    const int column = transposed ? group : 2 * in_group + half;
    source.row_lane[half] = static_cast<uint8_t>(8 * matrix + row);
    source.offset[half] = static_cast<uint8_t>(2 * column);
  }
  return source;
}

}  // namespace ptx
