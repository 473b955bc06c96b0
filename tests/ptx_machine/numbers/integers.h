// Integer and bit instructions. Sums, products and differences wrap: use unsigned types for those of C++.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

namespace ptx::numbers {

// The type of twice the width, for the upper half of a product.
template <class T>
struct Wider;
template <>
struct Wider<uint16_t> {
  using type = uint32_t;
};
template <>
struct Wider<int16_t> {
  using type = int32_t;
};
template <>
struct Wider<uint32_t> {
  using type = uint64_t;
};
template <>
struct Wider<int32_t> {
  using type = int64_t;
};
template <>
struct Wider<uint64_t> {
  using type = unsigned __int128;
};
template <>
struct Wider<int64_t> {
  using type = __int128;
};

template <class T>
inline T mul_hi(T a, T b) {
  using W = typename Wider<T>::type;
  return static_cast<T>(static_cast<W>(a) * static_cast<W>(b) >> (8 * sizeof(T)));
}
template <class T>
inline T mul_lo(T a, T b) {
  return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
}
template <class T>
inline typename Wider<T>::type mul_wide(T a, T b) {
  using W = typename Wider<T>::type;
  return static_cast<W>(a) * static_cast<W>(b);
}
template <class T>
inline T wrapping_add(T a, T b) {
  return static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}
template <class T>
inline T mad_hi(T a, T b, T c) {
  return wrapping_add(mul_hi(a, b), c);
}
// mad.hi.sat.s32, the one integer instruction of these that saturates.
inline int32_t mad_hi_sat(int32_t a, int32_t b, int32_t c) {
  const int64_t sum = static_cast<int64_t>(mul_hi(a, b)) + c;
  const int64_t bounded = sum > INT32_MAX ? INT32_MAX : sum;
  return static_cast<int32_t>(bounded < INT32_MIN ? INT32_MIN : bounded);
}
// add.sat.s32 and sub.sat.s32.
inline int32_t add_sat(int32_t a, int32_t b) {
  const int64_t sum = static_cast<int64_t>(a) + b;
  const int64_t bounded = sum > INT32_MAX ? INT32_MAX : sum;
  return static_cast<int32_t>(bounded < INT32_MIN ? INT32_MIN : bounded);
}
inline int32_t sub_sat(int32_t a, int32_t b) {
  const int64_t difference = static_cast<int64_t>(a) - b;
  const int64_t bounded = difference > INT32_MAX ? INT32_MAX : difference;
  return static_cast<int32_t>(bounded < INT32_MIN ? INT32_MIN : bounded);
}

// mul24.lo and mul24.hi of the low 24 bits: bits 31..0 and 47..16 of the product.
template <class T>
inline typename Wider<T>::type mul24_product(T a, T b) {
  static_assert(sizeof(T) == 4, "mul24 has 32-bit operands");
  const T x = static_cast<T>(static_cast<uint32_t>(a) << 8) >> 8;
  const T y = static_cast<T>(static_cast<uint32_t>(b) << 8) >> 8;
  return mul_wide(x, y);
}
template <class T>
inline T mul24_lo(T a, T b) {
  return static_cast<T>(mul24_product(a, b));
}
template <class T>
inline T mul24_hi(T a, T b) {
  return static_cast<T>(mul24_product(a, b) >> 16);
}

// Division by zero gives an unspecified value in PTX and never traps: all ones here, and for rem the
// dividend. The least signed number by -1 wraps.
template <class T>
inline T div_int(T a, T b) {
  if (b == 0) return static_cast<T>(~T(0));
  if (std::is_signed<T>::value && b == static_cast<T>(-1))
    return static_cast<T>(0 - static_cast<uint64_t>(a));
  return static_cast<T>(a / b);
}
template <class T>
inline T rem_int(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed<T>::value && b == static_cast<T>(-1)) return 0;
  return static_cast<T>(a % b);
}

