// What work takes, and when it pays to share it: the one place of such numbers.
//
// Measured on 2 cores of an AMD EPYC (Zen 4), torch 2.13 with libgomp, medians:
//   an empty region (torch::stable::parallel_for)    0.7 us; 1 to 2 us when the last one ended 1 to 5 ms ago;
//                                                    10 to 70 us where threads sleep
//                                                    (OMP_WAIT_POLICY=passive)
//   the same beside a busy process on one core       0.7 us, or 4000 to 8000 us: what the scheduler gives at
//   a time ReLU, one thread, data in the L3 cache           0.09 ns an element of 4 bytes; in memory 0.19 ns
//   sigmoid, one thread                              0.28 ns
//   ReLU of 32768, 65536 elements, one and two threads    5.7 and 6.5, 9.0 and 7.0 us, of which 3.2 are the
//   call
// A shared loop also fetches data from another core's cache, so that it pays from two of such regions on. A
// region can take a scheduler's slice where others are busy, too: few and long regions are better than many.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pyops::cpu::cost {

// Times are in nanoseconds of one thread.

// Copying an element: reading 4 bytes and writing 4. Costs in elements have it as their unit.
constexpr double kElement = 0.1;
// A multiplication and addition of a product's: 50 of float32 in a nanosecond, with vectors of 512 bits.
constexpr double kMultiplication = 0.02;
// The work that justifies one more thread.
constexpr double kWakeUp = 2500;

constexpr double elements(double count) { return count * kElement; }
constexpr double multiplications(double count) { return count * kMultiplication; }

// Whether work is worth two threads.
constexpr bool pays(double time) { return time >= 2 * kWakeUp; }

// How many of `available` threads work is worth.
inline int64_t threads(double time, int64_t available) {
  return static_cast<int64_t>(
      std::clamp(time / kWakeUp, 1.0, static_cast<double>(std::max<int64_t>(available, 1))));
}

// How much of a thread's work it claims at a time. What it has claimed is held up with it while another
// process has its core, but a claim costs some ten nanoseconds.
inline double claim(double time_of_thread) { return std::clamp(time_of_thread / 16, 500.0, 50e3); }

// The elements of a block whose sums are formed by one thread and merged in order: as many as any number of
// threads can share without the merging being felt. Part of the results' bits.
constexpr int64_t kBlockElements = 16384;

}  // namespace pyops::cpu::cost
