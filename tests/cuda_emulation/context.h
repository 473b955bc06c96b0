// Fibers: threads of control with their own stack that give way to the scheduler only when they say so.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {

// Defined by the scheduler; what every fiber runs, without ever returning.
void run_fiber();

constexpr size_t kStackBytes = 256 * 1024;  // reserved; pages are taken as they are touched

#if defined(__x86_64__)

// Saves the registers that a call preserves on the old stack and restores them from the new one.
// (swapcontext makes two system calls per switch, which is a hundred times slower.)
extern "C" void pyops_switch_stack(void** save, void* load);
asm(R"(
.text
.hidden pyops_switch_stack
.globl pyops_switch_stack
.type pyops_switch_stack, @function
pyops_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pyops_switch_stack, .-pyops_switch_stack
)");

struct Context {
  void* stack_pointer = nullptr;

  void start(char* stack, size_t bytes, void (*entry)()) {
    // The switch pops six registers and returns to `entry`, which must find the stack as after a call.
    auto** top = reinterpret_cast<void**>(stack + bytes) - 8;
    for (int i = 0; i < 6; ++i) top[i] = nullptr;
    top[6] = reinterpret_cast<void*>(entry);
    stack_pointer = top;
  }
  static void swap(Context& from, Context& to) { pyops_switch_stack(&from.stack_pointer, to.stack_pointer); }
};

#else

struct Context {
  ucontext_t state;

  void start(char* stack, size_t bytes, void (*entry)()) {
    getcontext(&state);
    state.uc_stack.ss_sp = stack;
    state.uc_stack.ss_size = bytes;
    state.uc_link = nullptr;
    makecontext(&state, entry, 0);
  }
  static void swap(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
};

#endif

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  ~Fiber() {
    if (stack_) munmap(stack_, kStackBytes);
  }

  // From the scheduler: runs the fiber until it suspends.
  void resume() {
    if (!started_) start();
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, stack_, kStackBytes);
#endif
    Context::swap(scheduler_, own_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  // From the fiber: back to the scheduler.
  void suspend() {
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, scheduler_stack_, scheduler_stack_bytes_);
#endif
    Context::swap(own_, scheduler_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

  // Forgets where the fiber stands; the next resume starts it anew.
  void reset() { started_ = false; }

 private:
  static void enter() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &starting_->scheduler_stack_,
                                    &starting_->scheduler_stack_bytes_);
#endif
    run_fiber();
  }

  void start() {
    if (!stack_) {
      void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (p == MAP_FAILED) throw std::runtime_error("emulator: no memory for a fiber's stack");
      stack_ = static_cast<char*>(p);
    }
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
    own_.start(stack_, kStackBytes, &enter);
    starting_ = this;
    started_ = true;
  }

  inline static Fiber* starting_ = nullptr;
  Context own_, scheduler_;
  char* stack_ = nullptr;
  bool started_ = false;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
};

}  // namespace emulation
