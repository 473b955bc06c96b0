// Whether other processes hold up our threads.
//
// A shared loop ends when its last thread has come: where another process has a core, all wait until the
// scheduler gives it back, some milliseconds for a loop of some ten microseconds. Blocks that threads claim
// do not help: a thread that finds nothing left must have come, too. So after such a wait loops that take
// less than it are worked through by the calling thread alone, for as long as the wait was; where threads are
// held up soon after they were tried again, for some times as long, and twice as long each time. What waiting
// costs is a small part of all then, and where the neighbour has gone, threads are back soon. Results do not
// depend on the number of threads.
#pragma once

#include <atomic>

namespace pyops::cpu {

// Times are in nanoseconds. Any number of threads may call everything at once: they disagree on no more than
// how many threads a loop has.
class HeldUp {
 public:
  // Shorter waits, in time and in blocks, have other reasons: a fresh page, a thread's last block, which may
  // take longer than was thought.
  static constexpr double kLeast = 1e6;
  static constexpr double kBlocks = 8;
  // How many times as long as the wait threads are left alone, at least, where they are held up once more;
  // how soon after they were tried again that is; and how long they are left alone at most.
  static constexpr double kRest = 4;
  static constexpr double kSoon = 32e6;
  static constexpr double kMostRest = 128e6;

  static double now();

  // Whether work that takes one thread `time` should not be shared at `now`.
  bool avoids(double time, double now) const {
    return now < until_.load(std::memory_order_relaxed) && time < wait_.load(std::memory_order_relaxed);
  }
  // The same, without looking at the clock where no thread was held up.
  bool avoids(double time) const {
    return time < wait_.load(std::memory_order_relaxed) && avoids(time, now());
  }

  // A thread that found no block left, each of which takes about `block`, waited for the others from `begin`
  // to `end`.
  void waited(double block, double begin, double end);

  // Of all threads that begin loops.
  static HeldUp& of_this_process();

 private:
  std::atomic<double> wait_{0};
  std::atomic<double> rest_{0};
  std::atomic<double> until_{0};
};

}  // namespace pyops::cpu
