// Instructions that need more than their own lane: branches, shuffles, barriers, tensor cores, copies.
#include <algorithm>
#include <cstring>

#include "addresses.h"
#include "grid.h"
#include "numbers/tensor_core.h"
#include "operations.h"

namespace ptx {
namespace {

// ---- control

void branch(Warp& w, const Instruction& i, uint32_t mask) { w.branch(mask, w.active, i.target); }
void leave(Warp& w, const Instruction&, uint32_t mask) {
  for (int l = 0; l < kLanes; ++l) {
    if (mask >> l & 1) w.copies[l].clear();
  }
  w.exit(mask);
}
void trap(Warp& w, const Instruction&, uint32_t mask) { w.fail(mask, "trap"); }

void active_mask(Warp& w, const Instruction& i, uint32_t mask) {
  for (int l = 0; l < kLanes; ++l) {
    if (mask >> l & 1) w.out<uint32_t>(i.operands[0])[l] = mask;
  }
  w.note(i.operands[0], mask, mask);
}

// ---- shuffles, votes and reductions

enum Shuffle { kUp, kDown, kButterfly, kIndex };

// The mask operand, which has to be the same in all lanes that are here, and to name them.
uint32_t members(Warp& w, const Operand& o, uint32_t mask) {
  w.need(o, mask, "mask of lanes");
  const uint32_t* masks = w.in<uint32_t>(o);
  const uint32_t all = masks[first_lane(mask)];
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    if (masks[l] != all) w.fail(1u << l, "lanes that are together name different masks");
    if (!(all >> l & 1)) w.fail(1u << l, "is not in the mask of its own warp operation");
  }
  return all;
}

// Operands: result, predicate, value, b, c, mask. PTX ISA, "shfl.sync".
template <Shuffle kMode>
void shuffle(Warp& w, const Instruction& i, uint32_t mask) {
  const Operand* o = i.operands;
  const uint32_t all = members(w, o[5], mask);
  if (!w.gather(all, mask)) return;
  const uint32_t *b = w.in<uint32_t>(o[3]), *c = w.in<uint32_t>(o[4]);
  uint32_t values[kLanes], good = 0, valid = 0;
  std::memcpy(values, w.in<uint32_t>(o[2]), sizeof values);
  w.need(o[3], mask, "lane of a shuffle");
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    const int offset = static_cast<int>(b[l] & 31), clamp = static_cast<int>(c[l] & 31);
    const int segment = static_cast<int>(c[l] >> 8 & 31);
    const int most = (l & segment) | (clamp & ~segment), least = l & segment;
    int from = 0;
    bool in_range = false;
    if (kMode == kUp) in_range = (from = l - offset) >= most;
    if (kMode == kDown) in_range = (from = l + offset) <= most;
    if (kMode == kButterfly) in_range = (from = l ^ offset) <= most;
    if (kMode == kIndex) in_range = (from = least | (offset & ~segment)) <= most;
    if (!in_range) from = l;
    if (!(all >> from & 1))
      w.fail(1u << l, "reads from lane " + std::to_string(from) + ", which is outside the mask");
    w.out<uint32_t>(o[0])[l] = values[from];
    good |= (w.is_written(o[2]) >> from & 1) << l;
    valid |= static_cast<uint32_t>(in_range) << l;
  }
  w.note(o[0], mask, good);
  w.set_predicate(o[1], mask, valid, mask);
}

enum Vote { kAll, kAny, kUniform, kBallot };

// Operands: result, predicate, mask.
template <Vote kMode>
void vote(Warp& w, const Instruction& i, uint32_t mask) {
  const Operand* o = i.operands;
  const uint32_t all = members(w, o[2], mask);
  if (!w.gather(all, mask)) return;
  w.need(o[1], mask, "predicate of a vote");
  const uint32_t ballot = w.predicate(o[1]) & all;
  if (kMode == kBallot) {
    for (int l = 0; l < kLanes; ++l) {
      if (mask >> l & 1) w.out<uint32_t>(o[0])[l] = ballot;
    }
    w.note(o[0], mask, mask);
  } else {
    const bool value = kMode == kAll   ? ballot == all
                       : kMode == kAny ? ballot != 0
                                       : ballot == all || ballot == 0;
    w.set_predicate(o[0], mask, value ? kAllLanes : 0, mask);
  }
}

