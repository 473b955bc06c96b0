// Weights from their tensor, in either format and seen from either side, to the blocks that kernels want,
// vectors of output channels, and back. Both ways transpose squares of vectors in registers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/integers.h"
#include "cpu/conv2d/problem.h"
#include "cpu/simd/loops.h"

namespace pyops::cpu {

// A part of a group's weights: all taps between some channels.
struct TapRange {
  int64_t group;
  int64_t first_input;
  int64_t inputs;
  int64_t first_output;
  int64_t outputs;
};

// Input channels worth reading in one go, where channels are neighbours, unless that makes too large a block.
inline int64_t channels_in_block(int64_t taps) {
  constexpr int64_t kVectors = 512;
  return std::max<int64_t>(
      1, std::min<int64_t>(kVectorBytes / static_cast<int64_t>(sizeof(float)), kVectors / taps));
}

// to[j * to_stride + i] = from[i * from_stride + j] for i < lanes and j < count, zeros in the other lanes.
// Prefetches what lies `ahead`: the CPU does not see where lines so short and so far apart follow.
template <class T>
void lines_to_vectors(const T* from, int64_t from_stride, int lanes, int64_t count, acc_t<T>* to,
                      int64_t to_stride, int64_t ahead) {
  using Acc = acc_t<T>;
  for_each_vector<Acc>(count, [&](int64_t j, int some) {
    Vec<Acc> square[Vec<Acc>::kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < Vec<Acc>::kLanes; ++i) {  // of a line that does not exist no lane is read
      const T* const line = from + i * from_stride + j;
      __builtin_prefetch(line + ahead);
      square[i] = load_partial<Acc>(line, i < lanes ? some : 0, Acc(0));
    }
    transpose<Acc>(square);
#pragma GCC unroll 16
    for (int i = 0; i < Vec<Acc>::kLanes; ++i) {
      if (i < some) store(to + (j + i) * to_stride, square[i]);
    }
  });
}

// The inverse.
template <class T>
void vectors_to_lines(const acc_t<T>* from, int64_t from_stride, int lanes, int64_t count, T* to,
                      int64_t to_stride) {
  using Acc = acc_t<T>;
  for_each_vector<Acc>(count, [&](int64_t j, int some) {
    Vec<Acc> square[Vec<Acc>::kLanes];
    for (int i = 0; i < Vec<Acc>::kLanes; ++i)
      square[i] = i < some ? load<Acc>(from + (j + i) * from_stride) : Vec<Acc>(Acc(0));
    transpose<Acc>(square);
    for (int i = 0; i < lanes; ++i) store_lanes(to + i * to_stride + j, square[i], some);
  });
}

// Calls f(offset, i, lanes) for each vector of output channels, of which `lanes` exist: it begins at element
// `offset` of the tensor and of a block's row.
template <class Acc, class F>
void for_each_output_vector(int64_t outputs, int64_t line, const F& f) {
  constexpr int64_t n = Vec<Acc>::kLanes;
  for (int64_t k = 0; k < line; k += n) f(k, static_cast<int>(std::clamp<int64_t>(outputs - k, 0, n)));
}

// Where a block of weights has rows of output channels.
struct TapStrides {
  int64_t channel;
  int64_t tap;
};

// Reads weights as rows of `line` output channels, a multiple of a vector, with zeros behind them.
template <class T>
void read_taps(const ConvWeights<T>& w, const TapRange& range, int64_t line, acc_t<T>* to,
               const TapStrides& strides) {
  using Acc = acc_t<T>;
  const int64_t taps = w.taps();
  const T* const start = w.values + range.group * w.group_stride + range.first_input * w.input_stride +
                         range.first_output * w.output_stride;
  constexpr int64_t kAhead = 4;                       // channels
  if (w.output_stride != 1 && w.input_stride != 1) {  // taps are neighbours
    for (int64_t c = 0; c < range.inputs; ++c) {
      for_each_output_vector<Acc>(range.outputs, line, [&](int64_t k, int lanes) {
        lines_to_vectors(start + k * w.output_stride + c * w.input_stride, w.output_stride, lanes, taps,
                         to + c * strides.channel + k, strides.tap, kAhead * w.input_stride);
      });
    }
    return;
  }
  for_each_output_vector<Acc>(range.outputs, line, [&](int64_t k, int lanes) {
    const T* const from = start + k * w.output_stride;
    if (w.output_stride == 1) {
      for (int64_t i = 0; i < range.inputs * taps; ++i) {
        const T* const at = from + i / taps * w.input_stride + w.tap_offset(i % taps);
        store(to + i / taps * strides.channel + i % taps * strides.tap + k,
              load_partial<Acc>(at, lanes, Acc(0)));
      }
    } else {
      for (int64_t tap = 0; tap < taps; ++tap) {
        lines_to_vectors(from + w.tap_offset(tap), w.output_stride, lanes, range.inputs,
                         to + tap * strides.tap + k, strides.channel,
                         w.tap_offset(tap + 1) - w.tap_offset(tap));
      }
    }
  });
}

// Reads them as [input channel][tap][output channel].
template <class T>
void read_taps(const ConvWeights<T>& w, const TapRange& range, int64_t line, acc_t<T>* to) {
  read_taps(w, range, line, to, {w.taps() * line, line});
}

// Writes a block [input channel][tap][output channel] to `values`, laid out as w's.
template <class T>
void write_taps(const ConvWeights<T>& w, const TapRange& range, int64_t line, const acc_t<T>* from,
                T* values) {
  using Acc = acc_t<T>;
  const int64_t taps = w.taps();
  T* const start = values + range.group * w.group_stride + range.first_input * w.input_stride +
                   range.first_output * w.output_stride;
  for_each_output_vector<Acc>(range.outputs, line, [&](int64_t k, int lanes) {
    T* const to = start + k * w.output_stride;
    if (w.input_stride == 1) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        vectors_to_lines(from + tap * line + k, taps * line, lanes, range.inputs, to + w.tap_offset(tap),
                         w.output_stride);
      }
    } else {
      for (int64_t c = 0; c < range.inputs; ++c)
        vectors_to_lines(from + c * taps * line + k, line, lanes, taps, to + c * w.input_stride,
                         w.output_stride);
    }
  });
}

}  // namespace pyops::cpu
