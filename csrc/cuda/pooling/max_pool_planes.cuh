// Max pooling of contiguous planes by the windows that networks have, 2 x 2 or 3 x 3.
//
// The loads of a window are issued together. In backward it is known when it is compiled which windows of a
// row hold which elements of a run.
#pragma once

#include "common/fast_math.h"
#include "cuda/pooling/planes.cuh"

namespace pyops::cuda {

template <class T, int kKernel>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    max_pool2d_planes_forward_kernel(Planes planes, WindowAxes s, const T* input, T* output,
                                     uint8_t* argmax) {
  using Acc = acc_t<T>;
  for_each_plane_place(planes, [&](const PlanePlace& at, uint32_t i) {
    const int top = s.height.start(at.row), left = s.width.start(at.item);
    // Not an address of an element if the window begins in the padding; those are not read.
    const T* const first = input + ((at.plane * s.height.in + top) * s.width.in + left);
    Acc x[kKernel][kKernel];
#pragma unroll
    for (int r = 0; r < kKernel; ++r) {
      const T* const row = first + r * s.width.in;
#pragma unroll
      for (int c = 0; c < kKernel; ++c) {
        const bool inside = is_within(top + r, s.height.in) && is_within(left + c, s.width.in);
        x[r][c] = inside ? to_acc(row[c]) : -math::infinity<Acc>();
      }
    }
    Acc maximum = -math::infinity<Acc>();
    int position = s.height.first_tap(at.row) * kKernel + s.width.first_tap(at.item);
#pragma unroll
    for (int k = 0; k < kKernel * kKernel; ++k) {
      const Acc value = x[k / kKernel][k % kKernel];
      const bool replaces = math::replaces_maximum(value, maximum);
      maximum = replaces ? value : maximum;
      position = replaces ? k : position;
    }
    output[i] = from_acc<T>(maximum);
    argmax[i] = static_cast<uint8_t>(position);
  });
}

// Windows kStride apart, the first of which begins kPhase (modulo kStride) in front of the plane. Window w of
// those that hold an element of a pack, counted from the one that element 0 less kPhase begins, holds
// elements kStride w - kPhase, ..., kStride w - kPhase + kKernel - 1 of the pack.
template <class T, int kKernel, int kStride, int kPhase>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    max_pool2d_planes_backward_kernel(Planes planes, WindowAxes s, bool aligned, const T* grad_output,
                                      const uint8_t* argmax, T* grad_input) {
  using Acc = acc_t<T>;
  constexpr int kSize = Pack<T>::kSize;
  static_assert(kSize % kStride == 0);
  constexpr int kFirst = -((kKernel - 1 - kPhase) / kStride), kLast = (kPhase + kSize - 1) / kStride;
  constexpr int kNone = -1024;  // no position in any window
  for_each_plane_place(planes, [&](const PlanePlace& at, uint32_t) {
    const unsigned below = at.row + s.height.padding;
    const int window = at.item * (kSize / kStride) + static_cast<unsigned>(s.width.padding) / kStride;
    Acc sum[kSize] = {};
#pragma unroll
    for (int back = (kKernel - 1) / kStride; back >= 0; --back) {
      const int row = static_cast<int>(below / kStride) - back, tap = below % kStride + back * kStride;
      if (tap >= kKernel || !is_within(row, s.height.out)) continue;
      const int first = (at.plane * s.height.out + row) * s.width.out + window;
      Acc grad[kLast - kFirst + 1];
      int position[kLast - kFirst + 1];
#pragma unroll
      for (int w = kFirst; w <= kLast; ++w) {
        const bool inside = is_within(window + w, s.width.out);
        grad[w - kFirst] = inside ? to_acc(grad_output[first + w]) : Acc(0);
        position[w - kFirst] = inside ? argmax[first + w] - tap * kKernel : kNone;
      }
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
#pragma unroll
        for (int w = kFirst; w <= kLast; ++w) {
          const int column = kPhase + k - w * kStride;
          if (column < 0 || column >= kKernel) continue;
          sum[k] += position[w - kFirst] == column ? grad[w - kFirst] : Acc(0);
        }
      }
    }
    T* const row = grad_input + (at.plane * s.height.in + at.row) * s.width.in;
    store_run(row, at.item * kSize, s.width.in, aligned, sum);
  });
}

// Whether the kernels above take the images.
inline bool are_common_planes(const Windows& windows, const Image& in) {
  const math::SlidingAxis &h = windows.height(), &w = windows.width();
  return are_planes(in, windows.output_of(in)) && h.kernel == w.kernel && (h.kernel == 2 || h.kernel == 3) &&
         h.dilation == 1 && w.dilation == 1;
}

template <class T>
void max_pool_planes_forward(const WindowAxes& axes, const Image& out, const T* x, T* y, uint8_t* argmax,
                             cudaStream_t stream) {
  const auto kernel = axes.height.kernel == 2 ? max_pool2d_planes_forward_kernel<T, 2>
                                              : max_pool2d_planes_forward_kernel<T, 3>;
  launch_planes(kernel, out, 1, stream, axes, x, y, argmax);
}

// False where the windows are not two apart.
template <class T>
bool max_pool_planes_backward(const WindowAxes& axes, const Image& in, const T* grad, const uint8_t* argmax,
                              T* dx, cudaStream_t stream) {
  if (axes.height.stride != 2 || axes.width.stride != 2) return false;
  const bool odd = axes.width.padding % 2 != 0;
  auto* kernel =
      odd ? max_pool2d_planes_backward_kernel<T, 3, 2, 1> : max_pool2d_planes_backward_kernel<T, 3, 2, 0>;
  if (axes.height.kernel == 2) {
    kernel =
        odd ? max_pool2d_planes_backward_kernel<T, 2, 2, 1> : max_pool2d_planes_backward_kernel<T, 2, 2, 0>;
  }
  launch_planes(kernel, in, Pack<T>::kSize, stream, axes, has_whole_runs(in, dx), grad, argmax, dx);
  return true;
}

}  // namespace pyops::cuda
