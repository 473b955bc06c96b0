// What a core can do at most, for the floor and the cycles in the tables of the ladders.
#include <cstdint>
#include <thread>
#include <vector>

// A turn of this loop takes exactly one cycle, on every core that there is: a count that is waited for, and a
// jump that is foreseen. Seconds and turns give the clock that a core keeps while it works.
extern "C" void turns(int64_t count) { asm volatile("1: dec %0\n\tjnz 1b" : "+r"(count) : : "cc"); }

namespace {

#ifdef __AVX512F__
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif
constexpr int64_t kChains = 10;  // enough that none is waited for, and few enough for the registers
typedef float Floats __attribute__((vector_size(4 * kLanes)));

float multiply_add(int64_t count) {
  const Floats factor = Floats{} + 0.5f, term = Floats{} + static_cast<float>(count);
  Floats chains[kChains];
  for (int64_t k = 0; k < kChains; ++k) chains[k] = Floats{} + static_cast<float>(count + k);
  for (int64_t i = 0; i < count; ++i)
    for (Floats& chain : chains) chain = chain * factor + term;
  Floats sum = {};
  for (const Floats& chain : chains) sum += chain;
  return sum[0];
}

}  // namespace

// Does nothing but multiply and add, `count` times a vector in each of several chains, on all cores. Returns
// the number of floating-point operations.
extern "C" int64_t multiply_adds(int64_t count) {
  const int64_t cores = std::thread::hardware_concurrency();
  std::vector<float> sums(cores);  // used, or the compiler would leave all of it out
  std::vector<std::thread> threads;
  for (float& sum : sums) threads.emplace_back([&sum, count] { sum = multiply_add(count); });
  for (std::thread& thread : threads) thread.join();
  int64_t finite = 0;
  for (float sum : sums) finite += sum == sum;
  return 2 * kLanes * kChains * count * finite;
}
