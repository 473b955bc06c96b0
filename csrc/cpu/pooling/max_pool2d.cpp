// Max pooling on the CPU. Forward keeps where in its window each maximum was; backward gathers: every element
// of the input sums the gradients of the windows it is the maximum of, in the order of the windows.
#include "cpu/pooling/max_pool.h"
#include "cpu/runtime/output_cache.h"

namespace pyops::cpu {
namespace {

std::tuple<Tensor, Tensor> max_pool2d_forward(Tensor input, Sizes kernel, Sizes stride, Sizes padding,
                                              Sizes dilation, bool ceil_mode, bool channels_last) {
  const char* op = "max_pool2d_forward";
  check_floating(input, op, "input");
  const Image in = Image::of(input, channels_last, op, "input");
  const Windows windows =
      Windows::of({in.height, in.width}, kernel, stride, padding, dilation, ceil_mode, op);
  const Image out = windows.output_of(in);
  Tensor output = new_output(input, out.shape, input.scalar_type());
  Tensor argmax = new_output(input, out.shape, windows.argmax_type());
  dispatch_argmax(input.scalar_type(), windows, op, [&](auto tag, auto position) {
    using T = decltype(tag);
    using A = decltype(position);
    const T* x = data<T>(input);
    T* y = mutable_data<T>(output);
    A* at = mutable_data<A>(argmax);
    const int64_t work = std::min<int64_t>(windows.positions(), 1 << 16);
    const int64_t bytes = in.elements() * static_cast<int64_t>(sizeof(T)) +
                          out.elements() * static_cast<int64_t>(sizeof(T) + sizeof(A));
    const auto with = [&](auto kind) {
      using Rows = typename decltype(kind)::type;
      for_each_row<Rows>(out, windows, work, bytes, y, [&](Rows& rows, int64_t row, T* to) {
        rows.forward(x, row, to, at + row * out.row_elements());
      });
    };
    if (in_pairs(windows, in.inner)) return with(KindOfRows<MaxPoolPairs<T, A>>{});
    if (in_triples(windows, in.inner)) return with(KindOfRows<MaxPoolTriples<T, A>>{});
    wide<acc_t<T>>(in) ? with(KindOfRows<MaxPoolChannels<T, A>>{}) : with(KindOfRows<MaxPoolRows<T, A>>{});
  });
  return {output, argmax};
}

Tensor max_pool2d_backward(Tensor grad_output, Tensor argmax, Sizes input_size, Sizes kernel, Sizes stride,
                           Sizes padding, Sizes dilation, bool ceil_mode, bool channels_last) {
  const char* op = "max_pool2d_backward";
  const Windows windows = Windows::of(input_size, kernel, stride, padding, dilation, ceil_mode, op);
  const Image out = windows.check_backward(grad_output, argmax, channels_last, op);
  const Image in = windows.input_of(out);
  Tensor grad_input = new_output(grad_output, in.shape, grad_output.scalar_type());
  dispatch_argmax(grad_output.scalar_type(), windows, op, [&](auto tag, auto position) {
    using T = decltype(tag);
    using A = decltype(position);
    const T* g = data<T>(grad_output);
    const A* at = data<A>(argmax);
    T* dx = mutable_data<T>(grad_input);
    max_pool_gradient(in, windows, g, at, dx, [](int64_t) {});
  });
  return grad_input;
}

Tensor max_pool2d_indices(Tensor argmax, Sizes input_size, Sizes kernel, Sizes stride, Sizes padding,
                          Sizes dilation, bool ceil_mode, bool channels_last) {
  const char* op = "max_pool2d_indices";
  const Windows windows = Windows::of(input_size, kernel, stride, padding, dilation, ceil_mode, op);
  const Image out = windows.check_argmax(argmax, channels_last, op);
  Tensor indices = new_output(argmax, out.shape, ScalarType::Long);
  const auto expand = [&](auto position) {
    using A = decltype(position);
    const A* at = data<A>(argmax);
    int64_t* to = mutable_data<int64_t>(indices);
    parallel_for(out.rows(), out.row_elements() * 4, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t i = 0; i < out.row_elements(); ++i) {
          const int64_t element = row * out.row_elements() + i;
          to[element] = math::flat_index(windows.height(), windows.width(), row % out.height, i / out.inner,
                                         at[element]);
        }
      }
    });
  };
  windows.argmax_type() == ScalarType::Byte ? expand(uint8_t{}) : expand(int32_t{});
  return indices;
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("max_pool2d_forward", TORCH_BOX(&pyops::cpu::max_pool2d_forward));
  m.impl("max_pool2d_backward", TORCH_BOX(&pyops::cpu::max_pool2d_backward));
  m.impl("max_pool2d_indices", TORCH_BOX(&pyops::cpu::max_pool2d_indices));
}
