// Loads, stores, atomics and fences.
#include <algorithm>
#include <cstring>

#include "addresses.h"
#include "grid.h"

namespace ptx {
namespace {

// ---- loads

template <class T>
void put(Warp& w, const Operand& to, int lane, T value) {
  if (to.register_ == 0) return;  // the sink `_`
  if (to.bits == 64) {
    w.out<uint64_t>(to)[lane] = static_cast<uint64_t>(static_cast<int64_t>(value));
    if constexpr (std::is_unsigned_v<T>) w.out<uint64_t>(to)[lane] = value;
  } else {
    uint32_t word = static_cast<uint32_t>(value);
    if (to.bits == 16) word &= 0xffffu;
    w.out<uint32_t>(to)[lane] = word;
  }
}

template <class T, int kCount>
void load_parameter(Warp& w, const Instruction& i, uint32_t mask) {
  const std::vector<uint8_t>& parameters = w.block->grid->parameters;
  const Operand& base = i.operands[kCount];
  const Addresses a = addresses(w, i, base, mask);
  check_alignment(w, a, mask, sizeof(T) * kCount);
  for (int k = 0; k < kCount; ++k) {
    for (int l = 0; l < kLanes; ++l) {
      if (!(mask >> l & 1)) continue;
      const uint64_t at = a.lane[l] + k * sizeof(T);
      if (at + sizeof(T) > parameters.size()) w.fail(1u << l, "an address outside the parameters");
      T value;
      std::memcpy(&value, parameters.data() + at, sizeof(T));
      put(w, i.operands[k], l, value);
    }
    w.note(i.operands[k], mask, mask);
  }
}

// `number`: LoadFlags.
template <Space kSpace, class T, int kCount>
void load(Warp& w, const Instruction& i, uint32_t mask) {
  constexpr uint64_t kBytes = sizeof(T) * kCount;
  Addresses a = addresses(w, i, i.operands[kCount], mask);
  const Space space = prepare(w, kSpace, false, a, mask, kBytes);
  SharedMemory& shared = w.block->shared;
  const StoreBuffer& stores = w.block->stores;
  const bool overlay = !stores.empty();
  const bool cached = w.block->grid->buffered && (i.number & kCached);
  if (i.number & kAcquire) w.block->cache.clear();
  uint32_t good[kCount];
  std::fill_n(good, kCount, mask);
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    T values[kCount];
    if (space == Space::kShared) {
      std::memcpy(values, shared.at(a.lane[l]), kBytes);
      const int other = shared.read(a.lane[l], kBytes, w.number, w.block->epoch);
      if (other >= 0) race(w, l, other, "reads what was written by");
      if (!shared.is_written(a.lane[l], kBytes)) {
        for (int k = 0; k < kCount; ++k) {
          if (!shared.is_written(a.lane[l] + k * sizeof(T), sizeof(T))) good[k] &= ~(1u << l);
        }
      }
    } else {
      if (cached) {
        w.block->cache.load(a.lane[l], reinterpret_cast<uint8_t*>(values), kBytes);
      } else {
        std::memcpy(values, reinterpret_cast<const void*>(a.lane[l]), kBytes);
      }
      if ((i.number & kConstant) && w.block->grid->stored.any(a.lane[l], kBytes)) {
        w.fail(1u << l, "a load as of constant memory (.nc) from what this launch has stored");
      }
      if (overlay) stores.overlay(a.lane[l], reinterpret_cast<uint8_t*>(values), kBytes);
    }
    for (int k = 0; k < kCount; ++k) put(w, i.operands[k], l, values[k]);
  }
  for (int k = 0; k < kCount; ++k) {
    if (i.operands[k].register_) w.note(i.operands[k], mask, good[k]);
  }
}

// ---- stores

template <class T>
T get(const Warp& w, const Operand& from, int lane) {
  return from.bits == 64 ? static_cast<T>(w.in<uint64_t>(from)[lane])
                         : static_cast<T>(w.in<uint32_t>(from)[lane]);
}

void store_global(Warp& w, uint64_t address, const void* values, uint64_t bytes, int lane) {
  Block& block = *w.block;
  if (block.grid->buffered) {
    if (block.program->reads_constants) block.grid->stored.add(address, bytes);
    block.cache.store(address, static_cast<const uint8_t*>(values), bytes);
    block.stores.store(address, static_cast<const uint8_t*>(values), bytes,
                       w.number * kLanes + static_cast<uint32_t>(lane), block.epoch);
  } else {
    std::memcpy(reinterpret_cast<void*>(address), values, bytes);
  }
}

// `number`: 1 when other blocks see it without a fence, as they do strong stores.
template <Space kSpace, class T, int kCount>
void store(Warp& w, const Instruction& i, uint32_t mask) {
  constexpr uint64_t kBytes = sizeof(T) * kCount;
  Addresses a = addresses(w, i, i.operands[kCount], mask);
  const Space space = prepare(w, kSpace, true, a, mask, kBytes);
  ++w.block->grid->progress;
  if (space == Space::kGlobal) {
    for (int k = 0; k < kCount; ++k) w.need(i.operands[k], mask, "value to store");
  }
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    T values[kCount];
    for (int k = 0; k < kCount; ++k) values[k] = get<T>(w, i.operands[k], l);
    if (space == Space::kGlobal) {
      store_global(w, a.lane[l], values, kBytes, l);
      if (i.number) w.block->stores.release_address(a.lane[l], kBytes);
      continue;
    }
    SharedMemory& shared = w.block->shared;
    const int other =
        shared.write(a.lane[l], reinterpret_cast<uint8_t*>(values), kBytes, w.number, w.block->epoch);
    if (other >= 0) race(w, l, other, "overwrites what is read or written by");
    for (int k = 0; k < kCount; ++k) {
      shared.set_written(a.lane[l] + k * sizeof(T), sizeof(T), w.is_written(i.operands[k]) >> l & 1);
    }
  }
}

