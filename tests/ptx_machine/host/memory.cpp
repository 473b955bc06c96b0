// Tells the PTX machine which of torch's memory kernels may touch: the storages that a call is given, and
// what is allocated until it returns. All else is out of bounds, live tensors of other calls included.
//
// Between any two of torch's allocations lie guard zones, so that no access past the end of one falls into
// another.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdint>
#include <new>
#include <unordered_set>
#include <vector>

#include "../core/api.h"

#define PYOPS_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr size_t kGuardBytes = 256;  // a multiple of every alignment that torch relies on
static_assert(sizeof(c10::DataPtr) <= kGuardBytes);

using Pointers = std::unordered_set<const void*>;

// What each call in progress has told the machine of, the innermost last.
thread_local std::vector<Pointers> calls;

bool is_known(const void* p) {
  for (const Pointers& call : calls) {
    if (call.count(p)) return true;
  }
  return false;
}

void tell(const void* p, uint64_t bytes) {
  if (is_known(p)) return;
  ptx_allocated(p, bytes);
  calls.back().insert(p);
}

// The allocator that was there before keeps the memory; what it returned lies in the front guard zone.
class GuardedAllocator final : public c10::Allocator {
 public:
  explicit GuardedAllocator(c10::Allocator* inner) : inner_(inner) {}

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return inner_->allocate(0);
    c10::DataPtr whole = inner_->allocate(bytes + 2 * kGuardBytes);
    auto* const base = static_cast<char*>(whole.get());
    const c10::Device device = whole.device();
    new (base) c10::DataPtr(std::move(whole));
    char* const p = base + kGuardBytes;
    if (!calls.empty()) tell(p, bytes);
    return {p, p, &release, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static void release(void* p) {
    if (!p) return;
    for (Pointers& call : calls) {
      if (call.erase(p)) ptx_freed(p);
    }
    // Moved out first: it frees the memory that it lies in.
    auto* const held = reinterpret_cast<c10::DataPtr*>(static_cast<char*>(p) - kGuardBytes);
    const c10::DataPtr whole = std::move(*held);
    held->~DataPtr();
  }

  c10::Allocator* inner_;
};

}  // namespace

// From now on torch's memory has guard zones.
PYOPS_EXPORT void ptx_guard_memory() {
  static GuardedAllocator allocator(c10::GetCPUAllocator());
  c10::SetCPUAllocator(&allocator, /*priority=*/255);
}

// A call of this thread begins, which is given `n` storages.
PYOPS_EXPORT void ptx_begin_call(const void* const* storages, const uint64_t* bytes, uint64_t n) {
  calls.emplace_back();
  for (uint64_t i = 0; i < n; ++i) tell(storages[i], bytes[i]);
}

PYOPS_EXPORT void ptx_end_call() {
  for (const void* p : calls.back()) ptx_freed(p);
  calls.pop_back();
}
