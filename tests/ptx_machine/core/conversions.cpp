// cvt, lane by lane. A source or a destination register may be wider than its type.
#include "numbers/numbers.h"
#include "operations.h"

namespace ptx {
namespace {

using namespace numbers;

struct Names {
  const char* rounding;
  const char* whole;  // of the rounding to an integer
};
template <Rounding kR>
constexpr Names kNames = kR == Rounding::rn   ? Names{".rn", ".rni"}
                         : kR == Rounding::rz ? Names{".rz", ".rzi"}
                         : kR == Rounding::rm ? Names{".rm", ".rmi"}
                                              : Names{".rp", ".rpi"};

std::string cvt(const std::string& modifiers, const std::string& to, const std::string& from) {
  return "cvt" + modifiers + "." + to + "." + from;
}

template <class To, class From>
void add_integers(Table& t, const std::string& to, const std::string& from) {
  // A signed result that is narrower than its register is extended.
  using Kept = std::conditional_t<std::is_same_v<To, int8_t>, int32_t, To>;
  t[cvt("", to, from)] = lanes<[](From a) { return static_cast<Kept>(static_cast<To>(a)); }>(Class::kConvert);
  t[cvt(".sat", to, from)] = lanes<[](From a) {
    const __int128 low = std::numeric_limits<To>::min(), high = std::numeric_limits<To>::max();
    return static_cast<Kept>(a < low ? low : a > high ? high : static_cast<__int128>(a));
  }>(Class::kConvert);
}

template <class To>
void add_to_integer(Table& t, const std::string& to) {
  add_integers<To, uint8_t>(t, to, "u8");
  add_integers<To, int8_t>(t, to, "s8");
  add_integers<To, uint16_t>(t, to, "u16");
  add_integers<To, int16_t>(t, to, "s16");
  add_integers<To, uint32_t>(t, to, "u32");
  add_integers<To, int32_t>(t, to, "s32");
  add_integers<To, uint64_t>(t, to, "u64");
  add_integers<To, int64_t>(t, to, "s64");
}

// Between floats and an integer type.
template <Rounding kR, class I>
void add_mixed(Table& t, const std::string& integer) {
  constexpr Class kClass = Class::kConvert;
  const std::string whole = kNames<kR>.whole, rounding = kNames<kR>.rounding;
  t[cvt(whole, integer, "f32")] = lanes<[](float a) { return to_integer<I, kR>(a); }>(kClass);
  t[cvt(whole + ".ftz", integer, "f32")] = lanes<[](float a) { return to_integer<I, kR>(flush(a)); }>(kClass);
  t[cvt(whole, integer, "f64")] = lanes<[](double a) { return to_integer<I, kR>(a); }>(kClass);
  t[cvt(whole, integer, "f16")] =
      lanes<[](uint16_t a) { return to_integer<I, kR>(f32_from<F16>(a)); }>(kClass);
  t[cvt(whole, integer, "bf16")] =
      lanes<[](uint16_t a) { return to_integer<I, kR>(f32_from<BF16>(a)); }>(kClass);
  t[cvt(rounding, "f32", integer)] = lanes<[](I a) { return from_integer<float, kR>(a); }>(kClass);
  t[cvt(rounding, "f64", integer)] = lanes<[](I a) { return from_integer<double, kR>(a); }>(kClass);
  t[cvt(rounding, "f16", integer)] = lanes<[](I a) { return half_from_integer<F16, kR>(a); }>(kClass);
  t[cvt(rounding, "bf16", integer)] = lanes<[](I a) { return half_from_integer<BF16, kR>(a); }>(kClass);
}

template <Rounding kR>
void add_rounding(Table& t) {
  constexpr Class kClass = Class::kConvert;
  add_mixed<kR, uint8_t>(t, "u8");
  add_mixed<kR, int8_t>(t, "s8");
  add_mixed<kR, uint16_t>(t, "u16");
  add_mixed<kR, int16_t>(t, "s16");
  add_mixed<kR, uint32_t>(t, "u32");
  add_mixed<kR, int32_t>(t, "s32");
  add_mixed<kR, uint64_t>(t, "u64");
  add_mixed<kR, int64_t>(t, "s64");
  const std::string whole = kNames<kR>.whole, rounding = kNames<kR>.rounding;
  t[cvt(whole, "f32", "f32")] = lanes<[](float a) { return integral<kR>(a); }>(kClass);
  t[cvt(whole + ".ftz", "f32", "f32")] = lanes<[](float a) { return integral<kR>(flush(a)); }>(kClass);
  t[cvt(whole, "f64", "f64")] = lanes<[](double a) { return integral<kR>(a); }>(kClass);
  t[cvt(rounding, "f32", "f64")] = lanes<[](double a) { return narrow<kR>(a); }>(kClass);
  t[cvt(rounding + ".ftz", "f32", "f64")] = lanes<[](double a) { return flush(narrow<kR>(a)); }>(kClass);
  t[cvt(rounding, "f16", "f32")] = lanes<[](float a) { return half_from<F16, kR>(a); }>(kClass);
  t[cvt(rounding, "bf16", "f32")] = lanes<[](float a) { return half_from<BF16, kR>(a); }>(kClass);
  t[cvt(rounding + ".relu", "f16", "f32")] =
      lanes<[](float a) { return half_relu(half_from<F16, kR>(a)); }>(kClass);
  t[cvt(rounding + ".relu", "bf16", "f32")] =
      lanes<[](float a) { return half_relu(half_from<BF16, kR>(a)); }>(kClass);
  t[cvt(rounding, "f16", "f64")] = lanes<[](double a) { return half_from<F16, kR>(a); }>(kClass);
  t[cvt(rounding, "bf16", "f64")] = lanes<[](double a) { return half_from<BF16, kR>(a); }>(kClass);
  t[cvt(rounding, "f16x2", "f32")] = lanes<[](float a, float b) { return pair_from<F16, kR>(a, b); }>(kClass);
  t[cvt(rounding, "bf16x2", "f32")] =
      lanes<[](float a, float b) { return pair_from<BF16, kR>(a, b); }>(kClass);
  t[cvt(rounding, "tf32", "f32")] = lanes<[](float a) { return tf32_from_f32<kR>(a); }>(kClass);
}

}  // namespace

void add_conversions(Table& t) {
  constexpr Class kClass = Class::kConvert;
  add_to_integer<uint8_t>(t, "u8");
  add_to_integer<int8_t>(t, "s8");
  add_to_integer<uint16_t>(t, "u16");
  add_to_integer<int16_t>(t, "s16");
  add_to_integer<uint32_t>(t, "u32");
  add_to_integer<int32_t>(t, "s32");
  add_to_integer<uint64_t>(t, "u64");
  add_to_integer<int64_t>(t, "s64");
  add_rounding<Rounding::rn>(t);
  add_rounding<Rounding::rz>(t);
  add_rounding<Rounding::rm>(t);
  add_rounding<Rounding::rp>(t);
  t["cvt.rna.tf32.f32"] = lanes<[](float a) { return tf32_from_f32<Rounding::rna>(a); }>(kClass);
  t["cvt.f32.f32"] = lanes<[](float a) { return canonical(a); }>(kClass);
  t["cvt.ftz.f32.f32"] = lanes<[](float a) { return flush(canonical(a)); }>(kClass);
  t["cvt.sat.f32.f32"] = lanes<[](float a) { return saturate(a); }>(kClass);
  t["cvt.ftz.sat.f32.f32"] = lanes<[](float a) { return saturate(flush(a)); }>(kClass);
  t["cvt.sat.f64.f64"] = lanes<[](double a) { return saturate(a); }>(kClass);
  t["cvt.f64.f32"] = lanes<[](float a) { return static_cast<double>(a); }>(kClass);
  t["cvt.ftz.f64.f32"] = lanes<[](float a) { return static_cast<double>(flush(a)); }>(kClass);
  t["cvt.f32.f16"] = lanes<[](uint16_t a) { return f32_from<F16>(a); }>(kClass);
  t["cvt.ftz.f32.f16"] = lanes<[](uint16_t a) { return f32_from<F16>(a); }>(kClass);
  t["cvt.f32.bf16"] = lanes<[](uint16_t a) { return f32_from<BF16>(a); }>(kClass);
  t["cvt.f64.f16"] = lanes<[](uint16_t a) { return static_cast<double>(f32_from<F16>(a)); }>(kClass);
  t["cvt.f64.bf16"] = lanes<[](uint16_t a) { return static_cast<double>(f32_from<BF16>(a)); }>(kClass);
}

}  // namespace ptx
