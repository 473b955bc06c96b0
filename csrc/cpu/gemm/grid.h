// How a product's output is cut into tiles, and these are handed to threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "common/integers.h"
#include "cpu/runtime/cost.h"

namespace pyops::cpu {

// Whether waking other threads for a product costs more than they save.
inline bool is_serial(int64_t M, int64_t N, int64_t K) {
  return !cost::pays(cost::multiplications(double(M) * double(N) * double(K)));
}

struct TileLimits {
  int64_t rows;  // at most
  int64_t columns;
  int64_t micro_rows;  // of a micro-tile
  int64_t micro_columns;
  int64_t row_unit;  // tiles begin at multiples of it, and of micro_columns
  // Multiplications that packing an element costs.
  int64_t row_cost;
  int64_t column_cost;
};

// How many tiles M and N are cut into; none of them is empty.
struct TileGrid {
  int64_t rows;
  int64_t columns;
};

// Tiles no larger than the caches like, and enough of them for all threads. Of the shapes that
// keep every thread busy the one wins that packs least: every tile packs its own rows and columns.
inline TileGrid choose_grid(int64_t M, int64_t N, const TileLimits& tile, int64_t threads) {
  const int64_t most_rows = ceil_div(M, tile.micro_rows), most_columns = ceil_div(N, tile.micro_columns);
  const int64_t least_rows = ceil_div(M, tile.rows), least_columns = ceil_div(N, tile.columns);
  TileGrid best{least_rows, least_columns};
  double best_cost = -1;
  for (int64_t rows = least_rows; rows < std::min(least_rows + threads, most_rows + 1); ++rows) {
    const int64_t columns = std::min(std::max(least_columns, ceil_div(threads, rows)), most_columns);
    const int64_t height = round_up(ceil_div(M, rows), tile.micro_rows);
    const int64_t width = round_up(ceil_div(N, columns), tile.micro_columns);
    const double cost =
        double(ceil_div(rows * columns, threads)) *
        (double(height) * width + double(tile.row_cost) * height + double(tile.column_cost) * width);
    if (best_cost < 0 || cost < best_cost) {
      best = {rows, columns};
      best_cost = cost;
    }
  }
  return best;
}

// For callers that already run on one thread of many.
struct Serial {
  int64_t threads() const { return 1; }
  template <class F>
  void operator()(int64_t count, const F& body) const {
    for (int64_t i = 0; i < count; ++i) body(i);
  }
};

// Calls f(row, rows, column, columns) for the tiles of [M, N], whose sums have K terms. They are claimed one
// by one: a thread that is held up does not hold up the others.
template <class Parallel, class F>
void for_each_tile(int64_t M, int64_t N, int64_t K, const TileLimits& limits, const Parallel& parallel,
                   const F& f) {
  const int64_t threads = is_serial(M, N, K) ? 1 : std::max<int64_t>(parallel.threads(), 1);
  const TileGrid grid = choose_grid(M, N, limits, threads);
  const EvenSplit tile_rows(ceil_div(M, limits.row_unit), grid.rows);
  // In whole micro-tiles: only the right edge of the output is ever narrower.
  const EvenSplit tile_columns(ceil_div(N, limits.micro_columns), grid.columns);
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t) {
    for (int64_t tile; (tile = next.fetch_add(1, std::memory_order_relaxed)) < grid.rows * grid.columns;) {
      const int64_t i = tile_rows.begin(tile % grid.rows) * limits.row_unit;
      const int64_t j = tile_columns.begin(tile / grid.rows) * limits.micro_columns;
      f(i, std::min(tile_rows.size(tile % grid.rows) * limits.row_unit, M - i), j,
        std::min(tile_columns.size(tile / grid.rows) * limits.micro_columns, N - j));
    }
  };
  if (threads == 1) {
    work(0);
  } else {
    parallel(std::min(threads, grid.rows * grid.columns), work);
  }
}

}  // namespace pyops::cpu