enum Reduction { kAdd, kLeast, kMost, kAnd, kOr, kXor };

// Operands: result, value, mask. PTX ISA, "redux.sync".
template <Reduction kMode, class T>
void reduce(Warp& w, const Instruction& i, uint32_t mask) {
  const Operand* o = i.operands;
  const uint32_t all = members(w, o[2], mask);
  if (!w.gather(all, mask)) return;
  const T* values = reinterpret_cast<const T*>(w.in<uint32_t>(o[1]));
  T total = values[first_lane(all)];
  for (int l = first_lane(all) + 1; l < kLanes; ++l) {
    if (!(all >> l & 1)) continue;
    const T x = values[l];
    total = kMode == kAdd     ? static_cast<T>(static_cast<uint32_t>(total) + static_cast<uint32_t>(x))
            : kMode == kLeast ? std::min(total, x)
            : kMode == kMost  ? std::max(total, x)
            : kMode == kAnd   ? total & x
            : kMode == kOr    ? total | x
                              : total ^ x;
  }
  for (int l = 0; l < kLanes; ++l) {
    if (mask >> l & 1) w.out<uint32_t>(o[0])[l] = static_cast<uint32_t>(total);
  }
  w.note(o[0], mask, all & ~w.is_written(o[1]) ? 0 : mask);
}

void warp_barrier(Warp& w, const Instruction& i, uint32_t mask) {
  w.gather(members(w, i.operands[0], mask), mask);
}

// ---- barriers of the block. All lanes of a warp come together: nvcc and Triton emit the aligned form only.

void barrier(Warp& w, const Instruction&, uint32_t mask) {
  if (w.gather(w.existing, mask)) w.block->arrive(w);
}

// ---- tensor cores

// Operands: 1, 2 or 4 registers, address. `number`: 1 when transposed.
void matrix_load(Warp& w, const Instruction& i, uint32_t mask) {
  if (!w.gather(kAllLanes, mask)) return;
  const Operand& base = i.operands[i.count];
  w.need(base, kAllLanes >> (kLanes - 8 * i.count), "address");
  SharedMemory& shared = w.block->shared;
  uint8_t rows[kLanes][16];
  uint32_t row_written[kLanes];  // a bit per 16-bit element
  uint64_t first[kLanes];
  for (int l = 0; l < 8 * i.count; ++l) {
    const uint64_t at = (base.bits == 64 ? w.in<uint64_t>(base)[l] : w.in<uint32_t>(base)[l]) +
                        static_cast<uint64_t>(i.offset);
    first[l] = at;
    if (at % 16) w.fail(1u << l, "a row of ldmatrix that is no multiple of 16 bytes");
    if (const char* why = shared.check(at, 16)) w.fail(1u << l, why);
    const int other = shared.read(at, 16, w.number, w.block->epoch);
    if (other >= 0)
      w.fail(1u << l,
             "reads what was written by warp " + std::to_string(other) + " with no barrier in between");
    std::memcpy(rows[l], shared.at(at), 16);
    row_written[l] = 0;
    for (uint32_t k = 0; k < 8; ++k)
      row_written[l] |= static_cast<uint32_t>(shared.is_written(at + 2 * k, 2)) << k;
  }
  PtxCounters& counters = w.block->grid->counters;
  if (w.block->grid->counting) {
    for (int m = 0; m < i.count; ++m) {  // a matrix is eight rows of four banks each
      uint32_t uses[8] = {}, most = 1;
      for (int r = 0; r < 8; ++r) most = std::max(most, ++uses[first[8 * m + r] / 16 % 8]);
      counters.shared_wavefronts += most;
      ++counters.shared_least_wavefronts;
    }
    ++counters.shared_requests;
  }
  for (int m = 0; m < i.count; ++m) {
    uint32_t* d = w.out<uint32_t>(i.operands[m]);
    uint32_t good = 0;
    for (int l = 0; l < kLanes; ++l) {
      const LdmatrixSource source = ldmatrix_source(m, l, i.number == 1);
      uint16_t halves[2];
      bool whole = true;
      for (int h = 0; h < 2; ++h) {
        std::memcpy(&halves[h], rows[source.row_lane[h]] + source.offset[h], 2);
        whole = whole && (row_written[source.row_lane[h]] >> source.offset[h] / 2 & 1);
      }
      d[l] = static_cast<uint32_t>(halves[1]) << 16 | halves[0];
      good |= static_cast<uint32_t>(whole) << l;
    }
    w.note(i.operands[m], kAllLanes, good);
  }
}

