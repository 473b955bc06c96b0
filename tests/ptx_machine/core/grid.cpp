#include "grid.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "addresses.h"

namespace ptx {
namespace {

// Warp instructions that a warp runs before another one may.
constexpr uint64_t kTurn = 4096;
// Warp instructions without a store, a change by an atomic, a barrier or an exit after which blocks that wait
// for each other are given up: two or three seconds.
constexpr uint64_t kPatience = 20'000'000;
// Instructions after which a single warp is given up, for loops that do not end but store.
constexpr uint64_t kMost = 50'000'000;
// Shared memory that a kernel may take without asking for more, and that a block can have at most.
constexpr uint64_t kUsualShared = 48 << 10, kMostShared = 227 << 10;
// Blocks of an ordinary launch that run at the same time where it matters.
constexpr uint64_t kInFlight = 3;

uint64_t blocks_of(const PtxLaunch& launch) {
  return uint64_t{launch.grid[0]} * launch.grid[1] * launch.grid[2];
}

uint32_t threads_of(const PtxLaunch& launch) { return launch.block[0] * launch.block[1] * launch.block[2]; }

void check(const Program& program, const PtxLaunch& launch) {
  const Entry& entry = *program.entry;
  const uint64_t threads = uint64_t{launch.block[0]} * launch.block[1] * launch.block[2];
  if (threads == 0 || threads > 1024 || launch.block[2] > 64) {
    throw Fault("a block must have 1 to 1024 threads, got " + std::to_string(threads));
  }
  if (launch.grid[0] == 0 || launch.grid[0] > 0x7fffffffu || launch.grid[1] == 0 || launch.grid[1] > 65535 ||
      launch.grid[2] == 0 || launch.grid[2] > 65535) {
    throw Fault("grid (" + std::to_string(launch.grid[0]) + ", " + std::to_string(launch.grid[1]) + ", " +
                std::to_string(launch.grid[2]) + ") is outside (1..2^31-1, 1..65535, 1..65535)");
  }
  if (entry.threads[0] != 0) {
    const uint64_t bound = uint64_t{entry.threads[0]} * entry.threads[1] * entry.threads[2];
    if (threads > bound || (entry.exact_threads && threads != bound)) {
      throw Fault("a block of " + std::to_string(threads) + " threads; the kernel was compiled for " +
                  std::to_string(bound));
    }
  }
  const bool asked = launch.max_dynamic_shared > kUsualShared;
  const uint64_t most = (asked ? kMostShared : kUsualShared) - program.static_shared;
  const uint64_t dynamic = std::min<uint64_t>(launch.max_dynamic_shared, most);
  if (program.static_shared > kUsualShared || launch.dynamic_shared > dynamic) {
    throw Fault(std::to_string(launch.dynamic_shared) +
                " bytes of dynamic shared memory; the kernel may take " + std::to_string(dynamic) +
                " besides its " + std::to_string(program.static_shared) + " static ones");
  }
  if (launch.n_arguments != entry.parameters.size()) {
    throw Fault(std::to_string(launch.n_arguments) + " arguments for a kernel of " +
                std::to_string(entry.parameters.size()));
  }
  for (uint32_t i = 0; i < launch.n_arguments; ++i) {
    if (launch.argument_bytes[i] != entry.parameters[i].bytes) {
      throw Fault("argument " + std::to_string(i) + " has " + std::to_string(launch.argument_bytes[i]) +
                  " bytes, the kernel's parameter " + std::to_string(entry.parameters[i].bytes));
    }
  }
}

}  // namespace

int64_t blocks_per_multiprocessor(uint32_t threads, uint64_t shared_bytes, uint32_t registers) {
  constexpr int64_t kThreads = 2048, kBlocks = 32, kRegisters = 65536, kShared = 228 * 1024, kReserved = 1024;
  if (threads == 0 || threads > 1024 || shared_bytes > kShared - kReserved) return 0;
  const int64_t warps = (threads + kLanes - 1) / kLanes;
  const int64_t per_warp = (registers * kLanes + 255) / 256 * 256;
  int64_t blocks = std::min(kBlocks, kThreads / (warps * kLanes));
  if (registers) blocks = std::min(blocks, kRegisters / per_warp / warps);
  const int64_t shared = (static_cast<int64_t>(shared_bytes) + kReserved + 127) / 128 * 128;
  return std::min(blocks, kShared / shared);
}

void Block::arrive(Warp& warp) {
  warp.state = Warp::kAtBarrier;
  warp.at_barrier = warp.current;
  ++grid->counters.barriers;
  if (exited)
    warp.fail(warp.active,
              std::to_string(exited) + " warp(s) of the block have exited without coming to this barrier");
  if (++at_barrier < warps.size()) return;
  for (const Warp& other : warps) {
    if (other.at_barrier != warp.at_barrier) {
      warp.fail(warp.active,
                "another warp waits at another barrier, " + describe(*program, *other.at_barrier->statement));
    }
  }
  at_barrier = 0;
  ++epoch;
  ++grid->progress;
  for (Warp& other : warps) other.state = Warp::kReady;
}

void Grid::start(Block& block, uint64_t number) {
  const uint32_t threads = threads_of(*launch);
  const size_t count = (threads + kLanes - 1) / kLanes;
  block.grid = this;
  block.program = program;
  block.index[0] = static_cast<uint32_t>(number % launch->grid[0]);
  block.index[1] = static_cast<uint32_t>(number / launch->grid[0] % launch->grid[1]);
  block.index[2] = static_cast<uint32_t>(number / launch->grid[0] / launch->grid[1]);
  block.epoch = 1;
  block.at_barrier = block.exited = 0;
  block.running = true;
  block.registers.resize(count * program->register_bytes + 64);
  block.written.assign(count * program->registers, 0);
  block.shared.reset(*program, launch->dynamic_shared);
  block.cache.clear();
  block.warps.clear();
  block.warps.resize(count);
  uint8_t* registers = block.registers.data();
  registers += (64 - reinterpret_cast<uintptr_t>(registers) % 64) % 64;
  for (size_t w = 0; w < count; ++w) {
    Warp& warp = block.warps[w];
    warp.block = &block;
    warp.number = static_cast<uint32_t>(w);
    warp.registers = registers + w * program->register_bytes;
    warp.constants = program->constants.data();
    warp.written = block.written.data() + w * program->registers;
    const size_t present = std::min<size_t>(kLanes, threads - w * kLanes);
    warp.existing = warp.active = present == kLanes ? kAllLanes : (1u << present) - 1;
    std::fill_n(warp.written, 1 + kSpecials, kAllLanes);
    auto* special = reinterpret_cast<uint32_t*>(warp.registers);
    for (uint32_t l = 0; l < kLanes; ++l) {
      const uint32_t t = static_cast<uint32_t>(w) * kLanes + l;
      const uint32_t* b = launch->block;
      const uint32_t values[kSpecials] = {t % b[0],
                                          t / b[0] % b[1],
                                          t / b[0] / b[1],
                                          b[0],
                                          b[1],
                                          b[2],
                                          block.index[0],
                                          block.index[1],
                                          block.index[2],
                                          launch->grid[0],
                                          launch->grid[1],
                                          launch->grid[2],
                                          l,
                                          static_cast<uint32_t>(w),
                                          static_cast<uint32_t>(count),
                                          1u << l,
                                          (1u << l) - 1,
                                          (1u << l) - 1 + (1u << l),
                                          ~((1u << l) - 1 + (1u << l)),
                                          ~((1u << l) - 1)};
      for (uint32_t s = 0; s < kSpecials; ++s) special[s * kLanes + l] = values[s];
    }
  }
}

// Lets every warp of the block run for a turn. False when none could.
bool Grid::advance(Block& block) {
  bool any = false;
  const size_t count = block.warps.size(), first = shuffled ? random.below(count) : 0;
  const size_t stride = shuffled && count > 2 ? 1 + 2 * random.below(count / 2) : 1;
  for (size_t i = 0; i < count; ++i) {
    // A stride that shares a factor with the count would miss warps: the rest is made up by the next turn.
    Warp& warp = block.warps[(first + i * stride) % count];
    if (warp.state != Warp::kReady) continue;
    any = true;
    const uint64_t done = warp.run(shuffled ? 1 + random.below(kTurn) : kTurn);
    instructions += done;
    if (warp.ran += done; warp.ran > kMost) warp.fail(warp.active, "a loop does not end");
    if (warp.state != Warp::kExited) continue;
    ++progress;
    if (block.at_barrier) {
      const Warp& other = *std::find_if(block.warps.begin(), block.warps.end(),
                                        [](const Warp& w) { return w.state == Warp::kAtBarrier; });
      other.fail(other.active, "waits for warp " + std::to_string(warp.number) + ", which has exited");
    }
    if (++block.exited == count) {
      block.running = false;
      // A block that has ended has fenced nothing: others may go on without seeing what it stored.
      if (!buffered) block.stores.release_all();
      ++counters.blocks;
      return true;
    }
  }
  return any || std::any_of(block.warps.begin(), block.warps.end(),
                            [](const Warp& w) { return w.state == Warp::kReady; });
}

void Grid::deadlock(const Block& block) const {
  for (const Warp& warp : block.warps) {
    if (warp.state == Warp::kReady) {
      warp.fail(warp.active, "deadlock: blocks wait for each other, or a loop does not end");
    }
  }
  throw Fault("deadlock");
}

void Grid::run() {
  check(*program, *launch);
  const uint64_t blocks = blocks_of(*launch);
  const bool whole = !sample || launch->cooperative || program->communicates;
  const uint64_t wanted = whole ? blocks : std::min(blocks, sample);
  Random place{blocks};
  buffered = program->communicates && blocks > 1;
  uint64_t in_flight = shuffled || buffered ? std::min(kInFlight, blocks) : 1;
  if (launch->cooperative) {
    const int64_t fit =
        multiprocessors * blocks_per_multiprocessor(threads_of(*launch),
                                                    program->static_shared + launch->dynamic_shared,
                                                    launch->registers);
    if (blocks > static_cast<uint64_t>(fit)) {
      throw Fault(std::to_string(blocks) + " cooperating blocks, more than the " + std::to_string(fit) +
                  " that can be resident at once");
    }
    in_flight = blocks;
  }
  forget_ranges();
  parameters.assign(program->parameter_bytes, 0);
  for (uint32_t i = 0; i < launch->n_arguments; ++i) {
    std::memcpy(parameters.data() + program->parameter_offsets[i], launch->arguments[i],
                launch->argument_bytes[i]);
  }
  warps_run.assign(program->code.size(), 0);
  threads_run.assign(program->code.size(), 0);
  while (slots_.size() < in_flight) slots_.push_back(std::make_unique<Block>());
  uint64_t step = shuffled ? random.below(blocks) + 1 : 1, next = shuffled ? random.below(blocks) : 0;
  while (std::gcd(step, blocks) != 1) ++step;
  uint64_t started = 0, running = 0, last_progress = 0, last_instructions = 0;
  // One of each `blocks / wanted` blocks, not always the same: grids often have a period.
  const auto sampled = [&] {
    const uint64_t first = started * blocks / wanted;
    return first + place.below((started + 1) * blocks / wanted - first);
  };
  std::vector<std::unique_ptr<StoreBuffer>> ended;
  while (started < wanted || running) {
    for (auto& slot : slots_) {
      if (slot->running || started == wanted) continue;
      start(*slot, wanted < blocks ? sampled() : next);
      slot->half = started % 2;
      next = (next + step) % blocks;
      ++started;
      ++running;
    }
    for (auto& slot : slots_) {
      if (!slot->running) continue;
      if (!advance(*slot)) deadlock(*slot);
      if (slot->running) continue;
      --running;
      if (!slot->stores.empty()) ended.push_back(std::make_unique<StoreBuffer>(std::move(slot->stores)));
      slot->stores = {};
    }
    if (progress != last_progress) last_instructions = instructions;
    last_progress = progress;
    if (instructions - last_instructions > kPatience) {
      for (auto& slot : slots_) {
        if (slot->running) deadlock(*slot);
      }
    }
  }
  for (auto& stores : ended) stores->release_all();
  sum_up();
}

void Grid::sum_up() {
  if (counting) footprint.sum_up(counters);
  for (size_t i = 0; i < program->code.size(); ++i) {
    const auto c = static_cast<size_t>(program->code[i].type);
    counters.warps[c] += warps_run[i];
    counters.threads[c] += threads_run[i];
  }
}

}  // namespace ptx
