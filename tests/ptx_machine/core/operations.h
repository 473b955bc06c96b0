// What the decoder finds instructions in: a table of those that treat every lane by itself, and functions
// that name the handler of the others.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "warp.h"

namespace ptx {

enum class Space { kGeneric, kParameter, kShared, kGlobal };

// An instruction that treats every lane by itself, such as `add.s32`.
struct Operation {
  Handler handler = nullptr;
  Class type = Class::kInteger;
  uint8_t result = 0;           // bits; 1: a predicate
  std::vector<uint8_t> inputs;  // the same
};

using Table = std::unordered_map<std::string, Operation>;

// By opcode, as in PTX but without what does not change a result. Filled by the files that implement them.
const Table& operations();
void add_integer_operations(Table& table);
void add_float_operations(Table& table);
void add_half_operations(Table& table);
void add_conversions(Table& table);
void add_moves(Table& table);

// access.cpp; null where there is none.
Handler access_handler(Space space, bool is_store, const std::string& type, int count);
Handler atomic_handler(Space space, const std::string& type);
// What a load is, by Instruction::number.
enum LoadFlags : uint32_t {
  kConstant = 1,  // .nc: through a cache that no fence empties
  kCached = 2,    // may find what the block has read before
  kAcquire = 4,
};
int atomic_operation(const std::string& name);  // -1: none of that name
Handler fence_handler(bool beyond_block);

// moves.cpp
Handler predicate_handler(const std::string& name);  // and, or, xor, not, mov, each .pred
Handler select_handler(int bits);
Handler pack_handler(int parts, int bits);    // mov.b32 %r, {..}
Handler unpack_handler(int parts, int bits);  // mov.b32 {..}, %r

// cooperation.cpp: instructions that need other lanes, other warps, or the block's copies
Handler shuffle_handler(const std::string& mode);
Handler vote_handler(const std::string& mode);
Handler reduction_handler(const std::string& mode, const std::string& type);
Handler barrier_handler();
Handler warp_barrier_handler();
Handler matrix_load_handler();
Handler matrix_multiply_handler();
Handler copy_handler();
Handler commit_handler();
Handler wait_copies_handler();
Handler branch_handler();
Handler exit_handler();
Handler trap_handler();
Handler active_mask_handler();

// ---- lane by lane

template <class T>
constexpr uint8_t kBits = std::is_same_v<T, bool> ? 1 : sizeof(T) * 8;

template <class T>
T from_word(Word<T> word) {
  if constexpr (sizeof(T) == sizeof(Word<T>)) {
    return __builtin_bit_cast(T, word);
  } else {
    return static_cast<T>(word);
  }
}

template <class T>
Word<T> to_word(T value) {
  if constexpr (sizeof(T) == sizeof(Word<T>)) {
    return __builtin_bit_cast(Word<T>, value);
  } else {
    return static_cast<std::make_unsigned_t<T>>(value);
  }
}

// One operand's lanes, for reading.
template <class T>
struct Lanes {
  const Word<T>* words;
  Lanes(const Warp& w, const Operand& o) : words(w.in<T>(o)) {}
  T operator[](int lane) const { return from_word<T>(words[lane]); }
};
template <>
struct Lanes<bool> {
  uint32_t mask;
  Lanes(const Warp& w, const Operand& o) : mask(w.predicate(o)) {}
  bool operator[](int lane) const { return mask >> lane & 1; }
};

template <auto kFunction, class Result, class... Inputs, size_t... kIndex>
inline __attribute__((always_inline)) void apply(Warp& w, const Instruction& i, uint32_t mask,
                                                 std::index_sequence<kIndex...>) {
  const Operand* o = i.operands;
  const auto compute = [&](const Lanes<Inputs>&... inputs) __attribute__((always_inline)) {
    if constexpr (std::is_same_v<Result, bool>) {
      uint32_t bits = 0;
      for (int l = 0; l < kLanes; ++l) bits |= static_cast<uint32_t>(kFunction(inputs[l]...)) << l;
      w.set_predicate(o[0], mask, bits, mask);
    } else if (mask == kAllLanes) {
      Word<Result>* d = w.out<Result>(o[0]);
#pragma GCC ivdep
      for (int l = 0; l < kLanes; ++l) d[l] = to_word<Result>(kFunction(inputs[l]...));
    } else {
      Word<Result>* d = w.out<Result>(o[0]);
#pragma GCC ivdep
      for (int l = 0; l < kLanes; ++l) {
        const Word<Result> value = to_word<Result>(kFunction(inputs[l]...));
        d[l] = mask >> l & 1 ? value : d[l];
      }
    }
  };
  compute(Lanes<Inputs>(w, o[1 + kIndex])...);
  w.note(o[0], mask, (kAllLanes & ... & w.is_written(o[1 + kIndex])));
}

template <auto kFunction, class Result, class... Inputs>
void lanewise(Warp& w, const Instruction& i, uint32_t mask) {
  // What was written is judged before the result may replace an input.
  apply<kFunction, Result, Inputs...>(w, i, mask, std::index_sequence_for<Inputs...>());
}

namespace detail {
template <auto kFunction, class C, class Result, class... Inputs>
Operation make(Result (C::*)(Inputs...) const, Class type) {
  return {&lanewise<kFunction, Result, Inputs...>, type, kBits<Result>, {kBits<Inputs>...}};
}
}  // namespace detail

// The operation of a lambda without captures; its parameter types say how operands are read.
template <auto kFunction>
Operation lanes(Class type) {
  return detail::make<kFunction>(&decltype(kFunction)::operator(), type);
}

}  // namespace ptx
