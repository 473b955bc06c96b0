// float and double, lane by lane, in every rounding mode and with .ftz and .sat.
#include "numbers/numbers.h"
#include "operations.h"

namespace ptx {
namespace {

using namespace numbers;

// .ftz of an operand or a result, .sat of a result, where asked for.
template <bool kFlush, class F>
F operand(F x) {
  if constexpr (kFlush && sizeof(F) == 4) x = flush(x);
  return x;
}
template <bool kFlush, bool kSaturate, class F>
F result(F x) {
  x = operand<kFlush>(x);
  if constexpr (kSaturate) x = saturate(x);
  return x;
}

template <class F>
constexpr Class kFloatClass = sizeof(F) == 4 ? Class::kFloat32 : Class::kFloat64;

template <class F, Rounding kR, bool kFlush, bool kSaturate>
void add_arithmetic(Table& t, const std::string& modifiers) {
  const auto set = [&](const std::string& name, const Operation& operation) {
    t[name + modifiers] = operation;
  };
  constexpr Class kClass = kFloatClass<F>;
  set("add", lanes<[](F a, F b) {
        return result<kFlush, kSaturate>(add<kR>(operand<kFlush>(a), operand<kFlush>(b)));
      }>(kClass));
  set("sub", lanes<[](F a, F b) {
        return result<kFlush, kSaturate>(sub<kR>(operand<kFlush>(a), operand<kFlush>(b)));
      }>(kClass));
  set("mul", lanes<[](F a, F b) {
        return result<kFlush, kSaturate>(mul<kR>(operand<kFlush>(a), operand<kFlush>(b)));
      }>(kClass));
  set("fma", lanes<[](F a, F b, F c) {
        return result<kFlush, kSaturate>(fma<kR>(operand<kFlush>(a), operand<kFlush>(b), operand<kFlush>(c)));
      }>(kClass));
  if constexpr (!kSaturate) {
    set("div", lanes<[](F a, F b) {
          return result<kFlush, false>(div<kR>(operand<kFlush>(a), operand<kFlush>(b)));
        }>(kClass));
    set("rcp", lanes<[](F a) { return result<kFlush, false>(rcp<kR>(operand<kFlush>(a))); }>(kClass));
    set("sqrt",
        lanes<[](F a) { return result<kFlush, false>(numbers::sqrt<kR>(operand<kFlush>(a))); }>(kClass));
  }
}

template <class F, Rounding kR>
void add_rounded(Table& t, const std::string& rounding, const std::string& type) {
  add_arithmetic<F, kR, false, false>(t, rounding + type);
  add_arithmetic<F, kR, false, true>(t, rounding + ".sat" + type);
  if constexpr (sizeof(F) == 4) {
    add_arithmetic<F, kR, true, false>(t, rounding + ".ftz" + type);
    add_arithmetic<F, kR, true, true>(t, rounding + ".ftz.sat" + type);
  }
}

template <class F, Compare kCompare, bool kFlush>
void add_comparison(Table& t, const std::string& name) {
  t["setp." + name] =
      lanes<[](F a, F b) { return compare<kCompare>(operand<kFlush>(a), operand<kFlush>(b)); }>(
          kFloatClass<F>);
}

template <class F, bool kFlush>
void add_signs(Table& t, const std::string& type) {
  const auto set = [&](const std::string& name, const Operation& operation) { t[name + type] = operation; };
  constexpr Class kClass = kFloatClass<F>;
  set("abs", lanes<[](F a) { return numbers::abs(operand<kFlush>(a)); }>(kClass));
  set("neg", lanes<[](F a) { return neg(operand<kFlush>(a)); }>(kClass));
  set("min", lanes<[](F a, F b) { return numbers::min(operand<kFlush>(a), operand<kFlush>(b)); }>(kClass));
  set("max", lanes<[](F a, F b) { return numbers::max(operand<kFlush>(a), operand<kFlush>(b)); }>(kClass));
  if constexpr (sizeof(F) == 4) {
    const std::string with_nan = kFlush ? ".ftz.NaN.f32" : ".NaN.f32";
    t["min" + with_nan] =
        lanes<[](F a, F b) { return min_nan(operand<kFlush>(a), operand<kFlush>(b)); }>(kClass);
    t["max" + with_nan] =
        lanes<[](F a, F b) { return max_nan(operand<kFlush>(a), operand<kFlush>(b)); }>(kClass);
  }
  add_comparison<F, Compare::eq, kFlush>(t, "eq" + type);
  add_comparison<F, Compare::ne, kFlush>(t, "ne" + type);
  add_comparison<F, Compare::lt, kFlush>(t, "lt" + type);
  add_comparison<F, Compare::le, kFlush>(t, "le" + type);
  add_comparison<F, Compare::gt, kFlush>(t, "gt" + type);
  add_comparison<F, Compare::ge, kFlush>(t, "ge" + type);
  add_comparison<F, Compare::equ, kFlush>(t, "equ" + type);
  add_comparison<F, Compare::neu, kFlush>(t, "neu" + type);
  add_comparison<F, Compare::ltu, kFlush>(t, "ltu" + type);
  add_comparison<F, Compare::leu, kFlush>(t, "leu" + type);
  add_comparison<F, Compare::gtu, kFlush>(t, "gtu" + type);
  add_comparison<F, Compare::geu, kFlush>(t, "geu" + type);
  add_comparison<F, Compare::num, kFlush>(t, "num" + type);
  add_comparison<F, Compare::nan, kFlush>(t, "nan" + type);
}

template <bool kFlush>
void add_approximations(Table& t, const std::string& modifiers) {
  const auto set = [&](const std::string& name, const Operation& operation) {
    t[name + modifiers] = operation;
  };
  constexpr Class kClass = Class::kSpecial;
  set("ex2.approx", lanes<[](float a) { return operand<kFlush>(ex2_approx(operand<kFlush>(a))); }>(kClass));
  set("lg2.approx", lanes<[](float a) { return operand<kFlush>(lg2_approx(operand<kFlush>(a))); }>(kClass));
  set("rcp.approx", lanes<[](float a) { return operand<kFlush>(rcp_approx(operand<kFlush>(a))); }>(kClass));
  set("sqrt.approx", lanes<[](float a) { return operand<kFlush>(sqrt_approx(operand<kFlush>(a))); }>(kClass));
  set("rsqrt.approx",
      lanes<[](float a) { return operand<kFlush>(rsqrt_approx(operand<kFlush>(a))); }>(kClass));
  set("sin.approx", lanes<[](float a) { return operand<kFlush>(sin_approx(operand<kFlush>(a))); }>(kClass));
  set("cos.approx", lanes<[](float a) { return operand<kFlush>(cos_approx(operand<kFlush>(a))); }>(kClass));
  set("div.approx", lanes<[](float a, float b) {
        return operand<kFlush>(div_approx(operand<kFlush>(a), operand<kFlush>(b)));
      }>(kClass));
  set("div.full", lanes<[](float a, float b) {
        return operand<kFlush>(div_full(operand<kFlush>(a), operand<kFlush>(b)));
      }>(kClass));
}

}  // namespace

void add_float_operations(Table& t) {
  for (const char* rounding : {"", ".rn"}) {
    add_rounded<float, Rounding::rn>(t, rounding, ".f32");
    add_rounded<double, Rounding::rn>(t, rounding, ".f64");
  }
  add_rounded<float, Rounding::rz>(t, ".rz", ".f32");
  add_rounded<float, Rounding::rm>(t, ".rm", ".f32");
  add_rounded<float, Rounding::rp>(t, ".rp", ".f32");
  add_rounded<double, Rounding::rz>(t, ".rz", ".f64");
  add_rounded<double, Rounding::rm>(t, ".rm", ".f64");
  add_rounded<double, Rounding::rp>(t, ".rp", ".f64");
  add_signs<float, false>(t, ".f32");
  add_signs<float, true>(t, ".ftz.f32");
  add_signs<double, false>(t, ".f64");
  add_approximations<false>(t, ".f32");
  add_approximations<true>(t, ".ftz.f32");
  t["copysign.f32"] = lanes<[](float s, float m) { return numbers::copysign(s, m); }>(Class::kFloat32);
  t["copysign.f64"] = lanes<[](double s, double m) { return numbers::copysign(s, m); }>(Class::kFloat64);
  t["tanh.approx.f32"] = lanes<[](float a) { return tanh_approx(a); }>(Class::kSpecial);
  t["rcp.approx.ftz.f64"] = lanes<[](double a) { return rcp_approx_ftz(a); }>(Class::kSpecial);
  t["rsqrt.approx.f64"] = lanes<[](double a) { return rsqrt_approx(a); }>(Class::kSpecial);
  t["rsqrt.approx.ftz.f64"] = lanes<[](double a) { return rsqrt_approx_ftz(a); }>(Class::kSpecial);
}

}  // namespace ptx
