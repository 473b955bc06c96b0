// The functions of numbers.h and tensor_core.h behind C functions, for tests/backends/test_ptx_numbers.py.
#include "numbers/numbers.h"

#include <cstring>

#include "numbers/tensor_core.h"

namespace {

using namespace ptx::numbers;
using R = Rounding;
using f32 = float;
using f64 = double;
using u8 = uint8_t;
using s8 = int8_t;
using u16 = uint16_t;
using s16 = int16_t;
using u32 = uint32_t;
using s32 = int32_t;
using u64 = uint64_t;
using s64 = int64_t;

// Applies a function to arrays, as the interpreter does to registers.
struct Entry {
  const char* name;
  void (*run)(const void* const* operands, void* results, int64_t n);
};

template <class D, class... A, class F>
inline void each(F function, const A*... operands, void* results, int64_t n) {
  D* const d = static_cast<D*>(results);
  for (int64_t i = 0; i < n; ++i) d[i] = static_cast<D>(function(operands[i]...));
}

#define OF1(NAME, D, A, FUNCTION)                                                    \
  {NAME "." #D "." #A, [](const void* const* p, void* d, int64_t n) {                \
     each<D, A>([](A a) { return FUNCTION(a); }, static_cast<const A*>(p[0]), d, n); \
   }}

#define OF2(NAME, D, A, B, FUNCTION)                                                     \
  {NAME "." #D "." #A, [](const void* const* p, void* d, int64_t n) {                    \
     each<D, A, B>([](A a, B b) { return FUNCTION(a, b); }, static_cast<const A*>(p[0]), \
                   static_cast<const B*>(p[1]), d, n);                                   \
   }}

#define OF3(NAME, D, A, B, C, FUNCTION)                                                             \
  {NAME "." #D "." #A, [](const void* const* p, void* d, int64_t n) {                               \
     each<D, A, B, C>([](A a, B b, C c) { return FUNCTION(a, b, c); }, static_cast<const A*>(p[0]), \
                      static_cast<const B*>(p[1]), static_cast<const C*>(p[2]), d, n);              \
   }}

