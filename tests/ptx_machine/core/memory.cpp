#include "memory.h"

#include <algorithm>
#include <cstring>

namespace ptx {

// ---- global memory

void Allocations::add(uint64_t first, uint64_t bytes) {
  if (bytes == 0) return;
  const std::lock_guard lock(mutex_);
  Allocation& a = by_first_[first];
  a = {std::max(a.end, first + bytes), a.uses + 1};
}

void Allocations::remove(uint64_t first) {
  const std::lock_guard lock(mutex_);
  const auto found = by_first_.find(first);
  if (found != by_first_.end() && --found->second.uses == 0) by_first_.erase(found);
}

Range Allocations::find(uint64_t address) const {
  const std::lock_guard lock(mutex_);
  auto after = by_first_.upper_bound(address);
  // A storage announced by itself may lie inside an allocation announced by the allocator: look at both.
  for (int i = 0; i < 2 && after != by_first_.begin(); ++i) {
    --after;
    if (address < after->second.end) return {after->first, after->second.end};
  }
  return {};
}

std::string Allocations::describe(uint64_t address) const {
  const std::lock_guard lock(mutex_);
  auto after = by_first_.upper_bound(address);
  const auto tensor = [](const auto& one) {
    return " a tensor of " + std::to_string(one.second.end - one.first) + " bytes";
  };
  // Of the tensors on both sides the nearer one, if it is no farther than a page.
  uint64_t nearest = 4096;
  std::string text = "in no tensor";
  if (after != by_first_.end() && after->first - address < nearest) {
    nearest = after->first - address;
    text = std::to_string(nearest) + " bytes before" + tensor(*after);
  }
  if (after == by_first_.begin()) return text;
  const auto& before = *--after;
  if (address < before.second.end) return "near the end of" + tensor(before);
  const uint64_t past = address - before.second.end;
  return past < nearest ? std::to_string(past) + " bytes past the end of" + tensor(before) : text;
}

uint64_t Allocations::bytes_around(const std::vector<uint64_t>& addresses) const {
  uint64_t bytes = 0;
  for (auto at = addresses.begin(); at != addresses.end();) {
    const Range range = find(*at);
    bytes += range.end - range.first;
    at = range.end ? std::lower_bound(at, addresses.end(), range.end) : at + 1;
  }
  return bytes;
}

void Footprint::touch(uint64_t sector, bool half) {
  constexpr size_t kSpare = 1 << 20;
  if (touched_.size() >= 2 * compact_ + kSpare) compact();
  touched_.push_back(2 * sector + half);
}

void Footprint::compact() {
  std::sort(touched_.begin(), touched_.end());
  touched_.erase(std::unique(touched_.begin(), touched_.end()), touched_.end());
  compact_ = touched_.size();
}

void Footprint::sum_up(PtxCounters& counters) {
  compact();
  std::vector<uint64_t> addresses;
  for (const uint64_t t : touched_) {
    const uint64_t address = t / 2 * 32;
    if (addresses.empty() || addresses.back() != address) {
      addresses.push_back(address);
    } else {
      ++counters.common_sectors;
    }
  }
  counters.touched_sectors = addresses.size();
  counters.footprint = allocations().bytes_around(addresses);
  touched_.clear();
  compact_ = 0;
}

Allocations& allocations() {
  static Allocations all;
  return all;
}

void StoreBuffer::store(uint64_t address, const uint8_t* bytes, uint64_t count, uint32_t thread,
                        uint32_t epoch) {
  for (uint64_t i = 0; i < count; ++i) {
    Word& word = words_[(address + i) / 4];
    const uint64_t k = (address + i) % 4;
    word.bytes[k] = bytes[i];
    word.present |= static_cast<uint8_t>(1u << k);
    word.thread[k] = thread;
    word.epoch[k] = epoch;
  }
}

void StoreBuffer::overlay(uint64_t address, uint8_t* bytes, uint64_t count) const {
  for (uint64_t i = 0; i < count; ++i) {
    const auto found = words_.find((address + i) / 4);
    const uint64_t k = (address + i) % 4;
    if (found != words_.end() && (found->second.present >> k & 1)) bytes[i] = found->second.bytes[k];
  }
}

void StoreBuffer::write(uint64_t address, const Word& word, uint8_t which) {
  for (int k = 0; k < 4; ++k) {
    if (which >> k & 1) reinterpret_cast<uint8_t*>(address * 4)[k] = word.bytes[k];
  }
}

void StoreBuffer::release(uint32_t warp, uint32_t lanes, uint32_t epoch) {
  for (auto at = words_.begin(); at != words_.end();) {
    Word& word = at->second;
    uint8_t which = 0;
    for (int k = 0; k < 4; ++k) {
      if (!(word.present >> k & 1)) continue;
      const bool own = word.thread[k] / kLanes == warp && (lanes >> word.thread[k] % kLanes & 1);
      if (own || word.epoch[k] < epoch) which |= static_cast<uint8_t>(1u << k);
    }
    write(at->first, word, which);
    word.present &= static_cast<uint8_t>(~which);
    at = word.present ? std::next(at) : words_.erase(at);
  }
}

void StoreBuffer::release_address(uint64_t address, uint64_t count) {
  for (uint64_t w = address / 4; w <= (address + count - 1) / 4; ++w) {
    const auto found = words_.find(w);
    if (found == words_.end()) continue;
    write(w, found->second, found->second.present);
    words_.erase(found);
  }
}

void StoreBuffer::release_all() {
  for (const auto& [address, word] : words_) write(address, word, word.present);
  words_.clear();
}

void Cache::load(uint64_t address, uint8_t* bytes, uint64_t count) {
  const auto [found, is_new] = sectors_.try_emplace(address / kSector);
  // Accesses are aligned, so that they lie in one sector.
  if (is_new) std::memcpy(found->second.bytes, reinterpret_cast<void*>(address / kSector * kSector), kSector);
  std::memcpy(bytes, found->second.bytes + address % kSector, count);
}

void Cache::store(uint64_t address, const uint8_t* bytes, uint64_t count) {
  const auto found = sectors_.find(address / kSector);
  if (found != sectors_.end()) std::memcpy(found->second.bytes + address % kSector, bytes, count);
}

void StoredWords::add(uint64_t address, uint64_t count) {
  for (uint64_t w = address / 4; w <= (address + count - 1) / 4; ++w) words_[w / 64] |= uint64_t{1} << w % 64;
}

bool StoredWords::any(uint64_t address, uint64_t count) const {
  for (uint64_t w = address / 4; w <= (address + count - 1) / 4; ++w) {
    const auto found = words_.find(w / 64);
    if (found != words_.end() && (found->second >> w % 64 & 1)) return true;
  }
  return false;
}

// ---- shared memory

void SharedMemory::reset(const Program& program, uint64_t dynamic) {
  const uint64_t end = program.dynamic_first + dynamic + kSharedGap - kSharedStart;
  bytes_.assign(end, 0xff);
  states_.assign(end, kOutside);
  uses_.assign(end / 4 + 1, Use{});
  const auto open = [&](uint64_t first, uint64_t bytes) {
    std::fill_n(states_.begin() + static_cast<int64_t>(first - kSharedStart), bytes, kGarbage);
  };
  for (const SharedVariable& v : program.shared) open(v.first, v.bytes);
  open(program.dynamic_first, dynamic);
}

const char* SharedMemory::check(uint64_t address, uint64_t count) const {
  if (address < kSharedStart || address - kSharedStart + count > states_.size()) {
    return "an address outside shared memory";
  }
  const State* s = states_.data() + (address - kSharedStart);
  for (uint64_t i = 0; i < count; ++i) {
    if (s[i] == kOutside) return "an address outside the shared variables";
  }
  return nullptr;
}

bool SharedMemory::is_written(uint64_t address, uint64_t count) const {
  const State* s = states_.data() + (address - kSharedStart);
  for (uint64_t i = 0; i < count; ++i) {
    if (s[i] != kWritten) return false;
  }
  return true;
}

void SharedMemory::set_written(uint64_t address, uint64_t count, bool written) {
  std::memset(states_.data() + (address - kSharedStart), written ? kWritten : kGarbage, count);
}

// Which bytes of a word an access of `count` bytes at `first` touches.
uint8_t SharedMemory::bytes_of(uint64_t word, uint64_t first, uint64_t count) {
  const uint64_t low = std::max(first, 4 * word), high = std::min(first + count, 4 * word + 4);
  return static_cast<uint8_t>(((1u << (high - low)) - 1) << low % 4);
}

int SharedMemory::read(uint64_t address, uint64_t count, uint32_t warp, uint32_t epoch) {
  const uint64_t first = address - kSharedStart;
  const uint32_t me = 1u << warp;
  for (uint64_t w = first / 4; w <= (first + count - 1) / 4; ++w) {
    Use& use = uses_[w];
    if (use.write_epoch == epoch && (use.writers & ~me)) [[unlikely]] {
      const bool mine = (use.writers & me) && !use.atomic;
      if (!mine && (use.bytes & bytes_of(w, first, count))) return first_lane(use.writers & ~me);
    }
    if (use.read_epoch != epoch) use.readers = use.whole = 0;
    use.read_epoch = epoch;
    use.readers |= me;
    if (count >= 4) use.whole |= me;
  }
  return -1;
}

int SharedMemory::will_write(uint64_t address, uint64_t count, uint32_t warp, uint32_t epoch) const {
  const uint64_t first = address - kSharedStart;
  for (uint64_t w = first / 4; w <= (first + count - 1) / 4; ++w) {
    const Use& use = uses_[w];
    // What is narrower than a word may have neighbours that other warps read.
    const uint32_t others = (count >= 4 ? use.readers : use.whole) & ~(1u << warp);
    if (use.read_epoch == epoch && others) return first_lane(others);
  }
  return -1;
}

int SharedMemory::write(uint64_t address, const uint8_t* value, uint64_t count, uint32_t warp,
                        uint32_t epoch) {
  if (const int reader = will_write(address, count, warp, epoch); reader >= 0) return reader;
  const uint64_t first = address - kSharedStart;
  const uint32_t me = 1u << warp;
  for (uint64_t w = first / 4; w <= (first + count - 1) / 4; ++w) {
    Use& use = uses_[w];
    const uint8_t bytes = bytes_of(w, first, count);
    if (use.write_epoch != epoch) {
      use.writers = use.bytes = 0;
      use.write_epoch = epoch;
    }
    if (const uint32_t others = use.writers & ~me; others && (use.bytes & bytes)) {
      bool same = !use.atomic;
      for (uint64_t b = std::max(first, 4 * w); b < std::min(first + count, 4 * w + 4); ++b) {
        same = same && bytes_[b] == value[b - first];
      }
      if (!same) return first_lane(others);
    }
    use.bytes |= bytes;
    use.writers |= me;
    use.atomic = false;
  }
  std::memcpy(bytes_.data() + first, value, count);
  return -1;
}

int SharedMemory::atomic(uint64_t address, uint64_t count, uint32_t warp, uint32_t epoch) {
  if (const int reader = will_write(address, count, warp, epoch); reader >= 0) return reader;
  const uint64_t first = address - kSharedStart;
  const uint32_t me = 1u << warp;
  for (uint64_t w = first / 4; w <= (first + count - 1) / 4; ++w) {
    Use& use = uses_[w];
    if (use.write_epoch != epoch) {
      use.writers = 0;
      use.atomic = true;
      use.write_epoch = epoch;
    }
    if (const uint32_t others = use.writers & ~me; others && !use.atomic) return first_lane(others);
    use.bytes = 0xf;
    use.writers |= me;
  }
  return -1;
}

}  // namespace ptx
