// Launches from several threads and devices through csrc/cuda/launch.h; says what is wrong and then fails.
#include <atomic>
#include <cstdio>
#include <initializer_list>
#include <thread>
#include <vector>

#include "cuda/launch.h"

namespace {

using namespace pyops::cuda;

void first(int) {}
void second(int) {}

std::atomic<int> failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("not so: %s\n", what);
  ++failures;
}

bool refused(size_t bytes) {
  try {
    launch(second, 1, 32, bytes, nullptr, 1);
  } catch (const std::runtime_error&) {
    return true;
  }
  return false;
}

// Every way to take much shared memory, with little in one call and much in the next.
void take_shared_memory(int device) {
  fake::device = device;
  for (const size_t bytes : {90 * 1024, 50 * 1024, 60 * 1024}) {
    launch_large(first, 1, 32, bytes, nullptr, 1);
    expect(resident_blocks(first, 32, bytes / 2) == 8, "8 blocks are resident");
    launch_cooperative(first, 1, 32, bytes, nullptr, 1);
  }
}

}  // namespace

int main() {
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) threads.emplace_back(take_shared_memory, i % 2);
  for (std::thread& thread : threads) thread.join();
  const int most = fake::kMostShared - static_cast<int>(fake::kStaticShared);
  for (const auto& [key, requests] : fake::requests) {
    expect(requests == std::vector<int>{most}, "a kernel asks once per device, for the most there is");
  }
  expect(fake::requests.size() == 2, "one kernel asks on two devices");
  expect(resident_blocks(first, 32, most) == 8 && resident_blocks(first, 32, most + 1) == 0,
         "what the kernel has of static shared memory counts");
  expect(refused(60 * 1024), "a plain launch does not ask for more than 48 KiB");
  expect(cudaGetLastError() == cudaSuccess, "an error that was thrown is not left to the next launch");
  return failures;
}
