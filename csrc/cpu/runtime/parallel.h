// Work sharing over torch's thread pool.
//
// Results must not depend on the number of threads, so work is cut into blocks whose borders depend on the
// problem alone, and whatever is summed over blocks is stored per block and merged in block order.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "common/integers.h"
#include "cpu/runtime/cost.h"
#include "cpu/runtime/shares.h"

namespace pyops::cpu {

// The threads of a gemm (cpu/gemm/gemm.h): calls body(i) for every i in [0, count), each a piece worth a
// thread.
struct ThreadPool {
  int64_t threads() const { return torch::stable::get_num_threads(); }
  template <class F>
  void operator()(int64_t count, const F& body) const {
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(i);
    });
  }
};

enum class Order { kForwards, kBackwards };

// Calls f(begin, end) for blocks of [0, count), each item costing about `cost` elements (cost.h). Backwards,
// a thread begins with what it came to last in a loop before.
template <class F>
void parallel_for(int64_t count, int64_t cost, const F& f, Order order = Order::kForwards) {
  if (count <= 0) return;
  const double item = cost::elements(static_cast<double>(std::max<int64_t>(1, cost)));
  const double all = item * static_cast<double>(count);
  if (count == 1 || !cost::pays(all)) return f(int64_t{0}, count);
  const ThreadPool pool;
  const int64_t threads = std::min(count, cost::threads(all, pool.threads()));
  if (threads == 1) return f(int64_t{0}, count);
  const double of_thread = all / static_cast<double>(threads);
  Shares shares(count, threads, static_cast<int64_t>(cost::claim(of_thread) / item),
                order == Order::kBackwards);
  pool(threads, [&](int64_t thread) { shares.work(thread, f); });
}

// Calls f(i) for every i in [0, count), in order of need: a thread takes the next one when it is through with
// its last. `work`, in multiplications, tells whether waking other threads pays.
template <class F>
void parallel_claim(int64_t count, double work, const F& f) {
  std::atomic<int64_t> next{0};
  const auto claim = [&](int64_t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) f(i);
  };
  const double time = cost::multiplications(work);
  if (count <= 1 || !cost::pays(time)) return claim(0);
  const ThreadPool pool;
  const int64_t threads = std::min(pool.threads(), count);
  threads <= 1 ? claim(0) : pool(threads, claim);
}

// Sums f(begin, end) over blocks of [0, count) whose size depends on `count` and `cost` only.
template <class Sum, class F>
Sum parallel_sum(int64_t count, int64_t cost, const F& f) {
  const int64_t block = std::max<int64_t>(1, cost::kBlockElements / std::max<int64_t>(1, cost));
  const int64_t blocks = ceil_div(count, block);
  if (blocks <= 1) return count > 0 ? f(int64_t{0}, count) : Sum{};
  std::vector<Sum> partial(blocks);
  parallel_for(blocks, block * cost, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) partial[b] = f(b * block, std::min(count, (b + 1) * block));
  });
  Sum total{};
  for (const Sum& sum : partial) total += sum;
  return total;
}

}  // namespace pyops::cpu
