// Integers and bits, lane by lane.
#include "numbers/numbers.h"
#include "operations.h"

namespace ptx {
namespace {

using namespace numbers;

template <class T>
void add_type(Table& t, const std::string& type) {
  using U = std::make_unsigned_t<T>;
  const auto set = [&](const std::string& name, const Operation& operation) {
    t[name + "." + type] = operation;
  };
  constexpr Class kClass = Class::kInteger;
  set("add", lanes<[](T a, T b) { return wrapping_add(a, b); }>(kClass));
  set("sub", lanes<[](U a, U b) { return static_cast<U>(a - b); }>(kClass));
  set("mul.lo", lanes<[](T a, T b) { return mul_lo(a, b); }>(kClass));
  set("mul.hi", lanes<[](T a, T b) { return mul_hi(a, b); }>(kClass));
  set("mad.lo", lanes<[](T a, T b, T c) { return wrapping_add(mul_lo(a, b), c); }>(kClass));
  set("mad.hi", lanes<[](T a, T b, T c) { return mad_hi(a, b, c); }>(kClass));
  set("div", lanes<[](T a, T b) { return div_int(a, b); }>(kClass));
  set("rem", lanes<[](T a, T b) { return rem_int(a, b); }>(kClass));
  set("min", lanes<[](T a, T b) { return min_int(a, b); }>(kClass));
  set("max", lanes<[](T a, T b) { return max_int(a, b); }>(kClass));
  set("shr", lanes<[](T a, uint32_t b) { return shr(a, b); }>(kClass));
  set("sad", lanes<[](T a, T b, T c) { return sad(a, b, c); }>(kClass));
  if constexpr (std::is_signed_v<T>) {
    set("abs", lanes<[](T a) { return abs_int(a); }>(kClass));
    set("neg", lanes<[](U a) { return static_cast<U>(0 - a); }>(kClass));
  }
  if constexpr (sizeof(T) < 8) {
    using W = typename Wider<T>::type;
    set("mul.wide", lanes<[](T a, T b) { return mul_wide(a, b); }>(kClass));
    set("mad.wide", lanes<[](T a, T b, W c) { return wrapping_add(mul_wide(a, b), c); }>(kClass));
  }
  if constexpr (sizeof(T) >= 4) {
    set("bfe", lanes<[](T a, uint32_t b, uint32_t c) { return bfe(a, b, c); }>(kClass));
    set("bfind", lanes<[](T a) { return bfind<false>(a); }>(kClass));
    set("bfind.shiftamt", lanes<[](T a) { return bfind<true>(a); }>(kClass));
  }
  if constexpr (sizeof(T) == 4) {
    set("mul24.lo", lanes<[](T a, T b) { return mul24_lo(a, b); }>(kClass));
    set("mul24.hi", lanes<[](T a, T b) { return mul24_hi(a, b); }>(kClass));
  }
}

template <Compare kCompare, class T>
void add_comparison(Table& t, const std::string& name) {
  t["setp." + name] = lanes<[](T a, T b) { return compare<kCompare>(a, b); }>(Class::kInteger);
}

template <class T>
void add_comparisons(Table& t, const std::string& type) {
  add_comparison<Compare::eq, T>(t, "eq." + type);
  add_comparison<Compare::ne, T>(t, "ne." + type);
  add_comparison<Compare::lt, T>(t, "lt." + type);
  add_comparison<Compare::le, T>(t, "le." + type);
  add_comparison<Compare::gt, T>(t, "gt." + type);
  add_comparison<Compare::ge, T>(t, "ge." + type);
  if (type[0] != 'u') return;
  add_comparison<Compare::lt, T>(t, "lo." + type);
  add_comparison<Compare::le, T>(t, "ls." + type);
  add_comparison<Compare::gt, T>(t, "hi." + type);
  add_comparison<Compare::ge, T>(t, "hs." + type);
}

template <class U>
void add_bits(Table& t, const std::string& type) {
  const auto set = [&](const std::string& name, const Operation& operation) {
    t[name + "." + type] = operation;
  };
  constexpr Class kClass = Class::kInteger;
  set("and", lanes<[](U a, U b) { return static_cast<U>(a & b); }>(kClass));
  set("or", lanes<[](U a, U b) { return static_cast<U>(a | b); }>(kClass));
  set("xor", lanes<[](U a, U b) { return static_cast<U>(a ^ b); }>(kClass));
  set("not", lanes<[](U a) { return static_cast<U>(~a); }>(kClass));
  set("cnot", lanes<[](U a) { return static_cast<U>(a == 0); }>(kClass));
  set("shl", lanes<[](U a, uint32_t b) { return shl(a, b); }>(kClass));
  set("shr", lanes<[](U a, uint32_t b) { return shr(a, b); }>(kClass));
  add_comparison<Compare::eq, U>(t, "eq." + type);
  add_comparison<Compare::ne, U>(t, "ne." + type);
  if constexpr (sizeof(U) >= 4) {
    set("popc", lanes<[](U a) { return popc(a); }>(kClass));
    set("clz", lanes<[](U a) { return clz(a); }>(kClass));
    set("brev", lanes<[](U a) { return brev(a); }>(kClass));
    set("bfi", lanes<[](U a, U b, uint32_t c, uint32_t d) { return bfi(a, b, c, d); }>(kClass));
  }
}

template <Permute kMode>
Operation permute() {
  return lanes<[](uint32_t a, uint32_t b, uint32_t c) { return prmt<kMode>(a, b, c); }>(Class::kInteger);
}

}  // namespace

void add_integer_operations(Table& t) {
  add_type<uint16_t>(t, "u16");
  add_type<int16_t>(t, "s16");
  add_type<uint32_t>(t, "u32");
  add_type<int32_t>(t, "s32");
  add_type<uint64_t>(t, "u64");
  add_type<int64_t>(t, "s64");
  add_comparisons<uint16_t>(t, "u16");
  add_comparisons<int16_t>(t, "s16");
  add_comparisons<uint32_t>(t, "u32");
  add_comparisons<int32_t>(t, "s32");
  add_comparisons<uint64_t>(t, "u64");
  add_comparisons<int64_t>(t, "s64");
  add_bits<uint16_t>(t, "b16");
  add_bits<uint32_t>(t, "b32");
  add_bits<uint64_t>(t, "b64");
  using U = uint32_t;
  constexpr Class kClass = Class::kInteger;
  t["add.sat.s32"] = lanes<[](int32_t a, int32_t b) { return add_sat(a, b); }>(kClass);
  t["sub.sat.s32"] = lanes<[](int32_t a, int32_t b) { return sub_sat(a, b); }>(kClass);
  t["shf.l.wrap.b32"] = lanes<[](U a, U b, U c) { return shf_l<true>(a, b, c); }>(kClass);
  t["shf.l.clamp.b32"] = lanes<[](U a, U b, U c) { return shf_l<false>(a, b, c); }>(kClass);
  t["shf.r.wrap.b32"] = lanes<[](U a, U b, U c) { return shf_r<true>(a, b, c); }>(kClass);
  t["shf.r.clamp.b32"] = lanes<[](U a, U b, U c) { return shf_r<false>(a, b, c); }>(kClass);
  t["lop3.b32"] = lanes<[](U a, U b, U c, U table) { return lop3(a, b, c, table); }>(kClass);
  t["prmt.b32"] = permute<Permute::index>();
  t["prmt.b32.f4e"] = permute<Permute::f4e>();
  t["prmt.b32.b4e"] = permute<Permute::b4e>();
  t["prmt.b32.rc8"] = permute<Permute::rc8>();
  t["prmt.b32.ecl"] = permute<Permute::ecl>();
  t["prmt.b32.ecr"] = permute<Permute::ecr>();
  t["prmt.b32.rc16"] = permute<Permute::rc16>();
  t["bmsk.clamp.b32"] = lanes<[](U a, U b) { return bmsk<false>(a, b); }>(kClass);
  t["bmsk.wrap.b32"] = lanes<[](U a, U b) { return bmsk<true>(a, b); }>(kClass);
  t["dp4a.s32.s32"] = lanes<[](U a, U b, U c) { return dp4a<int8_t, int8_t>(a, b, c); }>(kClass);
  t["dp4a.u32.u32"] = lanes<[](U a, U b, U c) { return dp4a<uint8_t, uint8_t>(a, b, c); }>(kClass);
}

}  // namespace ptx
