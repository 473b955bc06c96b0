// The scheduler behind cuda_runtime.h: fibers, barriers, warp exchanges, shared memory, deadlock reports.
#include <algorithm>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "context.h"
#include "cuda_runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulation {
namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr int kGarbage = 0xff;  // NaN as float, double and bfloat16, -1 as an integer

enum class State { kReady, kAtBarrier, kExchanging, kWatching, kExited };

struct AsyncCopy {
  void* to;
  const void* from;
  int bytes, given;
};

struct Thread {
  Fiber fiber;
  uint3 index;
  State state;
  Site site;
  // The exchange it waits in.
  unsigned mask;
  int source;
  uint64_t deposit;
  Exchanged result;
  // The counter that it watches, and what that has to reach.
  const unsigned* counter;
  unsigned target;
  std::deque<std::vector<AsyncCopy>> copies;  // groups, the last one open
};

std::string at(Site site) {
  const std::string file = site.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line);
}

bool same(Site a, Site b) { return a.line == b.line && std::string(a.file) == b.file; }

std::string text(uint3 i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

// splitmix64 (Steele, Lea and Flood 2014).
struct Random {
  uint64_t state;
  uint64_t operator()() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
};

struct SharedArray {
  std::unique_ptr<char[]> bytes;  // its own allocation, so that AddressSanitizer sees its ends
  size_t size;
  bool used;
};

// A block in flight. Its threads' fibers outlive it and serve the blocks after it.
struct Block {
  uint3 index;
  std::vector<Thread> threads = std::vector<Thread>(kMaxThreads);
  unsigned at_barrier;
  std::unique_ptr<char[]> dynamic;
  std::map<const void*, SharedArray> shared;
};

class Emulator {
 public:
  int cooperative_launches = 0;

  void run(const Launch& launch, const std::function<void()>& kernel) {
    const std::lock_guard<std::mutex> lock(mutex_);
    check_launch(launch);
    kernel_ = &kernel;
    blockDim = launch.block;
    gridDim = launch.grid;
    count_ = launch.block.x * launch.block.y * launch.block.z;
    const char* seed = std::getenv("PYOPS_EMULATION_SEED");
    random_ = Random{seed ? std::strtoull(seed, nullptr, 10) : 0};
    shuffled_ = random_.state != 0;
    cooperative_launches += launch.cooperative;
    const uint64_t blocks = blocks_of(launch.grid), in_flight = launch.cooperative ? blocks : 1;
    while (blocks_.size() < in_flight) blocks_.emplace_back();
    for (uint64_t b = 0; b < in_flight; ++b) {
      blocks_[b].dynamic = std::make_unique<char[]>(launch.shared_bytes);
      blocks_[b].shared.clear();
    }
    uint64_t step = shuffled_ ? random_() % blocks + 1 : 1, next = shuffled_ ? random_() % blocks : 0;
    while (std::gcd(step, blocks) != 1) ++step;
    for (uint64_t b = 0; b < blocks; b += in_flight) {
      for (uint64_t i = 0; i < in_flight; ++i, next = (next + step) % blocks) {
        start_block(blocks_[i], launch, next);
      }
      run_blocks(in_flight);
    }
  }

  void barrier(Site site) {
    current_->site = site;
    current_->state = State::kAtBarrier;
    if (++block_->at_barrier == count_) open_barrier();
    suspend();
  }

  void watch(const unsigned* counter, unsigned target, Site site) {
    current_->site = site;
    current_->counter = counter;
    current_->target = target;
    current_->state = State::kWatching;
    suspend();
  }

  Exchanged exchange(unsigned mask, int source, uint64_t deposit, Site site,
                     void (*apply)(void* const*) = nullptr) {
    Thread& me = *current_;
    if (!(mask >> lane() & 1)) fail("is not in the mask of its own warp operation", site);
    me.site = site;
    me.mask = mask;
    me.source = source;
    me.deposit = deposit;
    me.state = State::kExchanging;
    complete_exchange(mask, site, apply);
    if (me.state == State::kExchanging) suspend();
    return me.result;
  }

  void copy_async(AsyncCopy copy) {
    if (reinterpret_cast<uintptr_t>(copy.to) % copy.bytes ||
        reinterpret_cast<uintptr_t>(copy.from) % copy.bytes)
      return fail("copies from or to an address that is no multiple of the copy's size", {"cp.async", 0});
    auto& groups = current_->copies;
    if (groups.empty()) groups.emplace_back();
    groups.back().push_back(copy);
  }
  void commit_copies() {
    if (current_->copies.empty()) current_->copies.emplace_back();
    current_->copies.emplace_back();
  }
  void wait_for_copies(size_t pending_groups) {
    for (auto& groups = current_->copies; groups.size() > pending_groups + 1; groups.pop_front()) {
      for (const AsyncCopy& copy : groups.front()) {
        memset(copy.to, 0, copy.bytes);
        memcpy(copy.to, copy.from, copy.given);
      }
    }
  }

  int lane() const { return int(current_ - block_->threads.data()) % warpSize; }

  void* shared_array(const void* key, size_t bytes) {
    SharedArray& array = block_->shared[key];
    if (!array.bytes) array = {std::make_unique<char[]>(bytes), bytes, false};
    if (!array.used) memset(array.bytes.get(), kGarbage, bytes);
    array.used = true;
    return array.bytes.get();
  }

  void* dynamic_shared() { return block_->dynamic.get(); }

  // What a fiber does, for ever: one kernel call per block.
  void thread_main() {
    while (true) {
      (*kernel_)();
      current_->state = State::kExited;
      suspend();
    }
  }

 private:
  static uint64_t blocks_of(dim3 grid) { return uint64_t(grid.x) * grid.y * grid.z; }

  static void check_launch(const Launch& launch) {
    const dim3 grid = launch.grid, block = launch.block;
    const uint64_t threads = uint64_t(block.x) * block.y * block.z;
    if (threads == 0 || threads > kMaxThreads || block.z > 64) {
      throw std::runtime_error("emulated launch: a block must have 1 to 1024 threads, got " +
                               std::to_string(threads));
    }
    if (grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 || grid.y > 65535 || grid.z == 0 ||
        grid.z > 65535) {
      throw std::runtime_error("emulated launch: grid (" + std::to_string(grid.x) + ", " +
                               std::to_string(grid.y) + ", " + std::to_string(grid.z) +
                               ") is outside (1..2^31-1, 1..65535, 1..65535)");
    }
    if (launch.shared_bytes > launch.max_shared_bytes) {
      throw std::runtime_error("emulated launch: more than " +
                               std::to_string(launch.max_shared_bytes / 1024) +
                               " KiB of dynamic shared memory");
    }
    if (launch.cooperative && blocks_of(grid) > kResidentBlocks) {
      throw std::runtime_error("emulated launch: " + std::to_string(blocks_of(grid)) +
                               " cooperating blocks, more than the " + std::to_string(kResidentBlocks) +
                               " that can be resident at once");
    }
  }

  void start_block(Block& block, const Launch& launch, uint64_t number) {
    const dim3 grid = launch.grid, size = launch.block;
    block.index = {unsigned(number % grid.x), unsigned(number / grid.x % grid.y),
                   unsigned(number / grid.x / grid.y)};
    for (auto& entry : block.shared) entry.second.used = false;
    memset(block.dynamic.get(), kGarbage, launch.shared_bytes);
    block.at_barrier = 0;
    for (unsigned t = 0; t < count_; ++t) {
      Thread& thread = block.threads[t];
      thread.index = {t % size.x, t / size.x % size.y, t / size.x / size.y};
      thread.state = State::kReady;
      thread.copies.clear();
    }
  }

  // The first blocks of blocks_, to their end, in turns.
  void run_blocks(uint64_t in_flight) {
    for (bool progress = true; progress;) {
      progress = false;
      const uint64_t first = shuffled_ ? random_() % in_flight : 0;
      for (uint64_t i = 0; i < in_flight; ++i) {
        block_ = &blocks_[(first + i) % in_flight];
        blockIdx = block_->index;
        while (run_ready_threads()) progress = true;
      }
    }
    for (uint64_t i = 0; i < in_flight; ++i) {
      block_ = &blocks_[i];
      blockIdx = block_->index;
      for (unsigned t = 0; t < count_; ++t) {
        if (block_->threads[t].state != State::kExited) abandon("deadlock: " + describe_waiting());
      }
    }
  }

  static bool can_run(const Thread& thread) {
    // As a difference, which is right for counters that have wrapped around.
    if (thread.state == State::kWatching) return int(*thread.counter - thread.target) >= 0;
    return thread.state == State::kReady;
  }

  // Lets every thread of the block that can run go on to its next wait. False when none could.
  bool run_ready_threads() {
    if (order_.size() != count_) {
      order_.resize(count_);
      std::iota(order_.begin(), order_.end(), 0u);
    }
    for (unsigned i = count_; shuffled_ && i > 1; --i) std::swap(order_[i - 1], order_[random_() % i]);
    bool progress = false;
    for (unsigned t : order_) {
      Thread& thread = block_->threads[t];
      if (!can_run(thread)) continue;
      progress = true;
      thread.state = State::kReady;
      current_ = &thread;
      threadIdx = thread.index;
      thread.fiber.resume();
      if (!failure_.empty()) abandon(failure_);
    }
    return progress;
  }

  void suspend() {
    Thread* const me = current_;
    me->fiber.suspend();
  }

  void open_barrier() {
    std::vector<Thread>& threads = block_->threads;
    for (unsigned t = 0; t < count_; ++t) {
      if (!same(threads[t].site, threads[0].site)) {
        fail_at("divergent barrier: thread " + text(threads[0].index) + " waits at " + at(threads[0].site) +
                ", thread " + text(threads[t].index) + " at " + at(threads[t].site));
        return;
      }
    }
    block_->at_barrier = 0;
    for (unsigned t = 0; t < count_; ++t) threads[t].state = State::kReady;
  }

  // The threads of the current warp, and how many there are.
  Thread* warp() {
    Thread* const first = block_->threads.data();
    return first + (current_ - first) / warpSize * warpSize;
  }
  unsigned warp_size() { return std::min<size_t>(warpSize, block_->threads.data() + count_ - warp()); }

  void complete_exchange(unsigned mask, Site site, void (*apply)(void* const*)) {
    Thread* const lanes = warp();
    const unsigned present = warp_size();
    unsigned ballot = 0;
    for (int i = 0; i < warpSize; ++i) {
      if (!(mask >> i & 1)) continue;
      if (unsigned(i) >= present) return fail("names lanes in its mask that the block does not have", site);
      const Thread& other = lanes[i];
      if (other.state == State::kExited)
        return fail("waits in a warp operation for a thread that has exited", site);
      if (other.state != State::kExchanging) return;
      if (other.mask != mask || !same(other.site, site)) {
        // Two operations that wait for each other's lanes never meet; else the other lane comes here later.
        if (other.mask >> lane() & 1) fail("meets another warp operation in its warp", site);
        return;
      }
      if (other.deposit) ballot |= 1u << i;
    }
    if (apply) {
      void* pointers[warpSize];
      for (int i = 0; i < warpSize; ++i) pointers[i] = reinterpret_cast<void*>(lanes[i].deposit);
      apply(pointers);
    }
    for (int i = 0; i < warpSize; ++i) {
      if (!(mask >> i & 1)) continue;
      Thread& other = lanes[i];
      if (!(mask >> other.source & 1)) return fail("reads from a lane outside the mask", site);
      other.result = {lanes[other.source].deposit, ballot};
      other.state = State::kReady;
    }
  }

  // Ends the launch from inside a fiber; the scheduler throws.
  void fail(const std::string& what, Site site) {
    fail_at("thread " + text(current_->index) + " " + what + " (" + at(site) + ")");
    suspend();
  }
  void fail_at(const std::string& what) {
    if (failure_.empty()) failure_ = what;
  }

  std::string describe_waiting() const {
    std::map<std::string, std::pair<unsigned, uint3>> groups;
    for (unsigned t = 0; t < count_; ++t) {
      const Thread& thread = block_->threads[t];
      std::string what = "exited";
      if (thread.state == State::kAtBarrier) what = "waiting at the barrier " + at(thread.site);
      if (thread.state == State::kExchanging) what = "waiting in the warp operation " + at(thread.site);
      if (thread.state == State::kWatching) what = "waiting for a counter " + at(thread.site);
      groups.try_emplace(what, 0u, thread.index).first->second.first += 1;
    }
    std::string list;
    for (const auto& [what, group] : groups) {
      list += (list.empty() ? "" : "; ") + std::to_string(group.first) + " thread(s) " + what +
              ", the first " + text(group.second);
    }
    return list;
  }

  // The fibers are left where they stand, so they start afresh next time.
  [[noreturn]] void abandon(std::string what) {
    failure_.clear();
    for (Block& block : blocks_) {
      for (Thread& thread : block.threads) thread.fiber.reset();
    }
    throw std::runtime_error("emulated kernel, block " + text(blockIdx) + ": " + what);
  }

  std::mutex mutex_;
  const std::function<void()>* kernel_ = nullptr;
  std::deque<Block> blocks_;  // in flight; a deque, whose elements stay where they are
  std::vector<unsigned> order_;
  unsigned count_ = 0;  // threads of a block
  Block* block_ = nullptr;
  Thread* current_ = nullptr;
  Random random_{0};
  bool shuffled_ = false;
  std::string failure_;
};

Emulator emulator;

// Of this host thread; null: the fibers.
thread_local const Launcher* launcher = nullptr;

}  // namespace

