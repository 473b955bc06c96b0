#include "tensor_core.h"

#include <cstring>
#include <type_traits>

#include "numbers.h"

namespace ptx {

namespace {

using numbers::BF16;
using numbers::F16;
using numbers::Rounding;

// The types of elements: how a register of 32 words reads as doubles, and back.
template <class Half>
struct Packed {  // two elements in a word
  using Word = uint32_t;
  static constexpr int per_word = 2;
  static void read(const uint32_t* words, double* values) {
    uint16_t halves[64];
    std::memcpy(halves, words, sizeof(halves));
    float floats[64];
    for (int i = 0; i < 64; ++i) floats[i] = Half::widen(halves[i]);
    for (int i = 0; i < 64; ++i) values[i] = floats[i];
  }
  static void write(const double* values, uint32_t* words) {
    uint16_t halves[64];
    for (int i = 0; i < 64; ++i) halves[i] = numbers::half_from<Half, Rounding::rn>(values[i]);
    std::memcpy(words, halves, sizeof(halves));
  }
};
struct Tf32 {
  using Word = uint32_t;
  static constexpr int per_word = 1;
  static void read(const uint32_t* words, double* values) {
    for (int i = 0; i < 32; ++i) values[i] = numbers::f32_from_tf32(words[i]);
  }
};
struct F32 {
  using Word = uint32_t;
  static constexpr int per_word = 1;
  static void read(const uint32_t* words, double* values) {
    for (int i = 0; i < 32; ++i) values[i] = numbers::from_bits(words[i]);
  }
  static void write(const double* values, uint32_t* words) {
    for (int i = 0; i < 32; ++i) words[i] = numbers::bits(numbers::narrow<Rounding::rn>(values[i]));
  }
};
struct F64 {
  using Word = uint64_t;
  static constexpr int per_word = 1;
  static void read(const uint64_t* words, double* values) { std::memcpy(values, words, 32 * sizeof(double)); }
  static void write(const double* values, uint64_t* words) {
    std::memcpy(words, values, 32 * sizeof(double));
  }
};

// Every fragment is made of blocks. In memory, the 32 lanes of one register are a block of A of 8 rows, or of
// B's transpose of 8 columns, row by row: of 8 terms where elements have 16 bits, else of 4. Consecutive
// registers of A go down first and then along the terms. A register of C has 8 rows too: of all columns where
// elements have 16 bits; else there are two, of the even and of the odd columns.
template <class Type>
constexpr int block_terms = 4 * Type::per_word;
template <class Type>
constexpr int registers_of_8_rows = 2 / Type::per_word;

using Row = double __attribute__((vector_size(64)));

template <class Type>
void read_rows(const typename Type::Word* const c[], Row* rows) {
  double* values = reinterpret_cast<double*>(rows);
  if constexpr (Type::per_word == 2) {
    Type::read(c[0], values);
  } else {
    double even[32], odd[32];
    Type::read(c[0], even);
    Type::read(c[1], odd);
    for (int i = 0; i < 32; ++i) {
      values[2 * i] = even[i];
      values[2 * i + 1] = odd[i];
    }
  }
}

template <class Type>
void write_rows(const Row* rows, typename Type::Word* const d[]) {
  const double* values = reinterpret_cast<const double*>(rows);
  if constexpr (Type::per_word == 2) {
    Type::write(values, d[0]);
  } else {
    double even[32], odd[32];
    for (int i = 0; i < 32; ++i) {
      even[i] = values[2 * i];
      odd[i] = values[2 * i + 1];
    }
    Type::write(even, d[0]);
    Type::write(odd, d[1]);
  }
}

// a b + c. Only products of f64 can be inexact, and need fusing.
template <class Operand>
inline Row multiply_add(double a, Row b, Row c) {
  if constexpr (std::is_same<Operand, F64>::value) {
    for (int j = 0; j < 8; ++j) c[j] = std::fma(a, b[j], c[j]);
    return c;
  }
  return a * b + c;
}

// Eight numbers that lie `Stride` apart.
template <int Stride>
inline Row column(const double* x) {
  return Row{x[0],          x[Stride],     x[2 * Stride], x[3 * Stride],
             x[4 * Stride], x[5 * Stride], x[6 * Stride], x[7 * Stride]};
}

template <class Operand, class Accumulator, int Rows, int Terms>
void run(const typename Operand::Word* const a[], const typename Operand::Word* const b[],
         const typename Operand::Word* const c[], typename Operand::Word* const d[]) {
  constexpr int width = block_terms<Operand>, blocks = Rows / 8, step = registers_of_8_rows<Accumulator>;
  Row sums[Rows];
  double block_a[8 * width], block_b[8 * width];
  for (int r = 0; r < blocks; ++r) read_rows<Accumulator>(c + r * step, sums + 8 * r);
  for (int first = 0; first < Terms / width; ++first) {
    Operand::read(b[first], block_b);
    Row terms_b[width];
    for (int k = 0; k < width; ++k) terms_b[k] = column<width>(block_b + k);
    for (int r = 0; r < blocks; ++r) {
      Operand::read(a[first * blocks + r], block_a);
      for (int i = 0; i < 8; ++i) {
        Row sum = sums[8 * r + i];
        for (int k = 0; k < width; ++k) sum = multiply_add<Operand>(block_a[i * width + k], terms_b[k], sum);
        sums[8 * r + i] = sum;
      }
    }
  }
  for (int r = 0; r < blocks; ++r) write_rows<Accumulator>(sums + 8 * r, d + r * step);
}

constexpr int rows_of(MmaShape shape) { return shape == MmaShape::m8n8k4 ? 8 : 16; }
constexpr int terms_of(MmaShape shape) {
  return shape == MmaShape::m16n8k16 ? 16 : shape == MmaShape::m16n8k8 ? 8 : 4;
}
constexpr bool has_16_bits(MmaType type) { return type == MmaType::f16 || type == MmaType::bf16; }

bool is_supported(MmaForm form) {
  switch (form.operand) {
    case MmaType::f16:
      return terms_of(form.shape) >= 8 &&
             (form.accumulator == MmaType::f16 || form.accumulator == MmaType::f32);
    case MmaType::bf16:
      return terms_of(form.shape) >= 8 && form.accumulator == MmaType::f32;
    case MmaType::tf32:
      return (form.shape == MmaShape::m16n8k4 || form.shape == MmaShape::m16n8k8) &&
             form.accumulator == MmaType::f32;
    case MmaType::f64:
      return form.accumulator == MmaType::f64;
    case MmaType::f32:
      return false;
  }
  return false;
}

}  // namespace

MmaRegisters mma_registers(MmaForm form) {
  if (!is_supported(form)) return {0, 0, 0};
  const int blocks_of_terms = terms_of(form.shape) / (has_16_bits(form.operand) ? 8 : 4);
  const int blocks_of_rows = rows_of(form.shape) / 8;
  return {blocks_of_rows * blocks_of_terms, blocks_of_terms,
          blocks_of_rows * (form.accumulator == MmaType::f16 ? 1 : 2)};
}

void mma(MmaForm form, const uint32_t* const a[], const uint32_t* const b[], const uint32_t* const c[],
         uint32_t* const d[]) {
  const bool long_one = form.shape == MmaShape::m16n8k16, half_sums = form.accumulator == MmaType::f16;
  if (form.operand == MmaType::tf32) {
    (form.shape == MmaShape::m16n8k8 ? run<Tf32, F32, 16, 8> : run<Tf32, F32, 16, 4>)(a, b, c, d);
  } else if (form.operand == MmaType::bf16) {
    (long_one ? run<Packed<BF16>, F32, 16, 16> : run<Packed<BF16>, F32, 16, 8>)(a, b, c, d);
  } else if (half_sums) {
    (long_one ? run<Packed<F16>, Packed<F16>, 16, 16> : run<Packed<F16>, Packed<F16>, 16, 8>)(a, b, c, d);
  } else {
    (long_one ? run<Packed<F16>, F32, 16, 16> : run<Packed<F16>, F32, 16, 8>)(a, b, c, d);
  }
}

void mma_f64(MmaForm form, const uint64_t* const a[], const uint64_t* const b[], const uint64_t* const c[],
             uint64_t* const d[]) {
  switch (form.shape) {
    case MmaShape::m8n8k4:
      return run<F64, F64, 8, 4>(a, b, c, d);
    case MmaShape::m16n8k4:
      return run<F64, F64, 16, 4>(a, b, c, d);
    case MmaShape::m16n8k8:
      return run<F64, F64, 16, 8>(a, b, c, d);
    case MmaShape::m16n8k16:
      return run<F64, F64, 16, 16>(a, b, c, d);
  }
}

void mma_poison(MmaForm form, const uint32_t a_written[], const uint32_t b_written[],
                const uint32_t c_written[], uint32_t d_written[]) {
  const MmaRegisters count = mma_registers(form);
  const int blocks_of_rows = rows_of(form.shape) / 8;
  // A group of four lanes holds one row of A's block and one column of B's.
  uint32_t columns = ~0u;
  for (int i = 0; i < count.b; ++i) columns &= b_written[i];
  uint32_t column_written = 0;  // one bit a column
  for (int j = 0; j < 8; ++j) column_written |= static_cast<uint32_t>((columns >> 4 * j & 15) == 15) << j;
  for (int block = 0; block < blocks_of_rows; ++block) {
    uint32_t rows = ~0u, lanes = 0;
    for (int i = block; i < count.a; i += blocks_of_rows) rows &= a_written[i];
    for (int j = 0; j < 32; j += 4) lanes |= (rows >> j & 15) == 15 ? 15u << j : 0;
    const int registers = count.c / blocks_of_rows;
    for (int i = 0; i < registers; ++i) {
      // Lane t of a group holds columns 2t and 2t + 1: one in each register, or both in one of f16.
      uint32_t pattern = 0;
      for (int t = 0; t < 4; ++t) {
        const uint32_t pair = column_written >> 2 * t & 3;
        pattern |= static_cast<uint32_t>(registers == 1 ? pair == 3 : pair >> i & 1) << t;
      }
      const int index = block * registers + i;
      d_written[index] = c_written[index] & lanes & (pattern * 0x11111111u);
    }
  }
}

}  // namespace ptx
