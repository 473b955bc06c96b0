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
#include <vector>

#include "context.h"
#include "cuda_runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulation {
namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr int kGarbage = 0xff;  // NaN as float, double and bfloat16, -1 as an integer

enum class State { kReady, kAtBarrier, kExchanging, kExited };

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

class Emulator {
 public:
  void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel,
           size_t max_shared_bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    check_launch(grid, block, shared_bytes, max_shared_bytes);
    kernel_ = &kernel;
    blockDim = block;
    gridDim = grid;
    const char* seed = std::getenv("PYOPS_EMULATION_SEED");
    random_ = Random{seed ? std::strtoull(seed, nullptr, 10) : 0};
    shuffled_ = random_.state != 0;
    dynamic_ = std::make_unique<char[]>(shared_bytes);
    dynamic_bytes_ = shared_bytes;
    shared_.clear();
    prepare_threads(block);
    const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    uint64_t step = shuffled_ ? random_() % blocks + 1 : 1, next = shuffled_ ? random_() % blocks : 0;
    while (std::gcd(step, blocks) != 1) ++step;
    for (uint64_t b = 0; b < blocks; ++b, next = (next + step) % blocks) {
      blockIdx = {unsigned(next % grid.x), unsigned(next / grid.x % grid.y),
                  unsigned(next / grid.x / grid.y)};
      run_block();
    }
  }

  void barrier(Site site) {
    current_->site = site;
    current_->state = State::kAtBarrier;
    if (++at_barrier_ == count_) open_barrier();
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

  int lane() const { return int(current_ - threads_.data()) % warpSize; }

  void* shared_array(const void* key, size_t bytes) {
    SharedArray& array = shared_[key];
    if (!array.bytes) array = {std::make_unique<char[]>(bytes), bytes, false};
    if (!array.used) memset(array.bytes.get(), kGarbage, bytes);
    array.used = true;
    return array.bytes.get();
  }

  void* dynamic_shared() { return dynamic_.get(); }

  // What a fiber does, for ever: one kernel call per block.
  void thread_main() {
    while (true) {
      (*kernel_)();
      current_->state = State::kExited;
      suspend();
    }
  }

 private:
  static void check_launch(dim3 grid, dim3 block, size_t shared_bytes, size_t max_shared_bytes) {
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
    if (shared_bytes > max_shared_bytes) {
      throw std::runtime_error("emulated launch: more than " + std::to_string(max_shared_bytes / 1024) +
                               " KiB of dynamic shared memory");
    }
  }

  void prepare_threads(dim3 block) {
    count_ = block.x * block.y * block.z;
    order_.resize(count_);
    for (unsigned t = 0; t < count_; ++t) {
      threads_[t].index = {t % block.x, t / block.x % block.y, t / block.x / block.y};
      order_[t] = t;
    }
  }

  void run_block() {
    for (auto& entry : shared_) entry.second.used = false;
    memset(dynamic_.get(), kGarbage, dynamic_bytes_);
    at_barrier_ = 0;
    for (unsigned t = 0; t < count_; ++t) {
      threads_[t].state = State::kReady;
      threads_[t].copies.clear();
    }
    while (run_ready_threads()) {
    }
    for (unsigned t = 0; t < count_; ++t) {
      if (threads_[t].state != State::kExited) abandon("deadlock: " + describe_waiting());
    }
  }

  // Lets every thread that can run go on to its next wait. False when none could.
  bool run_ready_threads() {
    for (unsigned i = count_; shuffled_ && i > 1; --i) std::swap(order_[i - 1], order_[random_() % i]);
    bool progress = false;
    for (unsigned t : order_) {
      if (threads_[t].state != State::kReady) continue;
      progress = true;
      current_ = &threads_[t];
      threadIdx = current_->index;
      current_->fiber.resume();
      if (!failure_.empty()) abandon(failure_);
    }
    return progress;
  }

  void suspend() {
    Thread* const me = current_;
    me->fiber.suspend();
  }

  void open_barrier() {
    for (unsigned t = 0; t < count_; ++t) {
      if (!same(threads_[t].site, threads_[0].site)) {
        fail_at("divergent barrier: thread " + text(threads_[0].index) + " waits at " + at(threads_[0].site) +
                ", thread " + text(threads_[t].index) + " at " + at(threads_[t].site));
        return;
      }
    }
    at_barrier_ = 0;
    for (unsigned t = 0; t < count_; ++t) threads_[t].state = State::kReady;
  }

  // The threads of the current warp that have the lanes of `mask`.
  Thread* warp() { return threads_.data() + (current_ - threads_.data()) / warpSize * warpSize; }

  void complete_exchange(unsigned mask, Site site, void (*apply)(void* const*)) {
    Thread* const lanes = warp();
    const unsigned present = std::min<size_t>(warpSize, threads_.data() + count_ - lanes);
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
      const Thread& thread = threads_[t];
      std::string what = "exited";
      if (thread.state == State::kAtBarrier) what = "waiting at the barrier " + at(thread.site);
      if (thread.state == State::kExchanging) what = "waiting in the warp operation " + at(thread.site);
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
    for (Thread& thread : threads_) thread.fiber.reset();
    throw std::runtime_error("emulated kernel, block " + text(blockIdx) + ": " + what);
  }

  std::mutex mutex_;
  const std::function<void()>* kernel_ = nullptr;
  std::vector<Thread> threads_ = std::vector<Thread>(kMaxThreads);
  std::vector<unsigned> order_;
  unsigned count_ = 0, at_barrier_ = 0;
  Thread* current_ = nullptr;
  Random random_{0};
  bool shuffled_ = false;
  std::string failure_;
  std::unique_ptr<char[]> dynamic_;
  size_t dynamic_bytes_ = 0;
  std::map<const void*, SharedArray> shared_;
};

Emulator emulator;

}  // namespace

void run_fiber() { emulator.thread_main(); }

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel,
         size_t max_shared_bytes) {
  emulator.run(grid, block, shared_bytes, kernel, max_shared_bytes);
}
void barrier(Site site) { emulator.barrier(site); }
Exchanged exchange(unsigned mask, int source, uint64_t deposit, Site site) {
  return emulator.exchange(mask, source, deposit, site);
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
