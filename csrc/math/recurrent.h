// One step of the recurrent cells, forward and backward.
//
// V is a number, or a vector of numbers on the CPU. x is the input's share of the gates, W_i x + b_i, and s
// the state's, W_h h + b_h, in torch's order of gates. Derivatives are those with respect to the arguments of
// the gates' activations, formed from the activated gates.
//
// Sources: Hochreiter & Schmidhuber 1997 and Gers et al. 1999 (LSTM); Cho et al. 2014, arXiv:1406.1078, in
// the variant of torch and cuDNN that applies the reset gate behind the product (GRU).
#pragma once

#include <cstdint>

#include "math/activation.h"

namespace pyops::math {

// The numbers are part of the raw ops' contract, and those of pyops/kinds.py.
enum class CellKind : int64_t { kRnnTanh = 0, kRnnRelu = 1, kLstm = 2, kGru = 3 };

// kGates columns of products per unit, kGradients columns of gradients. They differ in the GRU, whose last
// gate's two shares, of the input and of the state, have different gradients.
template <class V, int gates>
struct StepForward {
  V gates_[gates];  // activated
  V extra;          // what else backward needs
  V h;
};

template <class V, int gradients>
struct StepBackward {
  V d[gradients];
  V dc;  // what goes back to the previous c
  V dh;  // what goes back to the previous h, besides the product of d and W_h
};

template <class T, class Activation>
struct RnnCell {
  static constexpr int kGates = 1, kGradients = 1;
  static constexpr bool kHasCell = false, kSavesGates = false, kSplitsBias = false;

  template <class V>
  static PYOPS_HD StepForward<V, 1> forward(const V (&x)[1], const V (&s)[1], V, V) {
    const V h = Activation{}.forward(x[0] + s[0]);
    return {{h}, h, h};
  }
  template <class V>
  static PYOPS_HD StepBackward<V, 1> backward(V dh, V, const V (&)[1], V, V, V, V h) {
    return {{Activation{}.backward(h, dh)}, dh, dh};
  }
};

template <class T>
struct LstmCell {
  static constexpr int kGates = 4, kGradients = 4;  // i, f, g, o
  static constexpr bool kHasCell = true, kSavesGates = true, kSplitsBias = false;

  template <class V>
  static PYOPS_HD StepForward<V, 4> forward(const V (&x)[4], const V (&s)[4], V, V c_before) {
    const V i = logistic<T>(x[0] + s[0]), f = logistic<T>(x[1] + s[1]);
    const V g = tanh(x[2] + s[2]), o = logistic<T>(x[3] + s[3]);
    const V c = f * c_before + i * g;
    return {{i, f, g, o}, c, o * tanh(c)};
  }
  template <class V>
  static PYOPS_HD StepBackward<V, 4> backward(V dh, V dc_after, const V (&gates)[4], V c, V, V c_before, V) {
    const V one = V(T(1)), i = gates[0], f = gates[1], g = gates[2], o = gates[3];
    const V tanh_c = tanh(c);
    const V dc = dc_after + dh * o * (one - tanh_c * tanh_c);
    return {{dc * g * i * (one - i), dc * c_before * f * (one - f), dc * i * (one - g * g),
             dh * tanh_c * o * (one - o)},
            dc * f,
            dc};
  }
};

template <class T>
struct GruCell {
  static constexpr int kGates = 3, kGradients = 4;  // r, z, n; of n the state's share, then the input's
  static constexpr bool kHasCell = false, kSavesGates = true, kSplitsBias = true;

  template <class V>
  static PYOPS_HD StepForward<V, 3> forward(const V (&x)[3], const V (&s)[3], V h_before, V) {
    const V r = logistic<T>(x[0] + s[0]), z = logistic<T>(x[1] + s[1]);
    const V n = tanh(x[2] + r * s[2]);
    return {{r, z, n}, s[2], n + z * (h_before - n)};
  }
  template <class V>
  static PYOPS_HD StepBackward<V, 4> backward(V dh, V, const V (&gates)[3], V s_n, V h_before, V, V) {
    const V one = V(T(1)), r = gates[0], z = gates[1], n = gates[2];
    const V dn = dh * (one - z) * (one - n * n);
    return {{dn * s_n * r * (one - r), dh * (h_before - n) * z * (one - z), dn * r, dn}, dh, dh * z};
  }
};

// Calls f(cell) with the cell of this kind; false when there is no such kind.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class T, class F>
PYOPS_HD bool dispatch_cell(int64_t kind, const F& f) {
  switch (static_cast<CellKind>(kind)) {
    case CellKind::kRnnTanh:
      return f(RnnCell<T, Tanh<T>>{}), true;
    case CellKind::kRnnRelu:
      return f(RnnCell<T, Relu<T>>{}), true;
    case CellKind::kLstm:
      return f(LstmCell<T>{}), true;
    case CellKind::kGru:
      return f(GruCell<T>{}), true;
    default:
      return false;
  }
}

}  // namespace pyops::math
