// Images from their tensor to the lanes of vectors, one image in each: element after element, whatever the
// tensor's format. Squares of vectors are transposed in registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/conv2d/problem.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/loops.h"

namespace pyops::cpu {

// An image's axes as vectors of lanes hold them: planes of rows x columns elements, of which those of the
// tensor begin at (row, column). What lies around them is zero.
struct LanePlanes {
  int64_t channels;
  int64_t rows;
  int64_t columns;
  int64_t row = 0;
  int64_t column = 0;

  int64_t plane() const { return rows * columns; }
  int64_t elements() const { return channels * plane(); }
  int64_t place(int64_t channel, int64_t row_, int64_t column_) const {
    return channel * plane() + (row + row_) * columns + column + column_;
  }
};

// Where each element of an image of height x width pixels, in the order of the tensor, lies in the planes.
template <class T>
std::vector<int64_t> places_of_elements(const ImageSource<T>& x, const LanePlanes& planes, int64_t height,
                                        int64_t width) {
  std::vector<int64_t> places(static_cast<size_t>(planes.channels * height * width));
  for (int64_t c = 0; c < planes.channels; ++c) {
    for (int64_t i = 0; i < height; ++i) {
      for (int64_t j = 0; j < width; ++j)
        places[c * x.channel_stride + i * x.row_stride + j * x.column_stride] = planes.place(c, i, j);
    }
  }
  return places;
}

// to[place * kLanes + lane] = element of image first + lane, zero in the lanes behind the `images`.
template <class T>
void images_to_lanes(const ImageSource<T>& x, int64_t first, int64_t images,
                     const std::vector<int64_t>& places, acc_t<T>* to) {
  using Acc = acc_t<T>;
  constexpr int n = Vec<Acc>::kLanes;
  const int64_t start = first * x.image_stride;
  for_each_vector<Acc>(static_cast<int64_t>(places.size()), [&](int64_t e, int some) {
    Vec<Acc> square[n];
    const auto read = [&](int i, int lanes) {
      const int64_t at = start + i * x.image_stride + e;
      __builtin_prefetch(x.values + at + 4 * n);  // of so many images at a time
      if (x.relu_output != nullptr) __builtin_prefetch(x.relu_output + at + 4 * n);
      return x.vector(at, lanes);
    };
    if (images == n && some == n) {  // the square stays in registers
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) square[i] = read(i, n);
    } else {
      for (int i = 0; i < n; ++i) square[i] = i < images ? read(i, some) : Vec<Acc>(Acc(0));
    }
    transpose<Acc>(square);
    for (int i = 0; i < some; ++i) store(to + places[e + i] * n, square[i]);
  });
}

// The inverse for `count` vectors of lanes, vector i at from + at(i): to[image * image_stride + i] for the
// first `images`. Writes whole vectors.
template <class Acc, class At>
void lanes_to_images(const Acc* from, const At& at, int64_t count, int64_t images, Acc* to,
                     int64_t image_stride) {
  constexpr int n = Vec<Acc>::kLanes;
  for (int64_t i = 0; i < count; i += n) {
    Vec<Acc> square[n];
    if (i + n <= count) {
#pragma GCC unroll 16
      for (int k = 0; k < n; ++k) square[k] = load<Acc>(from + at(i + k));
    } else {
      for (int k = 0; k < n; ++k) square[k] = i + k < count ? load<Acc>(from + at(i + k)) : Vec<Acc>(Acc(0));
    }
    transpose<Acc>(square);
    for (int64_t k = 0; k < images; ++k) store(to + k * image_stride + i, square[k]);
  }
}

}  // namespace pyops::cpu
