// f16 and bf16, alone and in pairs, lane by lane.
#include "numbers/numbers.h"
#include "operations.h"

namespace ptx {
namespace {

using namespace numbers;

// `f` of single halves becomes `name`.type and, of pairs, `name`.typex2.
template <auto kUnary>
void add_unary(Table& t, const std::string& name, const std::string& type) {
  t[name + type] = lanes<[](uint16_t a) { return kUnary(a); }>(Class::kHalf);
  t[name + type + "x2"] = lanes<[](uint32_t a) { return pairs(kUnary, a); }>(Class::kHalf);
}
template <auto kBinary>
void add_binary(Table& t, const std::string& name, const std::string& type) {
  t[name + type] = lanes<[](uint16_t a, uint16_t b) { return kBinary(a, b); }>(Class::kHalf);
  t[name + type + "x2"] = lanes<[](uint32_t a, uint32_t b) { return pairs(kBinary, a, b); }>(Class::kHalf);
}
template <auto kTernary>
void add_ternary(Table& t, const std::string& name, const std::string& type) {
  t[name + type] = lanes<[](uint16_t a, uint16_t b, uint16_t c) { return kTernary(a, b, c); }>(Class::kHalf);
  t[name + type + "x2"] =
      lanes<[](uint32_t a, uint32_t b, uint32_t c) { return pairs(kTernary, a, b, c); }>(Class::kHalf);
}

// A comparison of pairs has two results: decode.cpp makes two instructions of it, `low` and `high`.
template <class H, Compare kCompare>
void add_comparison(Table& t, const std::string& name, const std::string& type) {
  t["setp." + name + type] =
      lanes<[](uint16_t a, uint16_t b) { return half_compare<H, kCompare>(a, b); }>(Class::kHalf);
  t["setp.low." + name + type + "x2"] = lanes<[](uint32_t a, uint32_t b) {
    return half_compare<H, kCompare>(static_cast<uint16_t>(a), static_cast<uint16_t>(b));
  }>(Class::kHalf);
  t["setp.high." + name + type + "x2"] = lanes<[](uint32_t a, uint32_t b) {
    return half_compare<H, kCompare>(static_cast<uint16_t>(a >> 16), static_cast<uint16_t>(b >> 16));
  }>(Class::kHalf);
}

template <class H>
void add_type(Table& t, const std::string& type) {
  for (const char* rounding : {"", ".rn"}) {
    add_binary<[](uint16_t a, uint16_t b) { return half_add<H>(a, b); }>(t, std::string("add") + rounding,
                                                                         type);
    add_binary<[](uint16_t a, uint16_t b) { return half_sub<H>(a, b); }>(t, std::string("sub") + rounding,
                                                                         type);
    add_binary<[](uint16_t a, uint16_t b) { return half_mul<H>(a, b); }>(t, std::string("mul") + rounding,
                                                                         type);
    add_ternary<[](uint16_t a, uint16_t b, uint16_t c) { return half_fma<H>(a, b, c); }>(
        t, std::string("fma") + rounding, type);
  }
  add_ternary<[](uint16_t a, uint16_t b, uint16_t c) { return half_relu(half_fma<H>(a, b, c)); }>(
      t, "fma.rn.relu", type);
  add_unary<[](uint16_t a) { return half_abs(a); }>(t, "abs", type);
  add_unary<[](uint16_t a) { return half_neg(a); }>(t, "neg", type);
  add_binary<[](uint16_t a, uint16_t b) { return half_min<H>(a, b); }>(t, "min", type);
  add_binary<[](uint16_t a, uint16_t b) { return half_max<H>(a, b); }>(t, "max", type);
  add_binary<[](uint16_t a, uint16_t b) { return half_min_nan<H>(a, b); }>(t, "min.NaN", type);
  add_binary<[](uint16_t a, uint16_t b) { return half_max_nan<H>(a, b); }>(t, "max.NaN", type);
  add_unary<[](uint16_t a) { return half_tanh<H>(a); }>(t, "tanh.approx", type);
  add_unary<[](uint16_t a) { return half_ex2<H>(a); }>(t, "ex2.approx", type);
  add_comparison<H, Compare::eq>(t, "eq", type);
  add_comparison<H, Compare::ne>(t, "ne", type);
  add_comparison<H, Compare::lt>(t, "lt", type);
  add_comparison<H, Compare::le>(t, "le", type);
  add_comparison<H, Compare::gt>(t, "gt", type);
  add_comparison<H, Compare::ge>(t, "ge", type);
  add_comparison<H, Compare::equ>(t, "equ", type);
  add_comparison<H, Compare::neu>(t, "neu", type);
  add_comparison<H, Compare::ltu>(t, "ltu", type);
  add_comparison<H, Compare::leu>(t, "leu", type);
  add_comparison<H, Compare::gtu>(t, "gtu", type);
  add_comparison<H, Compare::geu>(t, "geu", type);
  add_comparison<H, Compare::num>(t, "num", type);
  add_comparison<H, Compare::nan>(t, "nan", type);
}

}  // namespace

void add_half_operations(Table& t) {
  add_type<F16>(t, ".f16");
  add_type<BF16>(t, ".bf16");
}

}  // namespace ptx
