// Version 3: a row of windows at once, and one byte for the place of a maximum.
//
// Which element of a window wins is a coin toss, and a branch on it is mispredicted accordingly. A selection
// has no branch, and over a row of windows it is the same operation for each: the compiler makes vectors of
// the loops below. For that the elements of a tap have to lie side by side, which in steps of 2 they do not:
// a row is first parted into its even and its odd columns. Window j then has odd[j - 1], even[j] and odd[j].
//
// The place is one of nine, counted along the rows of the window. Backward does not add to places: each
// element of the input asks the windows that hold it (at most four) whether it was their maximum. So every
// element is written once, there is nothing to set to 0 before, and rows could be made in any order.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

// A row by its columns; what is not there never wins. odd[0] is the column left of the first.
struct Row {
  std::vector<float> even, odd;
  explicit Row(int64_t columns) : even(columns), odd(columns + 1) {}

  void part(const float* __restrict x, int64_t width) {
    const float none = -std::numeric_limits<float>::infinity();
    float* __restrict e = even.data();
    float* __restrict o = odd.data();
    const int64_t pairs = width / 2;
    o[0] = none;
    for (int64_t j = 0; j < pairs; ++j) e[j] = x[2 * j];
    for (int64_t j = 0; j < pairs; ++j) o[j + 1] = x[2 * j + 1];
    if (width % 2) {
      e[pairs] = x[width - 1];
      o[pairs + 1] = none;
    }
  }
};

// Where an element of `tap` is larger than the best, it is the best.
void compare(const float* __restrict x, int32_t tap, int64_t columns, float* __restrict best,
             int32_t* __restrict at) {
  for (int64_t j = 0; j < columns; ++j) {
    const bool wins = x[j] > best[j];
    best[j] = wins ? x[j] : best[j];
    at[j] = wins ? tap : at[j];
  }
}

// sums[j] += the gradients of the windows whose maximum was this tap.
void collect(const int32_t* __restrict where, const float* __restrict g, int32_t tap, int64_t columns,
             float* __restrict sums) {
  for (int64_t j = 0; j < columns; ++j) sums[j] += where[j] == tap ? g[j] : 0.0f;
}

void forward(const float* x, int64_t height, int64_t width, int64_t columns, float* out, uint8_t* where,
             Row& row, std::vector<int32_t>& at) {
  for (int64_t i = 0; 2 * i < height; ++i) {
    float* best = out + i * columns;
    const int64_t top = std::max<int64_t>(2 * i - 1, 0), bottom = std::min(2 * i + 2, height);
    for (int64_t h = top; h < bottom; ++h) {
      const int32_t tap = 3 * static_cast<int32_t>(h - (2 * i - 1));
      row.part(x + h * width, width);
      if (h == top) {  // the first element of a window is its first maximum, at the left border the second
        std::copy_n(row.odd.data(), columns, best);
        std::fill_n(at.data(), columns, tap);
        at[0] = tap + 1;
      } else {
        compare(row.odd.data(), tap, columns, best, at.data());
      }
      compare(row.even.data(), tap + 1, columns, best, at.data());
      compare(row.odd.data() + 1, tap + 2, columns, best, at.data());
    }
    std::copy_n(at.data(), columns, where + i * columns);
  }
}

void backward(const float* grad_out, const uint8_t* where, int64_t height, int64_t width, int64_t columns,
              float* grad, Row& row, std::vector<int32_t>& at) {
  for (int64_t h = 0; h < height; ++h) {
    std::fill(row.even.begin(), row.even.end(), 0.0f);
    std::fill(row.odd.begin(), row.odd.end(), 0.0f);
    for (int64_t i = h / 2; i <= (h + 1) / 2 && 2 * i < height;
         ++i) {  // the windows' rows that hold this one
      const int32_t tap = 3 * static_cast<int32_t>(h - (2 * i - 1));
      std::copy_n(where + i * columns, columns,
                  at.data());  // as wide as the gradients, for the vectors' sake
      const int32_t* w = at.data();
      const float* g = grad_out + i * columns;
      collect(w, g, tap, columns, row.odd.data());
      collect(w, g, tap + 1, columns, row.even.data());
      collect(w, g, tap + 2, columns, row.odd.data() + 1);
    }
    const float* __restrict e = row.even.data();
    const float* __restrict o = row.odd.data() + 1;
    float* __restrict to = grad + h * width;
    for (int64_t j = 0; j < width / 2; ++j) {
      to[2 * j] = e[j];
      to[2 * j + 1] = o[j];
    }
    if (width % 2) to[width - 1] = e[width / 2];
  }
}

}  // namespace

extern "C" void max_pool(const float* x, const float* grad_out, int64_t planes, int64_t height, int64_t width,
                         float* out, float* grad, uint8_t* where) {
  const int64_t rows = (height + 1) / 2, columns = (width + 1) / 2;
  Row row(columns);
  std::vector<int32_t> at(columns);
  for (int64_t p = 0; p < planes; ++p)
    forward(x + p * height * width, height, width, columns, out + p * rows * columns,
            where + p * rows * columns, row, at);
  for (int64_t p = 0; p < planes; ++p)
    backward(grad_out + p * rows * columns, where + p * rows * columns, height, width, columns,
             grad + p * height * width, row, at);
}