// ---- atomics: one lane after the other, straight in memory

enum AtomicOp { kAdd, kMin, kMax, kAnd, kOr, kXor, kExchange, kCompareAndSwap, kIncrement, kDecrement };

template <class T>
T combine(uint32_t op, T old, T b, T c) {
  switch (op) {
    case kAdd:
      return static_cast<T>(old + b);
    case kMin:
      return std::min(old, b);
    case kMax:
      return std::max(old, b);
    case kExchange:
      return b;
    case kCompareAndSwap:
      return old == b ? c : old;
    case kIncrement:
      return old >= b ? T{0} : static_cast<T>(old + 1);
    case kDecrement:
      return old == 0 || old > b ? b : static_cast<T>(old - 1);
  }
  if constexpr (std::is_integral_v<T>) {
    if (op == kAnd) return old & b;
    if (op == kOr) return old | b;
    if (op == kXor) return old ^ b;
  }
  throw Fault("an atomic operation that its type does not have");
}

void release(Warp& w, uint32_t mask) {
  if (w.block->stores.empty()) return;
  w.block->stores.release(w.number, mask, w.block->epoch);
  ++w.block->grid->progress;
}

// Operands: [result,] address, b [, c]. `number`: the operation; + 256: with a result; + 512: it releases; +
// 1024: it acquires.
template <Space kSpace, class T>
void atomic(Warp& w, const Instruction& i, uint32_t mask) {
  const bool has_result = i.number & 256;
  const Operand* o = i.operands + has_result;
  Addresses a = addresses(w, i, o[0], mask);
  const Space space = prepare(w, kSpace, true, a, mask, sizeof(T));
  const uint32_t op = i.number & 255;
  w.need(o[1], mask, "operand of an atomic");
  if (op == kCompareAndSwap) w.need(o[2], mask, "operand of an atomic");
  if (i.number & 512) release(w, mask);
  if (i.number & 1024) w.block->cache.clear();
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    T old, values[2] = {};
    std::memcpy(&values[0], w.in<T>(o[1]) + l, sizeof(T));
    if (op == kCompareAndSwap) std::memcpy(&values[1], w.in<T>(o[2]) + l, sizeof(T));
    void* at = reinterpret_cast<void*>(a.lane[l]);
    if (space == Space::kShared) {
      at = w.block->shared.at(a.lane[l]);
      if (!w.block->shared.is_written(a.lane[l], sizeof(T))) {
        w.fail(1u << l, "an atomic on shared memory that has never been given a value");
      }
      const int other = w.block->shared.atomic(a.lane[l], sizeof(T), w.number, w.block->epoch);
      if (other >= 0) race(w, l, other, "an atomic on what is read or written by");
    } else {
      w.block->stores.release_address(a.lane[l], sizeof(T));
      w.block->cache.forget(a.lane[l]);
    }
    std::memcpy(&old, at, sizeof(T));
    const T value = combine(op, old, values[0], values[1]);
    // One that changes nothing may be how a block waits for others.
    w.block->grid->progress += std::memcmp(&old, &value, sizeof(T)) != 0;
    std::memcpy(at, &value, sizeof(T));
    if (has_result) std::memcpy(w.out<T>(i.operands[0]) + l, &old, sizeof(T));
  }
  if (has_result) w.note(i.operands[0], mask, mask);
}