// Operands: the registers of D, A, B, C. `number`: the form's shape and types.
template <class Word>
void multiply(Warp& w, const MmaForm& form, const MmaRegisters& n, const Operand* o,
              void (*product)(MmaForm, const Word* const*, const Word* const*, const Word* const*,
                              Word* const*)) {
  Word* d[8];
  const Word* sources[3][8];
  uint32_t written[3][8], good[8];
  for (int k = 0; k < n.c; ++k) d[k] = w.out<Word>(o[k]);
  const Operand* source = o + n.c;
  const int counts[3] = {n.a, n.b, n.c};
  for (int part = 0; part < 3; ++part) {
    for (int k = 0; k < counts[part]; ++k, ++source) {
      sources[part][k] = w.in<Word>(*source);
      written[part][k] = w.is_written(*source);
    }
  }
  mma_poison(form, written[0], written[1], written[2], good);
  product(form, sources[0], sources[1], sources[2], d);
  for (int k = 0; k < n.c; ++k) w.note(o[k], kAllLanes, good[k]);
}

void matrix_multiply(Warp& w, const Instruction& i, uint32_t mask) {
  if (!w.gather(kAllLanes, mask)) return;
  const MmaForm form{static_cast<MmaShape>(i.number & 255), static_cast<MmaType>(i.number >> 8 & 255),
                     static_cast<MmaType>(i.number >> 16)};
  const MmaRegisters n = mma_registers(form);
  if (form.operand == MmaType::f64) {
    multiply<uint64_t>(w, form, n, i.operands, mma_f64);
  } else {
    multiply<uint32_t>(w, form, n, i.operands, mma);
  }
  static constexpr uint64_t kProducts[] = {8 * 8 * 4, 16 * 8 * 4, 16 * 8 * 8, 16 * 8 * 16};  // by MmaShape
  w.block->grid->counters.tensor_flops += 2 * kProducts[i.number & 255];
}

// ---- asynchronous copies: made when they are waited for and no sooner

// Operands: shared address, global address, [bytes given]. `count`: bytes; `offset` and `target`: offsets of
// the two addresses; `number`: 1 with a third operand.
void copy(Warp& w, const Instruction& i, uint32_t mask) {
  const Operand* o = i.operands;
  w.need(o[0], mask, "address");
  w.need(o[1], mask, "address");
  if (i.number) w.need(o[2], mask, "size of a copy");
  SharedMemory& shared = w.block->shared;
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    const uint64_t to = (o[0].bits == 64 ? w.in<uint64_t>(o[0])[l] : w.in<uint32_t>(o[0])[l]) +
                        static_cast<uint64_t>(i.offset);
    const uint64_t from = w.in<uint64_t>(o[1])[l] + static_cast<int32_t>(i.target);
    const uint32_t given = i.number ? w.in<uint32_t>(o[2])[l] : i.count;
    if (given > i.count) w.fail(1u << l, "a copy of more bytes than it has");
    if (to % i.count || from % i.count) {
      w.fail(1u << l, "copies from or to an address that is no multiple of the copy's " +
                          std::to_string(i.count) + " bytes");
    }
    if (const char* why = shared.check(to, i.count)) w.fail(1u << l, why);
    if (given) check_copied(w, l, from, given);
    const int other = shared.will_write(to, i.count, w.number, w.block->epoch);
    if (other >= 0)
      w.fail(1u << l,
             "overwrites what is read by warp " + std::to_string(other) + " with no barrier in between");
    auto& groups = w.copies[l];
    if (groups.empty()) groups.emplace_back();
    groups.back().push_back({static_cast<uint32_t>(l), to, from, i.count, given, &i});
    shared.set_written(to, i.count, false);
  }
  count_copies(w, i, mask);
}

