// The rule of csrc/cpu/runtime/held_up.h, on a clock of its own. Returns how many expectations fail.
#include "cpu/runtime/held_up.h"

#include <cstdio>

using pyops::cpu::HeldUp;

namespace {

constexpr double kMillisecond = 1e6;
int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("does not hold: %s\n", what);
  ++failures;
}

}  // namespace

int main() {
  HeldUp fresh;
  expect(!fresh.avoids(10, 0), "threads are used until one has waited");

  HeldUp short_waits;
  short_waits.waited(0, 0, 0.9 * kMillisecond);
  short_waits.waited(kMillisecond, 0, 8.5 * kMillisecond);
  expect(!short_waits.avoids(10, 9 * kMillisecond),
         "a wait of a millisecond or of some blocks tells nothing");

  // Long after the clock began, which counts as the end of a rest.
  HeldUp held_up;
  const double first = 1000 * kMillisecond, wait = 4 * kMillisecond;
  held_up.waited(1000, first - wait, first);
  expect(held_up.avoids(3.9 * kMillisecond, first), "what takes less than the wait is not shared");
  expect(!held_up.avoids(4.1 * kMillisecond, first), "what takes longer is shared all the same");
  expect(held_up.avoids(10, first + wait - 1), "threads rest as long as the wait");
  expect(!held_up.avoids(10, first + wait + 1), "and are tried again");

  const double second = first + 3 * wait, rest = HeldUp::kRest * wait;
  held_up.waited(1000, second - wait, second);
  expect(held_up.avoids(10, second + rest - 1), "held up soon after, they rest for some times as long");
  expect(!held_up.avoids(10, second + rest + 1), "and no longer");

  const double third = second + rest + 2 * wait;
  held_up.waited(1000, third - wait, third);
  expect(held_up.avoids(10, third + 2 * rest - 1), "held up once more, they rest for twice as long");
  expect(!held_up.avoids(10, third + 2 * rest + 1), "and no longer than that");

  double end = third + 2 * rest;
  for (int i = 0; i < 20; ++i) {
    end += 2 * wait;
    held_up.waited(1000, end - wait, end);
    end += HeldUp::kMostRest;
  }
  expect(!held_up.avoids(10, end + 1), "there is a longest rest");

  const double late = end + 1000 * kMillisecond;
  held_up.waited(1000, late - wait, late);
  expect(!held_up.avoids(10, late + wait + 1), "held up long after, they rest as at first");
  return failures;
}
