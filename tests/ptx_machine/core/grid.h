// A launch: its blocks, which of them are in flight, and what is counted.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "api.h"
#include "memory.h"
#include "warp.h"

namespace ptx {

// splitmix64 (Steele, Lea and Flood 2014).
struct Random {
  uint64_t state;
  uint64_t operator()() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t n) { return (*this)() % n; }
};

struct Grid;

struct Block {
  Grid* grid = nullptr;
  const Program* program = nullptr;
  uint32_t index[3] = {0, 0, 0};
  std::vector<Warp> warps;
  std::vector<uint8_t> registers;
  std::vector<uint32_t> written;
  SharedMemory shared;
  StoreBuffer stores;
  Cache cache;         // where blocks are buffered
  uint32_t epoch = 1;  // barriers passed, and one
  uint32_t at_barrier = 0;
  uint32_t exited = 0;
  bool running = false;
  bool half = false;  // of every other block

  void arrive(Warp& warp);
};

struct Grid {
  const Program* program = nullptr;
  const PtxLaunch* launch = nullptr;
  std::vector<uint8_t> parameters;
  Random random{0};
  bool shuffled = false;
  bool counting = false;
  uint64_t sample = 0;        // blocks to run at most; 0: all
  bool buffered = false;      // blocks see each other's stores only behind fences
  StoredWords stored;         // where blocks are buffered and some loads are .nc
  uint64_t progress = 0;      // stores, atomics and exits: what other blocks may be waiting for
  uint64_t instructions = 0;  // of all warps
  std::vector<uint64_t> warps_run, threads_run;  // per instruction
  PtxCounters counters{};
  Footprint footprint;

  void run();

 private:
  void start(Block& block, uint64_t number);
  bool advance(Block& block);
  [[noreturn]] void deadlock(const Block& block) const;
  void sum_up();
  std::vector<std::unique_ptr<Block>> slots_;
};

// A small GPU unless told otherwise: many blocks of a test then have to take turns.
inline int64_t multiprocessors = 16;

// Blocks of so many threads that fit on one multiprocessor of an H100 or H200 (compute capability 9.0).
int64_t blocks_per_multiprocessor(uint32_t threads, uint64_t shared_bytes, uint32_t registers);

}  // namespace ptx