void fence(Warp& w, const Instruction&, uint32_t mask) {
  release(w, mask);
  w.block->cache.clear();
}
void nothing(Warp&, const Instruction&, uint32_t) {}

// ---- which function an opcode is

template <Space kSpace, int kCount>
Handler load_of(const std::string& type) {
  const bool is_signed = type[0] == 's';
  switch (bits_of(type)) {
    case 8:
      return is_signed ? load<kSpace, int8_t, kCount> : load<kSpace, uint8_t, kCount>;
    case 16:
      return is_signed ? load<kSpace, int16_t, kCount> : load<kSpace, uint16_t, kCount>;
    case 32:
      return is_signed ? load<kSpace, int32_t, kCount> : load<kSpace, uint32_t, kCount>;
    case 64:
      if constexpr (kCount <= 2) return load<kSpace, uint64_t, kCount>;
  }
  return nullptr;
}

template <int kCount>
Handler load_parameter_of(const std::string& type) {
  const bool is_signed = type[0] == 's';
  switch (bits_of(type)) {
    case 8:
      return is_signed ? load_parameter<int8_t, kCount> : load_parameter<uint8_t, kCount>;
    case 16:
      return is_signed ? load_parameter<int16_t, kCount> : load_parameter<uint16_t, kCount>;
    case 32:
      return is_signed ? load_parameter<int32_t, kCount> : load_parameter<uint32_t, kCount>;
    case 64:
      return load_parameter<uint64_t, kCount>;
  }
  return nullptr;
}

template <Space kSpace, int kCount>
Handler store_of(const std::string& type) {
  switch (bits_of(type)) {
    case 8:
      return store<kSpace, uint8_t, kCount>;
    case 16:
      return store<kSpace, uint16_t, kCount>;
    case 32:
      return store<kSpace, uint32_t, kCount>;
    case 64:
      if constexpr (kCount <= 2) return store<kSpace, uint64_t, kCount>;
  }
  return nullptr;
}

template <int kCount>
Handler access_of(Space space, bool is_store, const std::string& type) {
  switch (space) {
    case Space::kParameter:
      return is_store ? nullptr : load_parameter_of<kCount>(type);
    case Space::kShared:
      return is_store ? store_of<Space::kShared, kCount>(type) : load_of<Space::kShared, kCount>(type);
    case Space::kGlobal:
      return is_store ? store_of<Space::kGlobal, kCount>(type) : load_of<Space::kGlobal, kCount>(type);
    case Space::kGeneric:
      return is_store ? store_of<Space::kGeneric, kCount>(type) : load_of<Space::kGeneric, kCount>(type);
  }
  return nullptr;
}

template <class T>
Handler atomic_of(Space space) {
  switch (space) {
    case Space::kShared:
      return atomic<Space::kShared, T>;
    case Space::kGlobal:
      return atomic<Space::kGlobal, T>;
    default:
      return atomic<Space::kGeneric, T>;
  }
}

}  // namespace

Handler access_handler(Space space, bool is_store, const std::string& type, int count) {
  return count == 1   ? access_of<1>(space, is_store, type)
         : count == 2 ? access_of<2>(space, is_store, type)
         : count == 4 ? access_of<4>(space, is_store, type)
                      : nullptr;
}

Handler atomic_handler(Space space, const std::string& type) {
  if (type == "u32" || type == "b32") return atomic_of<uint32_t>(space);
  if (type == "s32") return atomic_of<int32_t>(space);
  if (type == "u64" || type == "b64") return atomic_of<uint64_t>(space);
  if (type == "s64") return atomic_of<int64_t>(space);
  return nullptr;  // of floats: their order is not fixed, and no kernel may have them
}

int atomic_operation(const std::string& name) {
  static const std::map<std::string, int> all = {
      {"add", kAdd},       {"min", kMin},      {"max", kMax},       {"and", kAnd},
      {"or", kOr},         {"xor", kXor},      {"exch", kExchange}, {"cas", kCompareAndSwap},
      {"inc", kIncrement}, {"dec", kDecrement}};
  const auto found = all.find(name);
  return found == all.end() ? -1 : found->second;
}

Handler fence_handler(bool beyond_block) { return beyond_block ? fence : nothing; }

}  // namespace ptx