void commit(Warp& w, const Instruction&, uint32_t mask) {
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    if (w.copies[l].empty()) w.copies[l].emplace_back();
    w.copies[l].emplace_back();
  }
}

// `number`: groups that may still be on their way; -1: not even copies of the open group.
void wait_copies(Warp& w, const Instruction& i, uint32_t mask) {
  SharedMemory& shared = w.block->shared;
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    auto& groups = w.copies[l];
    const size_t kept = i.number == kAllLanes ? 0 : i.number + 1;
    for (; groups.size() > kept; groups.pop_front()) {
      for (const AsyncCopy& c : groups.front()) {
        uint8_t bytes[16] = {};
        std::memcpy(bytes, reinterpret_cast<const void*>(c.from), c.given);
        w.block->stores.overlay(c.from, bytes, c.given);
        const int other = shared.write(c.to, bytes, c.bytes, w.number, w.block->epoch);
        if (other >= 0)
          w.fail(1u << l, "a copy overwrites what is read or written by warp " + std::to_string(other) +
                              " with no barrier in between");
        shared.set_written(c.to, c.bytes, true);
      }
    }
  }
}

}  // namespace

Handler branch_handler() { return branch; }
Handler exit_handler() { return leave; }
Handler trap_handler() { return trap; }
Handler active_mask_handler() { return active_mask; }
Handler shuffle_handler(const std::string& mode) {
  return mode == "up"     ? shuffle<kUp>
         : mode == "down" ? shuffle<kDown>
         : mode == "bfly" ? shuffle<kButterfly>
         : mode == "idx"  ? shuffle<kIndex>
                          : nullptr;
}
Handler vote_handler(const std::string& mode) {
  return mode == "all"      ? vote<kAll>
         : mode == "any"    ? vote<kAny>
         : mode == "uni"    ? vote<kUniform>
         : mode == "ballot" ? vote<kBallot>
                            : nullptr;
}
Handler reduction_handler(const std::string& mode, const std::string& type) {
  if (type == "b32") {
    return mode == "and"   ? reduce<kAnd, uint32_t>
           : mode == "or"  ? reduce<kOr, uint32_t>
           : mode == "xor" ? reduce<kXor, uint32_t>
                           : nullptr;
  }
  if (type != "s32" && type != "u32") return nullptr;
  const bool is_signed = type == "s32";
  return mode == "add"   ? reduce<kAdd, uint32_t>
         : mode == "min" ? (is_signed ? reduce<kLeast, int32_t> : reduce<kLeast, uint32_t>)
         : mode == "max" ? (is_signed ? reduce<kMost, int32_t> : reduce<kMost, uint32_t>)
                         : nullptr;
}
Handler barrier_handler() { return barrier; }
Handler warp_barrier_handler() { return warp_barrier; }
Handler matrix_load_handler() { return matrix_load; }
Handler matrix_multiply_handler() { return matrix_multiply; }
Handler copy_handler() { return copy; }
Handler commit_handler() { return commit; }
Handler wait_copies_handler() { return wait_copies; }

}  // namespace ptx