void run_fiber() { emulator.thread_main(); }

void run(const Launch& launch, const KernelCall& call, const std::function<void()>& thread) {
  if (!launcher) return emulator.run(launch, thread);
  if (const char* complaint = launcher->run(launch, call)) throw std::runtime_error(complaint);
}
int64_t resident_blocks(const void* kernel, int threads, size_t shared_bytes) {
  if (launcher) return launcher->resident_blocks(kernel, static_cast<uint32_t>(threads), shared_bytes);
  return shared_bytes <= kLargestSharedBytes ? kResidentBlocks : 0;
}
void barrier(Site site) { emulator.barrier(site); }
Exchanged exchange(unsigned mask, int source, uint64_t deposit, Site site) {
  return emulator.exchange(mask, source, deposit, site);
}
void wait_for_counter(const unsigned* counter, unsigned target, Site site) {
  emulator.watch(counter, target, site);
}
void collective(void* mine, void (*apply)(void* const*), Site site) {
  emulator.exchange(0xffffffffu, emulator.lane(), reinterpret_cast<uint64_t>(mine), site, apply);
}
void copy_async(void* to, const void* from, int bytes, int given) {
  emulator.copy_async({to, from, bytes, given});
}
void commit_copies() { emulator.commit_copies(); }
void wait_for_copies(int pending_groups) { emulator.wait_for_copies(pending_groups); }
void* shared_array(const void* key, size_t bytes) { return emulator.shared_array(key, bytes); }
void* dynamic_shared() { return emulator.dynamic_shared(); }
int lane() { return emulator.lane(); }

}  // namespace emulation

// From now on the launches of this host thread go to `launcher`, or to the fibers where it is null. Returns
// what was chosen before.
extern "C" __attribute__((visibility("default"))) const emulation::Launcher* pyops_emulation_use(
    const emulation::Launcher* launcher) {
  return std::exchange(emulation::launcher, launcher);
}

// For tests that ask which kernels have run.
extern "C" __attribute__((visibility("default"))) int pyops_cooperative_launches() {
  return emulation::emulator.cooperative_launches;
}
