#include "addresses.h"

#include <algorithm>
#include <cstdio>
#include <vector>

#include "grid.h"

namespace ptx {
namespace {

std::string hexadecimal(uint64_t value) {
  char text[20];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

// The range that held the last access of this thread; most accesses fall into the same tensor again.
thread_local Range last_range;

void check_global(const Warp& w, const Addresses& a, uint32_t mask, uint64_t bytes) {
  const auto [low, high] = std::minmax_element(a.lane, a.lane + kLanes);
  if (last_range.holds(*low, *high + bytes)) return;
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1) || last_range.holds(a.lane[l], a.lane[l] + bytes)) continue;
    const Range range = allocations().find(a.lane[l]);
    if (range.holds(a.lane[l], a.lane[l] + bytes)) {
      last_range = range;
      continue;
    }
    const bool window = (a.lane[l] & ~uint64_t{0xffffff}) == kSharedWindow;
    w.fail(1u << l, window ? "a global access to an address of shared memory"
                           : "a global access to " + hexadecimal(a.lane[l]) + ", " +
                                 allocations().describe(a.lane[l]));
  }
}

void check_shared(Warp& w, const Addresses& a, uint32_t mask, uint64_t bytes) {
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    if (const char* why = w.block->shared.check(a.lane[l], bytes)) {
      w.fail(1u << l, std::string(why) + ": " + hexadecimal(a.lane[l]));
    }
  }
}

// A generic address: of the shared window or of global memory. All lanes of a warp have to agree.
bool is_shared(const Warp& w, Addresses& a, uint32_t mask) {
  const auto in_window = [](uint64_t address) { return (address & ~uint64_t{0xffffff}) == kSharedWindow; };
  const bool shared = in_window(a.lane[first_lane(mask)]);
  for (int l = 0; l < kLanes; ++l) {
    if (in_window(a.lane[l]) != shared) w.fail(1u << l, "a generic access to both shared and global memory");
    if (shared) a.lane[l] -= kSharedWindow;
  }
  return shared;
}

// ---- what a profiler would count

uint64_t sectors(const Warp& w, const Addresses& a, uint32_t mask, uint64_t bytes) {
  uint64_t lines[kLanes * 2];
  size_t n = 0;
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    lines[n++] = a.lane[l] / 32;
    if ((a.lane[l] + bytes - 1) / 32 != a.lane[l] / 32) lines[n++] = (a.lane[l] + bytes - 1) / 32;
  }
  std::sort(lines, lines + n);
  uint64_t* const end = std::unique(lines, lines + n);
  for (const uint64_t* l = lines; l != end; ++l) w.block->grid->footprint.touch(*l, w.block->half);
  return static_cast<uint64_t>(end - lines);
}

// Passes that shared memory needs: 32 banks of 4 bytes, each serves one word a pass; 8-byte accesses go by
// half warps and 16-byte ones by quarters.
void count_wavefronts(PtxCounters& c, const Addresses& a, uint32_t mask, uint64_t bytes) {
  const int part = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  for (int first = 0; first < kLanes; first += part) {
    std::vector<uint64_t> banks[32];
    for (int l = first; l < first + part; ++l) {
      if (!(mask >> l & 1)) continue;
      for (uint64_t word = a.lane[l] / 4; word <= (a.lane[l] + bytes - 1) / 4; ++word) {
        auto& bank = banks[word % 32];
        if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
      }
    }
    size_t most = 0;
    for (const auto& bank : banks) most = std::max(most, bank.size());
    c.shared_wavefronts += most;
    c.shared_least_wavefronts += most != 0;
  }
}

void count(Warp& w, Space space, bool is_store, const Addresses& a, uint32_t mask, uint64_t bytes) {
  PtxCounters& c = w.block->grid->counters;
  if (space == Space::kShared) {
    ++c.shared_requests;
    count_wavefronts(c, a, mask, bytes);
  } else {
    ++(is_store ? c.store_requests : c.load_requests);
    (is_store ? c.store_sectors : c.load_sectors) += sectors(w, a, mask, bytes);
    (is_store ? c.store_bytes : c.load_bytes) += bytes * static_cast<uint64_t>(std::popcount(mask));
  }
}

}  // namespace

Addresses addresses(const Warp& w, const Instruction& i, const Operand& base, uint32_t mask) {
  w.need(base, mask, "address");
  Addresses a;
  if (base.bits == 64) {
    const uint64_t* b = w.in<uint64_t>(base);
    for (int l = 0; l < kLanes; ++l) a.lane[l] = b[l] + static_cast<uint64_t>(i.offset);
  } else {
    const uint32_t* b = w.in<uint32_t>(base);
    for (int l = 0; l < kLanes; ++l)
      a.lane[l] = static_cast<uint32_t>(b[l] + static_cast<uint64_t>(i.offset));
  }
  if (mask != kAllLanes) {
    const uint64_t some = a.lane[first_lane(mask)];
    for (int l = 0; l < kLanes; ++l) {
      if (!(mask >> l & 1)) a.lane[l] = some;
    }
  }
  return a;
}

void check_alignment(const Warp& w, const Addresses& a, uint32_t mask, uint64_t bytes) {
  uint64_t all = 0;
  for (int l = 0; l < kLanes; ++l) all |= a.lane[l];
  if ((all & (bytes - 1)) == 0) return;
  for (int l = 0; l < kLanes; ++l) {
    if ((mask >> l & 1) && (a.lane[l] & (bytes - 1))) {
      w.fail(1u << l, "an address that is no multiple of the access's " + std::to_string(bytes) + " bytes");
    }
  }
}

void race(const Warp& w, int lane, int other, const char* what) {
  w.fail(1u << lane, std::string(what) + " warp " + std::to_string(other) + " with no barrier in between");
}

Space prepare(Warp& w, Space space, bool is_store, Addresses& a, uint32_t mask, uint64_t bytes) {
  if (space == Space::kGeneric) space = is_shared(w, a, mask) ? Space::kShared : Space::kGlobal;
  check_alignment(w, a, mask, bytes);
  if (space == Space::kShared) {
    check_shared(w, a, mask, bytes);
  } else {
    check_global(w, a, mask, bytes);
  }
  if (w.block->grid->counting) count(w, space, is_store, a, mask, bytes);
  return space;
}

void forget_ranges() { last_range = {}; }

void check_copied(Warp& w, int lane, uint64_t address, uint64_t bytes) {
  if (last_range.holds(address, address + bytes)) return;
  const Range range = allocations().find(address);
  if (!range.holds(address, address + bytes)) {
    w.fail(1u << lane, "copies from " + hexadecimal(address) + ", " + allocations().describe(address));
  }
  last_range = range;
}

void count_copies(Warp& w, const Instruction& i, uint32_t mask) {
  if (!w.block->grid->counting) return;
  uint32_t reading = mask;
  Addresses from, to;
  for (int l = 0; l < kLanes; ++l) {
    from.lane[l] = w.in<uint64_t>(i.operands[1])[l] + static_cast<int32_t>(i.target);
    to.lane[l] =
        (i.operands[0].bits == 64 ? w.in<uint64_t>(i.operands[0])[l] : w.in<uint32_t>(i.operands[0])[l]) +
        static_cast<uint64_t>(i.offset);
    if (i.number && w.in<uint32_t>(i.operands[2])[l] == 0) reading &= ~(1u << l);
  }
  if (reading) count(w, Space::kGlobal, false, from, reading, i.count);
  count(w, Space::kShared, true, to, mask, i.count);
}

}  // namespace ptx