template <class T>
inline T min_int(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max_int(T a, T b) {
  return a < b ? b : a;
}
template <class T>
inline T abs_int(T a) {
  return a < 0 ? static_cast<T>(0 - static_cast<uint64_t>(a)) : a;
}

// sad d, a, b, c: c + |a - b|.
template <class T>
inline T sad(T a, T b, T c) {
  const uint64_t x = static_cast<uint64_t>(a), y = static_cast<uint64_t>(b);
  return static_cast<T>(static_cast<uint64_t>(c) + (a < b ? y - x : x - y));
}

// Shifts by the width or more give 0, or the sign for shr of a signed type.
template <class T>
inline T shl(T a, uint32_t amount) {
  constexpr uint32_t width = 8 * sizeof(T);
  const uint64_t shifted = static_cast<uint64_t>(a) << (amount & 63);
  return amount < width ? static_cast<T>(shifted) : T(0);
}
template <class T>
inline T shr(T a, uint32_t amount) {
  constexpr uint32_t width = 8 * sizeof(T);
  const uint32_t bounded = amount < width ? amount : width - 1;
  const T shifted = static_cast<T>(a >> bounded);
  return std::is_signed<T>::value || amount < width ? shifted : T(0);
}

// shf d, a, b, c: the pair {b, a} shifted; .l keeps its upper word and .r its lower one.
template <bool Wrap>
inline uint32_t funnel_amount(uint32_t c) {
  return Wrap ? c & 31 : (c < 32 ? c : 32);
}
template <bool Wrap>
inline uint32_t shf_l(uint32_t a, uint32_t b, uint32_t c) {
  const uint64_t pair = static_cast<uint64_t>(b) << 32 | a;
  return static_cast<uint32_t>(pair << funnel_amount<Wrap>(c) >> 32);
}
template <bool Wrap>
inline uint32_t shf_r(uint32_t a, uint32_t b, uint32_t c) {
  const uint64_t pair = static_cast<uint64_t>(b) << 32 | a;
  return static_cast<uint32_t>(pair >> funnel_amount<Wrap>(c));
}

// bfe d, a, position, length. Signed types extend the field's sign, or a's where the field runs past its end.
template <class T>
inline T bfe(T a, uint32_t b, uint32_t c) {
  using U = std::make_unsigned_t<T>;
  constexpr uint32_t width = 8 * sizeof(T);
  const uint32_t position = b & 255, length = c & 255;
  const uint32_t end = position + length < width ? position + length : width;
  const T field = shr(shl(a, width - end), width - end);  // the bits below the field's end, extended
  const T moved = shr(field, position);
  const U past = std::is_signed<T>::value ? static_cast<U>(shr(a, width)) : U(0);
  const T value = position < width ? moved : static_cast<T>(past);
  return length == 0 ? T(0) : value;
}

// bfi d, a, b, position, length: a's low bits put into b.
template <class U>
inline U bfi(U a, U b, uint32_t c, uint32_t d) {
  static_assert(std::is_unsigned<U>::value, "bfi has untyped operands");
  const uint32_t position = c & 255, length = d & 255;
  const U mask = shl(static_cast<U>(~shl(static_cast<U>(~U(0)), length)), position);
  return (shl(a, position) & mask) | (b & ~mask);
}

// bmsk: `length` ones from `position` on; both bounded to 32, or taken modulo 32.
template <bool Wrap>
inline uint32_t bmsk(uint32_t position, uint32_t length) {
  return shl(~shl(~0u, funnel_amount<Wrap>(length)), funnel_amount<Wrap>(position));
}

inline uint32_t brev(uint32_t x) {
  x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
  x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
  x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
  return __builtin_bswap32(x);
}
inline uint64_t brev(uint64_t x) {
  return static_cast<uint64_t>(brev(static_cast<uint32_t>(x))) << 32 | brev(static_cast<uint32_t>(x >> 32));
}
inline uint32_t clz(uint32_t x) { return x == 0 ? 32 : __builtin_clz(x); }
inline uint32_t clz(uint64_t x) { return x == 0 ? 64 : __builtin_clzll(x); }
inline uint32_t popc(uint32_t x) { return __builtin_popcount(x); }
inline uint32_t popc(uint64_t x) { return __builtin_popcountll(x); }

// bfind: the position of the highest bit that differs from the sign (of an unsigned number: that is set), all
// ones if there is none. With ShiftAmount, the shift that would bring it to the top.
template <bool ShiftAmount, class T>
inline uint32_t bfind(T a) {
  using U = std::make_unsigned_t<T>;
  const U x = static_cast<U>(a < 0 ? ~a : a);
  const uint32_t position = 8 * sizeof(T) - 1 - clz(x);
  return x == 0 ? ~0u : (ShiftAmount ? clz(x) : position);
}

// prmt d, a, b, control. In every mode but the first, control's low two bits choose one of four permutations.
enum class Permute { index, f4e, b4e, rc8, ecl, ecr, rc16 };

template <Permute P>
inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t control) {
  constexpr uint16_t choices[7][4] = {
      {0, 0, 0, 0},                      // index: unused
      {0x3210, 0x4321, 0x5432, 0x6543},  // f4e: four from here on
      {0x5670, 0x6701, 0x7012, 0x0123},  // b4e: four backwards
      {0x0000, 0x1111, 0x2222, 0x3333},  // rc8: replicate a byte
      {0x3210, 0x3211, 0x3222, 0x3333},  // ecl: clamp at the left edge
      {0x0000, 0x1110, 0x2210, 0x3210},  // ecr: clamp at the right edge
      {0x1010, 0x3232, 0x1010, 0x3232},  // rc16: replicate 16 bits
  };
  const uint32_t selectors = P == Permute::index ? control : choices[static_cast<int>(P)][control & 3];
  const uint64_t source = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t selector = selectors >> (4 * i) & 15;
    const uint32_t byte = source >> (8 * (selector & 7)) & 255;
    const uint32_t sign = byte & 128 ? 255 : 0;
    result |= (selector & 8 ? sign : byte) << (8 * i);
  }
  return result;
}

// lop3 d, a, b, c, table: bit (4a + 2b + c) of the table, at every bit position.
inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (uint32_t i = 0; i < 8; ++i) {
    const uint32_t here = (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    result |= table >> i & 1 ? here : 0;
  }
  return result;
}

// dp4a d, a, b, c: c plus the product of four pairs of bytes, each operand's signed or not.
template <class A, class B>
inline uint32_t dp4a(uint32_t a, uint32_t b, uint32_t c) {
  static_assert(sizeof(A) == 1 && sizeof(B) == 1, "dp4a has operands of bytes");
  for (int i = 0; i < 32; i += 8) c += static_cast<uint32_t>(static_cast<A>(a >> i) * static_cast<B>(b >> i));
  return c;
}

}  // namespace ptx::numbers
