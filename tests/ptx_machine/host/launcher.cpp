// Takes the launches of the emulated library (tests/cuda_emulation) to the PTX machine.
//
// Kernels are bound by their addresses before the first launch: to a source of nvcc's, whose PTX is read when
// one of its kernels first runs, and to an entry there.
#include "../../cuda_emulation/launcher.h"

#include <cxxabi.h>

#include <cstdlib>
#include <deque>
#include <exception>
#include <fstream>
#include <iterator>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "../core/api.h"

#define PYOPS_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Source {
  std::string name;
  std::string path;
  void* module = nullptr;
};

struct Entry {
  Source* source;
  std::string name;
  uint32_t registers;
  uint64_t launches = 0;
};

std::mutex mutex;
std::deque<Source> sources;  // a deque, whose elements stay where they are
std::unordered_map<const void*, Entry> entries;
thread_local std::string complaint;

// Its module is loaded.
Entry& find(const void* kernel) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = entries.find(kernel);
  if (found == entries.end()) throw std::runtime_error("a kernel that nvcc has made no PTX of");
  Source& source = *found->second.source;
  if (!source.module) {
    std::ifstream file(source.path, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    source.module = ptx_load(text.c_str(), source.name.c_str());
    if (!source.module) throw std::runtime_error(source.name + ": " + ptx_error());
  }
  return found->second;
}

// The name in the source, with its template arguments and without the namespaces of every kernel.
std::string readable(const std::string& mangled) {
  int status = 0;
  char* const text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  if (status != 0) return mangled;
  std::string name = text;
  free(text);
  for (const std::string& dropped : {"void ", "pyops::cuda::", "(anonymous namespace)::", "pyops::"}) {
    for (size_t at = name.find(dropped); at != std::string::npos; at = name.find(dropped))
      name.erase(at, dropped.size());
  }
  int depth = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    if (name[i] == '<') ++depth;
    if (name[i] == '>') --depth;
    if (name[i] == '(' && depth == 0) return name.substr(0, i);
  }
  return name;
}

std::string text(dim3 d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

void run(const emulation::Launch& launch, const emulation::KernelCall& call) {
  Entry& entry = find(call.kernel);
  PtxLaunch request{};
  request.grid[0] = launch.grid.x;
  request.grid[1] = launch.grid.y;
  request.grid[2] = launch.grid.z;
  request.block[0] = launch.block.x;
  request.block[1] = launch.block.y;
  request.block[2] = launch.block.z;
  request.dynamic_shared = static_cast<uint32_t>(launch.shared_bytes);
  request.max_dynamic_shared = static_cast<uint32_t>(launch.max_shared_bytes);
  request.cooperative = launch.cooperative;
  request.registers = entry.registers;
  request.arguments = call.arguments;
  request.argument_bytes = call.argument_bytes;
  request.n_arguments = call.n_arguments;
  if (ptx_run(entry.source->module, entry.name.c_str(), &request) == 0) {
    const std::lock_guard<std::mutex> lock(mutex);
    ++entry.launches;
    return;
  }
  std::string fault = ptx_error();
  const std::string prefix = entry.name + ": ";
  if (fault.rfind(prefix, 0) == 0) fault.erase(0, prefix.size());
  throw std::runtime_error(readable(entry.name) + ", grid " + text(launch.grid) + ", block " +
                           text(launch.block) + ", " + std::to_string(launch.shared_bytes) +
                           " bytes of dynamic shared memory: " + fault);
}

const char* run_or_complain(const emulation::Launch& launch, const emulation::KernelCall& call) {
  try {
    run(launch, call);
    return nullptr;
  } catch (const std::exception& error) {
    complaint = std::string("PTX machine: ") + error.what();
    return complaint.c_str();
  }
}

int64_t resident_blocks(const void* kernel, uint32_t threads, size_t shared_bytes) {
  try {
    const Entry& entry = find(kernel);
    return ptx_resident_blocks(entry.source->module, entry.name.c_str(), threads,
                               static_cast<uint32_t>(shared_bytes), entry.registers);
  } catch (const std::exception&) {
    return -1;
  }
}

}  // namespace

// For pyops_emulation_use.
PYOPS_EXPORT const emulation::Launcher* ptx_launcher() {
  static const emulation::Launcher launcher{&run_or_complain, &resident_blocks};
  return &launcher;
}

PYOPS_EXPORT void* ptx_add_source(const char* name, const char* path) {
  const std::lock_guard<std::mutex> lock(mutex);
  return &sources.emplace_back(Source{name, path});
}

PYOPS_EXPORT void ptx_bind(const void* kernel, void* source, const char* entry, uint32_t registers) {
  const std::lock_guard<std::mutex> lock(mutex);
  entries[kernel] = {static_cast<Source*>(source), entry, registers};
}

// How often the kernel has run since it was bound.
PYOPS_EXPORT uint64_t ptx_launches(const void* kernel) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = entries.find(kernel);
  return found == entries.end() ? 0 : found->second.launches;
}
