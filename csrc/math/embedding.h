// Embedding: the norms of rows, and the factor that shortens a row whose norm is too large.
#pragma once

#include "common/fast_math.h"

namespace pyops::math {

// A norm is a sum or an extremum over elements: start() joined with term(x) of each by join, then finish().
template <class T>
struct Norm2 {
  PYOPS_HD T start() const { return T(0); }
  PYOPS_HD T term(T x) const { return x * x; }
  PYOPS_HD T join(T a, T b) const { return a + b; }
  PYOPS_HD T finish(T total) const { return ::sqrt(total); }
};

template <class T>
struct Norm1 {
  PYOPS_HD T start() const { return T(0); }
  PYOPS_HD T term(T x) const { return ::fabs(x); }
  PYOPS_HD T join(T a, T b) const { return a + b; }
  PYOPS_HD T finish(T total) const { return total; }
};

template <class T>
struct NormP {
  T p;
  PYOPS_HD T start() const { return T(0); }
  PYOPS_HD T term(T x) const { return ::pow(::fabs(x), p); }
  PYOPS_HD T join(T a, T b) const { return a + b; }
  PYOPS_HD T finish(T total) const { return ::pow(total, T(1) / p); }
};

// The number of elements that are not zero.
template <class T>
struct Norm0 {
  PYOPS_HD T start() const { return T(0); }
  PYOPS_HD T term(T x) const { return x != T(0) ? T(1) : T(0); }
  PYOPS_HD T join(T a, T b) const { return a + b; }
  PYOPS_HD T finish(T total) const { return total; }
};

// The largest magnitude or the smallest. A NaN stays.
template <class T, bool kLargest>
struct NormExtremum {
  PYOPS_HD T start() const { return kLargest ? T(0) : infinity<T>(); }
  PYOPS_HD T term(T x) const { return ::fabs(x); }
  PYOPS_HD T join(T a, T b) const { return (kLargest ? a > b : a < b) || a != a ? a : b; }
  PYOPS_HD T finish(T extremum) const { return extremum; }
};

// Calls f with the norm of order p.
template <class T, class F>
void dispatch_norm(double p, F&& f) {
  if (p == 2) return f(Norm2<T>{});
  if (p == 1) return f(Norm1<T>{});
  if (p == 0) return f(Norm0<T>{});
  if (p == static_cast<double>(infinity<float>())) return f(NormExtremum<T, true>{});
  if (p == -static_cast<double>(infinity<float>())) return f(NormExtremum<T, false>{});
  return f(NormP<T>{static_cast<T>(p)});
}

// What a row of this norm is multiplied by; 1 where it is short enough or NaN. As ATen's, in double.
PYOPS_HD double renorm_factor(double norm, double max_norm) {
  return norm > max_norm ? max_norm / (norm + 1e-7) : 1.0;
}

}  // namespace pyops::math
