// Moves, selections and predicates.
#include <cstring>

#include "operations.h"

namespace ptx {
namespace {

// ---- predicates, all lanes at once. A known operand may settle the result alone, as compilers count on.

void pred_move(Warp& w, const Instruction& i, uint32_t mask) {
  const Operand* o = i.operands;
  w.set_predicate(o[0], mask, w.predicate(o[1]), w.is_written(o[1]));
}
void pred_not(Warp& w, const Instruction& i, uint32_t mask) {
  const Operand* o = i.operands;
  w.set_predicate(o[0], mask, ~w.predicate(o[1]), w.is_written(o[1]));
}
void pred_and(Warp& w, const Instruction& i, uint32_t mask) {
  const Operand* o = i.operands;
  const uint32_t a = w.predicate(o[1]), b = w.predicate(o[2]);
  const uint32_t known_a = w.is_written(o[1]), known_b = w.is_written(o[2]);
  const uint32_t settled = (known_a & ~a) | (known_b & ~b);
  w.set_predicate(o[0], mask, a & b & ~settled, (known_a & known_b) | settled);
}
void pred_or(Warp& w, const Instruction& i, uint32_t mask) {
  const Operand* o = i.operands;
  const uint32_t a = w.predicate(o[1]), b = w.predicate(o[2]);
  const uint32_t known_a = w.is_written(o[1]), known_b = w.is_written(o[2]);
  const uint32_t settled = (known_a & a) | (known_b & b);
  w.set_predicate(o[0], mask, a | b | settled, (known_a & known_b) | settled);
}
void pred_xor(Warp& w, const Instruction& i, uint32_t mask) {
  const Operand* o = i.operands;
  w.set_predicate(o[0], mask, w.predicate(o[1]) ^ w.predicate(o[2]), w.is_written(o[1]) & w.is_written(o[2]));
}

// ---- selp: only the side that is taken needs a value

template <class T>
void select(Warp& w, const Instruction& i, uint32_t mask) {
  const Operand* o = i.operands;
  const uint32_t p = w.predicate(o[3]);
  const uint32_t good = w.is_written(o[3]) & ((p & w.is_written(o[1])) | (~p & w.is_written(o[2])));
  const Word<T>*a = w.in<T>(o[1]), *b = w.in<T>(o[2]);
  Word<T>* d = w.out<T>(o[0]);
#pragma GCC ivdep
  for (int l = 0; l < kLanes; ++l) {
    const Word<T> value = p >> l & 1 ? a[l] : b[l];
    d[l] = mask >> l & 1 ? value : d[l];
  }
  w.note(o[0], mask, good);
}

// ---- several registers in one, and back

// Operands: whole, parts from the low end.
template <class Whole, class Part>
void pack(Warp& w, const Instruction& i, uint32_t mask) {
  const Operand* o = i.operands;
  constexpr int kParts = sizeof(Whole) / sizeof(Part);
  uint32_t good = kAllLanes;
  Word<Whole> values[kLanes] = {};
  for (int k = 0; k < kParts; ++k) {
    const Word<Part>* part = w.in<Part>(o[1 + k]);
    good &= w.is_written(o[1 + k]);
    for (int l = 0; l < kLanes; ++l) {
      values[l] |= static_cast<Word<Whole>>(static_cast<Part>(part[l])) << (8 * sizeof(Part) * k);
    }
  }
  Word<Whole>* d = w.out<Whole>(o[0]);
  for (int l = 0; l < kLanes; ++l) d[l] = mask >> l & 1 ? values[l] : d[l];
  w.note(o[0], mask, good);
}

// Operands: parts from the low end, whole.
template <class Whole, class Part>
void unpack(Warp& w, const Instruction& i, uint32_t mask) {
  const Operand* o = i.operands;
  constexpr int kParts = sizeof(Whole) / sizeof(Part);
  Word<Whole> values[kLanes];
  std::memcpy(values, w.in<Whole>(o[kParts]), sizeof values);
  const uint32_t good = w.is_written(o[kParts]);
  for (int k = 0; k < kParts; ++k) {
    if (o[k].register_ == 0) continue;  // the sink `_`
    Word<Part>* d = w.out<Part>(o[k]);
    for (int l = 0; l < kLanes; ++l) {
      const auto part = static_cast<Part>(values[l] >> (8 * sizeof(Part) * k));
      d[l] = mask >> l & 1 ? part : d[l];
    }
    w.note(o[k], mask, good);
  }
}

}  // namespace

Handler predicate_handler(const std::string& name) {
  static const std::unordered_map<std::string, Handler> all = {
      {"mov", pred_move}, {"not", pred_not}, {"and", pred_and}, {"or", pred_or}, {"xor", pred_xor}};
  const auto found = all.find(name);
  return found == all.end() ? nullptr : found->second;
}

Handler select_handler(int bits) { return bits == 64 ? select<uint64_t> : select<uint32_t>; }

Handler pack_handler(int parts, int bits) {
  if (bits == 32 && parts == 2) return pack<uint32_t, uint16_t>;
  if (bits == 32 && parts == 4) return pack<uint32_t, uint8_t>;
  if (bits == 64 && parts == 2) return pack<uint64_t, uint32_t>;
  if (bits == 64 && parts == 4) return pack<uint64_t, uint16_t>;
  if (bits == 16 && parts == 2) return pack<uint16_t, uint8_t>;
  return nullptr;
}

Handler unpack_handler(int parts, int bits) {
  if (bits == 32 && parts == 2) return unpack<uint32_t, uint16_t>;
  if (bits == 32 && parts == 4) return unpack<uint32_t, uint8_t>;
  if (bits == 64 && parts == 2) return unpack<uint64_t, uint32_t>;
  if (bits == 64 && parts == 4) return unpack<uint64_t, uint16_t>;
  if (bits == 16 && parts == 2) return unpack<uint16_t, uint8_t>;
  return nullptr;
}

void add_moves(Table& t) {
  for (const char* kind : {"b", "u", "s", "f"}) {
    const std::string k = kind;
    t["mov." + k + "16"] = lanes<[](uint16_t a) { return a; }>(Class::kMove);
    t["mov." + k + "32"] = lanes<[](uint32_t a) { return a; }>(Class::kMove);
    t["mov." + k + "64"] = lanes<[](uint64_t a) { return a; }>(Class::kMove);
  }
  // Global addresses are generic ones; shared ones have a window of their own.
  for (const char* name : {"cvta.to.global.u64", "cvta.global.u64", "cvta.to.param.u64", "cvta.param.u64"}) {
    t[name] = lanes<[](uint64_t a) { return a; }>(Class::kMove);
  }
  t["cvta.shared.u64"] = lanes<[](uint64_t a) { return a + kSharedWindow; }>(Class::kMove);
  t["cvta.to.shared.u64"] = lanes<[](uint64_t a) { return a - kSharedWindow; }>(Class::kMove);
  t["isspacep.shared"] =
      lanes<[](uint64_t a) { return (a & ~uint64_t{0xffffff}) == kSharedWindow; }>(Class::kMove);
  t["isspacep.global"] =
      lanes<[](uint64_t a) { return (a & ~uint64_t{0xffffff}) != kSharedWindow; }>(Class::kMove);
}

const Table& operations() {
  static const Table table = [] {
    Table t;
    add_integer_operations(t);
    add_float_operations(t);
    add_half_operations(t);
    add_conversions(t);
    add_moves(t);
    return t;
  }();
  return table;
}

}  // namespace ptx
