#include "api.h"

#include <cstdlib>
#include <memory>
#include <mutex>

#include "grid.h"
#include "operations.h"

namespace ptx {

// A module, its variables in global memory, and its kernels as far as they have been asked for.
class Loaded {
 public:
  Loaded(const std::string& text, const std::string& name) : module_(parse(text, name)) {
    for (const Variable& v : module_.globals) {
      auto& memory = globals_.emplace_back(std::make_unique<uint8_t[]>(v.bytes + 64));
      uint8_t* const first = memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64) % 64;
      std::copy(v.initial.begin(), v.initial.end(), first);
      addresses_[v.name] = reinterpret_cast<uint64_t>(first);
      allocations().add(addresses_[v.name], v.bytes);
    }
    for (const Entry& e : module_.entries) names_ += e.name + "\n";
  }
  ~Loaded() {
    for (const auto& [name, address] : addresses_) allocations().remove(address);
  }
  Loaded(const Loaded&) = delete;

  const std::string& names() const { return names_; }

  const Program& program(const std::string& name) {
    const std::lock_guard lock(mutex_);
    auto& found = programs_[name];
    if (found) return *found;
    for (const Entry& e : module_.entries) {
      if (e.name == name) found = decode(module_, e, addresses_);
    }
    if (!found) throw Fault(module_.name + " has no kernel " + name);
    return *found;
  }

 private:
  Module module_;
  std::vector<std::unique_ptr<uint8_t[]>> globals_;
  std::map<std::string, uint64_t> addresses_;
  std::map<std::string, std::unique_ptr<Program>> programs_;
  std::string names_;
  std::mutex mutex_;
};

namespace {

thread_local std::string last_error;
thread_local Grid grid;
uint64_t seed = 0;
bool counting = false;
uint64_t sample = 0;
PtxListener listener = nullptr;

template <class Function>
auto guarded(Function function, decltype(function()) on_error) {
  try {
    return function();
  } catch (const std::exception& error) {
    last_error = error.what();
    return on_error;
  }
}

void run(Loaded& module, const char* entry, const PtxLaunch& launch) {
  const Program& program = module.program(entry);
  grid = Grid();
  grid.program = &program;
  grid.launch = &launch;
  grid.random.state = seed;
  grid.shuffled = seed != 0;
  grid.counting = counting;
  grid.sample = sample;
  grid.run();
  if (listener) listener(program.module.c_str(), entry, &launch, program.static_shared, &grid.counters);
}

}  // namespace
}  // namespace ptx

#define PTX_API extern "C" __attribute__((visibility("default")))

PTX_API const char* ptx_error() { return ptx::last_error.c_str(); }

PTX_API void* ptx_load(const char* text, const char* name) {
  return ptx::guarded([&]() -> void* { return new ptx::Loaded(text, name); }, nullptr);
}

PTX_API void ptx_unload(void* module) { delete static_cast<ptx::Loaded*>(module); }

PTX_API const char* ptx_entries(void* module) { return static_cast<ptx::Loaded*>(module)->names().c_str(); }

PTX_API int ptx_decode(void* module, const char* entry) {
  return ptx::guarded([&] { return static_cast<ptx::Loaded*>(module)->program(entry), 0; }, 1);
}

PTX_API int ptx_run(void* module, const char* entry, const PtxLaunch* launch) {
  return ptx::guarded(
      [&] {
        try {
          ptx::run(*static_cast<ptx::Loaded*>(module), entry, *launch);
        } catch (const ptx::Fault& fault) {
          throw ptx::Fault(std::string(entry) + ": " + fault.what());
        }
        return 0;
      },
      1);
}

PTX_API int64_t ptx_resident_blocks(void* module, const char* entry, uint32_t threads,
                                    uint32_t dynamic_shared, uint32_t registers) {
  return ptx::guarded(
      [&] {
        const uint64_t shared =
            static_cast<ptx::Loaded*>(module)->program(entry).static_shared + dynamic_shared;
        return ptx::multiprocessors * ptx::blocks_per_multiprocessor(threads, shared, registers);
      },
      int64_t{-1});
}

PTX_API uint64_t ptx_static_shared(void* module, const char* entry) {
  return ptx::guarded([&] { return static_cast<ptx::Loaded*>(module)->program(entry).static_shared; },
                      ~uint64_t{0});
}

PTX_API void ptx_allocated(const void* p, uint64_t bytes) {
  ptx::allocations().add(reinterpret_cast<uint64_t>(p), bytes);
}
PTX_API void ptx_freed(const void* p) { ptx::allocations().remove(reinterpret_cast<uint64_t>(p)); }
PTX_API void ptx_set_seed(uint64_t value) { ptx::seed = value; }
PTX_API void ptx_count(int on) { ptx::counting = on != 0; }
PTX_API const PtxCounters* ptx_counters() { return &ptx::grid.counters; }
PTX_API void ptx_sample(uint64_t blocks) { ptx::sample = blocks; }
PTX_API void ptx_set_multiprocessors(uint32_t count) { ptx::multiprocessors = count; }
PTX_API void ptx_listen(PtxListener listener) { ptx::listener = listener; }