#define ARITHMETIC(F, MODE)                                                                               \
  OF2("add." #MODE, F, F, F, add<R::MODE>), OF2("sub." #MODE, F, F, F, sub<R::MODE>),                     \
      OF2("mul." #MODE, F, F, F, mul<R::MODE>), OF2("div." #MODE, F, F, F, div<R::MODE>),                 \
      OF3("fma." #MODE, F, F, F, F, fma<R::MODE>), OF1("sqrt." #MODE, F, F, ptx::numbers::sqrt<R::MODE>), \
      OF1("rcp." #MODE, F, F, rcp<R::MODE>), OF1("cvt." #MODE "i", F, F, integral<R::MODE>)

#define TO_INTEGER(I, F, MODE) OF1("cvt." #MODE "i", I, F, (to_integer<I, R::MODE>))

#define TO_SMALL_INTEGERS(F, MODE) \
  TO_INTEGER(u8, F, MODE), TO_INTEGER(s8, F, MODE), TO_INTEGER(u16, F, MODE), TO_INTEGER(s16, F, MODE)

#define TO_INTEGERS(F, MODE) \
  TO_INTEGER(u32, F, MODE), TO_INTEGER(s32, F, MODE), TO_INTEGER(u64, F, MODE), TO_INTEGER(s64, F, MODE)

#define FROM_INTEGER(I, MODE)                                  \
  OF1("cvt." #MODE, f32, I, (from_integer<f32, R::MODE>)),     \
      OF1("cvt." #MODE, f64, I, (from_integer<f64, R::MODE>)), \
      OF1("cvt.f16." #MODE, u16, I, (half_from_integer<F16, R::MODE>))

#define CONVERSIONS(MODE)                                                                                   \
  OF1("cvt." #MODE, f32, f64, narrow<R::MODE>), OF1("cvt.f16." #MODE, u16, f32, (half_from<F16, R::MODE>)), \
      OF1("cvt.bf16." #MODE, u16, f32, (half_from<BF16, R::MODE>)),                                         \
      OF1("cvt.f16." #MODE, u16, f64, (half_from<F16, R::MODE>)),                                           \
      OF1("cvt.bf16." #MODE, u16, f64, (half_from<BF16, R::MODE>)), FROM_INTEGER(u32, MODE),                \
      FROM_INTEGER(s32, MODE), FROM_INTEGER(u64, MODE), FROM_INTEGER(s64, MODE)

#define IN_MODE(MODE)                                                                                 \
  ARITHMETIC(f32, MODE), ARITHMETIC(f64, MODE), TO_SMALL_INTEGERS(f32, MODE), TO_INTEGERS(f32, MODE), \
      TO_INTEGERS(f64, MODE), CONVERSIONS(MODE)

#define EXTREMA(F)                                                                            \
  OF2("min", F, F, F, ptx::numbers::min), OF2("max", F, F, F, ptx::numbers::max),             \
      OF2("min.nan", F, F, F, min_nan), OF2("max.nan", F, F, F, max_nan),                     \
      OF1("abs", F, F, ptx::numbers::abs), OF1("neg", F, F, neg), OF1("sat", F, F, saturate), \
      OF2("copysign", F, F, F, ptx::numbers::copysign)

#define COMPARE(OPERATOR)                                           \
  OF2("setp." #OPERATOR, u8, f32, f32, compare<Compare::OPERATOR>), \
      OF2("setp.f16." #OPERATOR, u8, u16, u16, (half_compare<F16, Compare::OPERATOR>))

#define PAIRS2(NAME, FUNCTION) OF2(NAME, u32, u32, u32, [](u32 x, u32 y) { return pairs(FUNCTION, x, y); })

#define HALVES(TYPE, H)                                                                                      \
  PAIRS2("add." TYPE, half_add<H>), PAIRS2("sub." TYPE, half_sub<H>), PAIRS2("mul." TYPE, half_mul<H>),      \
      PAIRS2("min." TYPE, half_min<H>), PAIRS2("max." TYPE, half_max<H>),                                    \
      PAIRS2("min.nan." TYPE, half_min_nan<H>), PAIRS2("max.nan." TYPE, half_max_nan<H>),                    \
      OF3("fma." TYPE, u32, u32, u32, u32, [](u32 x, u32 y, u32 z) { return pairs(half_fma<H>, x, y, z); }), \
      OF2("cvt.rn." TYPE "x2", u32, f32, f32, (pair_from<H, R::rn>)),                                        \
      OF2("cvt.rz." TYPE "x2", u32, f32, f32, (pair_from<H, R::rz>)),                                        \
      OF1("cvt." TYPE, f32, u16, f32_from<H>), OF1("ftz." TYPE, u16, u16, half_flush<H>),                    \
      OF1("sat." TYPE, u16, u16, half_saturate<H>), OF1("tanh." TYPE, u16, u16, half_tanh<H>),               \
      OF1("ex2." TYPE, u16, u16, half_ex2<H>)

#define INTEGERS(T)                                                                                \
  OF2("mul_hi", T, T, T, mul_hi), OF3("mad_hi", T, T, T, T, mad_hi), OF2("div", T, T, T, div_int), \
      OF2("rem", T, T, T, rem_int), OF3("sad", T, T, T, T, sad), OF2("shl", T, T, u32, shl),       \
      OF2("shr", T, T, u32, shr)

#define BITS(T, U)                                                                                      \
  OF3("bfe", T, T, u32, u32, bfe), OF3("bfe", U, U, u32, u32, bfe), OF1("bfind", u32, T, bfind<false>), \
      OF1("bfind", u32, U, bfind<false>), OF1("bfind.shiftamt", u32, T, bfind<true>),                   \
      OF1("bfind.shiftamt", u32, U, bfind<true>), OF1("brev", U, U, brev), OF1("clz", u32, U, clz),     \
      OF1("popc", u32, U, popc)

const Entry kEntries[] = {
    IN_MODE(rn),
    IN_MODE(rz),
    IN_MODE(rm),
    IN_MODE(rp),
    EXTREMA(f32),
    EXTREMA(f64),
    COMPARE(eq),
    COMPARE(ne),
    COMPARE(lt),
    COMPARE(le),
    COMPARE(gt),
    COMPARE(ge),
    COMPARE(equ),
    COMPARE(neu),
    COMPARE(ltu),
    COMPARE(leu),
    COMPARE(gtu),
    COMPARE(geu),
    COMPARE(num),
    COMPARE(nan),
    HALVES("f16", F16),
    HALVES("bf16", BF16),
    INTEGERS(u16),
    INTEGERS(s16),
    INTEGERS(u32),
    INTEGERS(s32),
    INTEGERS(u64),
    INTEGERS(s64),
    BITS(s32, u32),
    BITS(s64, u64),
    OF1("ftz", f32, f32, flush),
    OF1("relu.f16", u16, u16, half_relu),
    OF1("cvt.tf32.rn", u32, f32, tf32_from_f32<R::rn>),
    OF1("cvt.tf32.rz", u32, f32, tf32_from_f32<R::rz>),
    OF1("cvt.tf32.rna", u32, f32, tf32_from_f32<R::rna>),
    OF1("ex2", f32, f32, ex2_approx),
    OF1("lg2", f32, f32, lg2_approx),
    OF1("rcp", f32, f32, rcp_approx),
    OF1("sqrt", f32, f32, sqrt_approx),
    OF1("rsqrt", f32, f32, rsqrt_approx),
    OF1("rsqrt", f64, f64, rsqrt_approx),
    OF1("sin", f32, f32, sin_approx),
    OF1("cos", f32, f32, cos_approx),
    OF1("tanh", f32, f32, tanh_approx),
    OF2("div.approx", f32, f32, f32, div_approx),
    OF2("div.full", f32, f32, f32, div_full),
    OF1("rcp.ftz", f64, f64, rcp_approx_ftz),
    OF1("rsqrt.ftz", f64, f64, rsqrt_approx_ftz),
    OF2("mul24_lo", u32, u32, u32, mul24_lo),
    OF2("mul24_hi", u32, u32, u32, mul24_hi),
    OF2("mul24_lo", s32, s32, s32, mul24_lo),
    OF2("mul24_hi", s32, s32, s32, mul24_hi),
    OF3("mad_hi_sat", s32, s32, s32, s32, mad_hi_sat),
    OF2("add_sat", s32, s32, s32, add_sat),
    OF2("sub_sat", s32, s32, s32, sub_sat),
    OF2("bmsk.clamp", u32, u32, u32, bmsk<false>),
    OF2("bmsk.wrap", u32, u32, u32, bmsk<true>),
    OF3("shf.l.clamp", u32, u32, u32, u32, shf_l<false>),
    OF3("shf.l.wrap", u32, u32, u32, u32, shf_l<true>),
    OF3("shf.r.clamp", u32, u32, u32, u32, shf_r<false>),
    OF3("shf.r.wrap", u32, u32, u32, u32, shf_r<true>),
    OF3("prmt", u32, u32, u32, u32, prmt<Permute::index>),
    OF3("prmt.f4e", u32, u32, u32, u32, prmt<Permute::f4e>),
    OF3("prmt.b4e", u32, u32, u32, u32, prmt<Permute::b4e>),
    OF3("prmt.rc8", u32, u32, u32, u32, prmt<Permute::rc8>),
    OF3("prmt.ecl", u32, u32, u32, u32, prmt<Permute::ecl>),
    OF3("prmt.ecr", u32, u32, u32, u32, prmt<Permute::ecr>),
    OF3("prmt.rc16", u32, u32, u32, u32, prmt<Permute::rc16>),
    OF3("dp4a.uu", u32, u32, u32, u32, (dp4a<u8, u8>)),
    OF3("dp4a.su", u32, u32, u32, u32, (dp4a<s8, u8>)),
    OF3("dp4a.ss", u32, u32, u32, u32, (dp4a<s8, s8>)),
};

ptx::MmaForm form_of(const int* form) {
  return {static_cast<ptx::MmaShape>(form[0]), static_cast<ptx::MmaType>(form[1]),
          static_cast<ptx::MmaType>(form[2])};
}

// Registers one behind the other, and pointers to them.
template <class Word>
void run_mma(const int* form, Word* a, Word* b, Word* c, Word* d,
             void (*function)(ptx::MmaForm, const Word* const*, const Word* const*, const Word* const*,
                              Word* const*)) {
  Word *pa[8], *pb[8], *pc[8], *pd[8];
  for (int i = 0; i < 8; ++i) pa[i] = a + 32 * i, pb[i] = b + 32 * i, pc[i] = c + 32 * i, pd[i] = d + 32 * i;
  function(form_of(form), pa, pb, pc, pd);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// 0, or 1 if there is no entry of that name.
int selftest_apply(const char* name, const void* const* operands, void* results, int64_t n) {
  for (const Entry& entry : kEntries) {
    if (std::strcmp(entry.name, name) == 0) return entry.run(operands, results, n), 0;
  }
  return 1;
}

// bfi and lop3 have more operands than the entries above.
uint32_t selftest_bfi32(uint32_t a, uint32_t b, uint32_t position, uint32_t length) {
  return bfi(a, b, position, length);
}
uint64_t selftest_bfi64(uint64_t a, uint64_t b, uint32_t position, uint32_t length) {
  return bfi(a, b, position, length);
}
uint32_t selftest_lop3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) { return lop3(a, b, c, table); }

void selftest_mma_registers(const int* form, int* counts) {
  const ptx::MmaRegisters registers = ptx::mma_registers(form_of(form));
  counts[0] = registers.a, counts[1] = registers.b, counts[2] = registers.c;
}
void selftest_mma(const int* form, uint32_t* a, uint32_t* b, uint32_t* c, uint32_t* d) {
  run_mma(form, a, b, c, d, ptx::mma);
}
void selftest_mma_f64(const int* form, uint64_t* a, uint64_t* b, uint64_t* c, uint64_t* d) {
  run_mma(form, a, b, c, d, ptx::mma_f64);
}
void selftest_mma_poison(const int* form, const uint32_t* a, const uint32_t* b, const uint32_t* c,
                         uint32_t* d) {
  ptx::mma_poison(form_of(form), a, b, c, d);
}
void selftest_ldmatrix(int matrix, int lane, int transposed, int* source) {
  const ptx::LdmatrixSource s = ptx::ldmatrix_source(matrix, lane, transposed != 0);
  for (int half = 0; half < 2; ++half)
    source[2 * half] = s.row_lane[half], source[2 * half + 1] = s.offset[half];
}
}
