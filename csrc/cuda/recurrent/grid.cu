// Launches of the cooperative time loops (grid.cuh).
#include "cuda/recurrent/grid.cuh"
#include "cuda/recurrent/recurrent.cuh"

namespace pyops::cuda {
namespace {

// Launches as many groups of blocks as the device holds, or as few as do with the same number of tiles each.
template <class T, class Kernel, class Data>
bool launch_grid(const Kernel& kernel, int tiles_of_rows, int64_t depth, const Data& at,
                 const RecurrentCall& call) {
  const int64_t hidden = call.shape.hidden;
  const int64_t shared = GridShared<T>::bytes(GridWeights<T>::slabs_of(depth), tiles_of_rows);
  const int64_t columns = ceil_div(hidden, kGridUnits);
  const int64_t tiles = ceil_div(call.shape.sequences.batch(), kGridSequences);
  const int64_t most_groups = resident_blocks(kernel, kGridThreads, shared) / columns;
  if (most_groups == 0 || ceil_div(tiles, most_groups) > kMostGridTiles) return false;
  const int64_t groups = ceil_div(tiles, ceil_div(tiles, most_groups));
  const StepsOnDevice steps = steps_on_device(call);
  const Tensor counters = new_tensor(call.weight_hh, {tiles}, ScalarType::Int);
  unsigned* const zeros = mutable_data<unsigned>(counters);
  check(cudaMemsetAsync(zeros, 0, tiles * sizeof(unsigned), call.stream), "clearing counters");
  launch_cooperative(kernel, dim3(static_cast<unsigned>(columns), static_cast<unsigned>(groups)),
                     kGridThreads, shared, call.stream, at, steps.steps, hidden, data<T>(call.weight_hh),
                     zeros);
  return true;
}

// Calls f(cell, product) for the cell of that kind, and the units that may form its products.
template <class T, class F>
bool with_product(const RecurrentCall& call, const F& f) {
  bool launched = false;
  math::dispatch_cell<acc_t<T>>(call.kind, [&](auto cell) {
    if constexpr (sizeof(T) == 2) {
      launched = f(cell, GridTensorCores<T>{});
    } else {
      launched = call.products.tf32 ? f(cell, GridTensorCores<T>{}) : f(cell, GridFma<T>{});
    }
  });
  return launched;
}

bool whole_rows(const RecurrentCall& call, int64_t element, const void* initial) {
  return call.shape.hidden * element % kPackBytes == 0 && is_aligned(initial);
}

}  // namespace

template <class T>
bool forward_in_grid(const ForwardData<T>& at, const RecurrentCall& call) {
  if constexpr (sizeof(T) == 8) {
    return false;
  } else {
    if (!whole_rows(call, sizeof(T), at.h_0)) return false;
    return with_product<T>(call, [&](auto cell, auto product) {
      using Cell = decltype(cell);
      return launch_grid<T>(grid_forward<T, Cell, decltype(product)>, Cell::kGates, call.shape.hidden, at,
                            call);
    });
  }
}

template <class T>
bool backward_in_grid(const BackwardData<T>& at, const RecurrentCall& call) {
  if constexpr (sizeof(T) == 8) {
    return false;
  } else {
    if (!whole_rows(call, sizeof(T), nullptr)) return false;
    return with_product<T>(call, [&](auto cell, auto product) {
      return launch_grid<T>(grid_backward<T, decltype(cell), decltype(product)>, 1, call.shape.gates, at,
                            call);
    });
  }
}

#define PYOPS_INSTANTIATE(T)                                                     \
  template bool forward_in_grid<T>(const ForwardData<T>&, const RecurrentCall&); \
  template bool backward_in_grid<T>(const BackwardData<T>&, const RecurrentCall&);
PYOPS_INSTANTIATE(double)
PYOPS_INSTANTIATE(float)
PYOPS_INSTANTIATE(bfloat16)
PYOPS_INSTANTIATE(float16)
#undef PYOPS_INSTANTIATE

}  // namespace pyops::cuda
