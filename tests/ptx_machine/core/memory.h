// The memories: what kernels may touch of the host's, a block's shared memory, and stores that no other block
// has seen yet.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "api.h"
#include "warp.h"

namespace ptx {

// ---- global memory

struct Range {
  uint64_t first = 0, end = 0;
  bool holds(uint64_t low, uint64_t high) const { return low >= first && high <= end; }
};

class Allocations {
 public:
  void add(uint64_t first, uint64_t bytes);
  void remove(uint64_t first);
  Range find(uint64_t address) const;  // empty where there is none
  // "12 bytes past the end of 4096 bytes"
  std::string describe(uint64_t address) const;
  // Bytes of all that hold one of the sorted addresses.
  uint64_t bytes_around(const std::vector<uint64_t>& addresses) const;

 private:
  struct Allocation {
    uint64_t end;
    int uses;  // the same memory may be announced several times
  };
  mutable std::mutex mutex_;
  std::map<uint64_t, Allocation> by_first_;
};

Allocations& allocations();

// Which sectors of 32 bytes a launch touches, by two halves of its blocks.
class Footprint {
 public:
  void touch(uint64_t sector, bool half);
  // Fills in touched_sectors, common_sectors and footprint, and starts afresh.
  void sum_up(PtxCounters& counters);

 private:
  void compact();
  std::vector<uint64_t> touched_;  // 2 * sector + half; sorted up to compact_
  size_t compact_ = 0;
};

// Stores of a block that other blocks need not see yet: until a fence of the thread that stored, or of one
// that a barrier has told of it, or the end of the launch.
class StoreBuffer {
 public:
  bool empty() const { return words_.empty(); }
  void store(uint64_t address, const uint8_t* bytes, uint64_t count, uint32_t thread, uint32_t epoch);
  // Lays the block's own stores over what memory holds.
  void overlay(uint64_t address, uint8_t* bytes, uint64_t count) const;
  // What `threads` of warp `warp` stored, and all that was stored before barrier `epoch`.
  void release(uint32_t warp, uint32_t lanes, uint32_t epoch);
  void release_address(uint64_t address, uint64_t count);
  void release_all();

 private:
  struct Word {
    uint8_t bytes[4];
    uint8_t present = 0;
    uint32_t thread[4];
    uint32_t epoch[4];
  };
  static void write(uint64_t address, const Word& word, uint8_t which);
  std::unordered_map<uint64_t, Word> words_;
};

// Of what a block has read by plain loads: it may find that again, whatever other blocks have stored since,
// until it meets a fence or an acquire.
class Cache {
 public:
  void load(uint64_t address, uint8_t* bytes, uint64_t count);
  void store(uint64_t address, const uint8_t* bytes, uint64_t count);  // of the block itself
  void forget(uint64_t address) { sectors_.erase(address / kSector); }
  void clear() { sectors_.clear(); }

 private:
  static constexpr uint64_t kSector = 32;
  struct Sector {
    uint8_t bytes[kSector];
  };
  std::unordered_map<uint64_t, Sector> sectors_;
};

// What a launch has stored to, in words of four bytes.
class StoredWords {
 public:
  void add(uint64_t address, uint64_t count);
  bool any(uint64_t address, uint64_t count) const;

 private:
  std::unordered_map<uint64_t, uint64_t> words_;  // 64 words each
};

// ---- shared memory

class SharedMemory {
 public:
  // Of `variables`, with `dynamic` bytes at `dynamic_first`; all garbage.
  void reset(const Program& program, uint64_t dynamic);

  uint8_t* at(uint64_t address) { return bytes_.data() + (address - kSharedStart); }

  // Why an access is out of bounds; null when it is not.
  const char* check(uint64_t address, uint64_t count) const;

  // True when all the bytes hold values.
  bool is_written(uint64_t address, uint64_t count) const;
  void set_written(uint64_t address, uint64_t count, bool written);

  // Accesses of different warps with no barrier between them. Each returns the other warp, or -1. Warps may
  // write the same value, different bytes of a word, or by atomics.
  int read(uint64_t address, uint64_t count, uint32_t warp, uint32_t epoch);
  int write(uint64_t address, const uint8_t* value, uint64_t count, uint32_t warp, uint32_t epoch);
  int will_write(uint64_t address, uint64_t count, uint32_t warp, uint32_t epoch) const;
  int atomic(uint64_t address, uint64_t count, uint32_t warp, uint32_t epoch);

 private:
  enum State : uint8_t { kOutside, kGarbage, kWritten };
  struct Use {  // of four bytes
    uint32_t write_epoch = 0, read_epoch = 0;
    uint32_t readers = 0;  // warps, in read_epoch
    uint32_t whole = 0;    // of them those that read all four bytes
    uint32_t writers = 0;  // warps, in write_epoch
    uint8_t bytes = 0;     // that were written in it
    bool atomic = false;   // all writes in it were atomics
  };
  static uint8_t bytes_of(uint64_t word, uint64_t first, uint64_t count);
  std::vector<uint8_t> bytes_;
  std::vector<State> states_;
  std::vector<Use> uses_;
};

}  // namespace ptx
