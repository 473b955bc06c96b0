// The weight gradient by tiles: sums over pixels, 32 of them a step.
//
// The left operand is the input, [channel][pixel], from which a tap's tiles are loaded at the tap's offset,
// whatever it is. The right operand is the gradient, [16 outputs][pair of pixels][output][2], packed once for
// all taps. The 32 pixels are neighbours in the packed input and may run across the ends of its rows: there
// the gradient is zero. Zero times an infinity is a NaN, so the sums are formed again, by another algorithm,
// where they are not finite.
//
// Few input channels: terms of all taps are copied to rows of their own and share tiles (plan.h, folds).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/conv2d/amx/microkernels.h"
#include "cpu/conv2d/amx/pack.h"
#include "cpu/conv2d/amx/plan.h"
#include "cpu/conv2d/weight_sums.h"

#if defined(__AVX512F__)

namespace pyops::cpu::amx {

struct WeightGradientPlan {
  explicit WeightGradientPlan(const WeightGradientProblem<bfloat16>& problem_)
      : problem(problem_),
        folded(folds(problem.weights.inputs, problem.weights.taps(), kTileRows)),
        sums(problem, problem.weights.taps(), ceil_div(problem.weights.inputs, kBlockChannels), 1),
        shape(problem.h, problem.w, 1, 1) {
    const EvenSplit columns(problem.w.count, std::max<int64_t>(1, ceil_div(problem.w.count, kPixels)));
    const int64_t high = std::max<int64_t>(1, kPixels / std::max<int64_t>(1, columns.size(0)));
    const EvenSplit rows(problem.h.count, std::max<int64_t>(1, ceil_div(problem.h.count, high)));
    sums.cut({rows, columns, 1, kPixels / std::max<int64_t>(1, problem.pixels()), 1, 1});
    shape = PackedInputShape(problem.h, problem.w, rows.size(0), columns.size(0));
    shape.columns = round_up(shape.columns, 2);  // a pair of pixels is of one row
    spread_channels(shape, kBytes);
    positions = shape.offsets(problem.h, problem.w, folded ? sums.blocks.size(0) : 1);
    most_steps = steps(rows.size(0), columns.size(0));
    fold_line = sums.batches.size(0) * most_steps * kTileDepth;
    if (fold_line * kBytes % 512 == 0) fold_line += kTileDepth;
  }

  int64_t steps(int64_t rows, int64_t columns) const {
    return std::max<int64_t>(0, ceil_div((rows - 1) * shape.columns + columns, kTileDepth));
  }
  // Elements of a block of channels of an image, of which tiles read all rows.
  int64_t image_size() const { return round_up(sums.blocks.size(0), kTileRows) * shape.channel(); }
  int64_t folded_size() const {
    return folded ? round_up(sums.blocks.size(0) * sums.terms, kTileRows) * fold_line : 0;
  }

  // Pixels of a tile: the operands of 32 channels and 32 outputs stay in the L1 cache for all taps.
  static constexpr int64_t kPixels = 384;
  // The gradient is packed once for so many input channels.
  static constexpr int64_t kBlockChannels = 128;
  static constexpr int64_t kBytes = static_cast<int64_t>(sizeof(bfloat16));

  const WeightGradientProblem<bfloat16>& problem;
  bool folded;
  WeightSums<bfloat16> sums;
  PackedInputShape shape;
  std::vector<int64_t> positions;  // of taps in the packed input; folded: of all terms
  int64_t most_steps = 0;          // of a tile of an image
  int64_t fold_line = 0;           // pixels of a folded row
};

template <class Tiles>
class WeightGradient {
 public:
  explicit WeightGradient(const WeightGradientProblem<bfloat16>& problem)
      : problem_(problem), plan_(problem) {}

  // Whether the gradients are finite; if not, they are not to be relied on.
  bool run(bfloat16* weight, bfloat16* bias) {
    const double work = double(WeightGradientPlan::kPixels) / kSpeed;
    return plan_.sums.run(weight, bias, work, [&](const Unit& unit) { sum_unit(unit); }, TapOrder(problem_));
  }

 private:
  using Unit = WeightSums<bfloat16>::Unit;
  static constexpr double kSpeed = 8;  // multiplications in the time of one of float32

  // Brings a channel's sums from the order in which the taps are visited into that of the weight.
  class TapOrder {
   public:
    static constexpr bool kWholeVectors = true;
    explicit TapOrder(const WeightGradientProblem<bfloat16>& p) : places_(p.weights.taps()) {
      int64_t visited = 0;
      for (const math::ConvTap& r : p.h.taps) {
        for (const math::ConvTap& s : p.w.taps) places_[r.kernel * p.weights.columns + s.kernel] = visited++;
      }
    }
    bool operator()(const float* sums, int64_t line, float* taps) const {
      Vec<float> not_finite = 0.0f;
      for (size_t tap = 0; tap < places_.size(); ++tap) {
        for (int64_t k = 0; k < line; k += Vec<float>::kLanes) {
          const Vec<float> v = load<float>(sums + places_[tap] * line + k);
          not_finite += v - v;
          store(taps + static_cast<int64_t>(tap) * line + k, v);
        }
      }
      return horizontal_sum(not_finite) == 0;
    }

   private:
    std::vector<int64_t> places_;
  };

  // A thread's memory for a unit of work.
  struct UnitScratch {
    explicit UnitScratch(const WeightGradientPlan& plan)
        : input(memory.take<bfloat16>(input_size(plan) + kSlack)),
          folded(memory.take<bfloat16>(plan.folded_size())),
          grad(memory.take<float>(steps(plan) * kTileRows * plan.sums.panels.padded())),
          offsets(memory.take<int64_t>(2 * steps(plan))) {
      std::fill_n(input + input_size(plan), kSlack, bfloat16{0});
    }
    static int64_t input_size(const WeightGradientPlan& p) { return p.sums.batches.size(0) * p.image_size(); }
    static int64_t steps(const WeightGradientPlan& p) { return p.sums.batches.size(0) * p.most_steps; }

    static constexpr int64_t kSlack = 2 * kTileDepth;  // that is read, and written, past the end
    Scratch memory;
    bfloat16* input;
    bfloat16* folded;
    float* grad;       // pairs
    int64_t* offsets;  // of the steps' tiles in the input, and then in the gradient
  };

  void sum_unit(const Unit& unit) const {
    const WeightSums<bfloat16>& sums = plan_.sums;
    const UnitScratch scratch(plan_);
    typename Tiles::Scope scope;
    sums.for_each_tile(unit.chunk, [&](const TileImages& images, const ConvTile& tile, bool accumulate) {
      const int64_t in_image = plan_.steps(tile.rows, tile.columns), steps = images.count * in_image;
      for (int64_t k = 0; k < images.count; ++k)
        pack_gradient(images.first + k, unit.first_group, tile, k * in_image, steps, scratch.grad);
      if (unit.bias)
        add_to_bias(steps * kTileRows, scratch.grad, sums.bias(unit.chunk, unit.first_group), accumulate);
      if (!unit.weight) return;
      for (int64_t k = 0; k < images.count; ++k) {
        pack_image(images.first + k, unit, tile, scratch.input + k * plan_.image_size());
        if (plan_.folded)
          fold(unit, scratch.input + k * plan_.image_size(), in_image,
               scratch.folded + k * in_image * kTileDepth);
      }
      set_offsets(images.count, in_image, scratch.offsets);
      add_products(unit, steps, scratch, accumulate);
    });
  }

  void pack_image(int64_t image, const Unit& unit, const ConvTile& tile, bfloat16* packed) const {
    const WeightGradientProblem<bfloat16>& p = problem_;
    const int64_t channels = plan_.sums.blocks.size(unit.block);
    const int64_t channel = unit.first_group * p.weights.inputs + plan_.sums.blocks.begin(unit.block);
    clear_gaps(p.h.source_span(tile.rows), p.w.source_span(tile.columns), channels, packed);
    bf16_pack::pack_singles(p.x, image, channel, channels, p.h, p.w, plan_.shape, tile, packed);
  }

  // Zeros between rows and behind them, which meet zeros of the gradient: no stale NaN may be there.
  void clear_gaps(int64_t rows, int64_t columns, int64_t channels, bfloat16* packed) const {
    const PackedInputShape& shape = plan_.shape;
    const int64_t filled = shape.columns == columns ? rows * columns : 0;
    if (filled == shape.plane()) return;
    for (int64_t i = 0; i < channels * shape.row_phases * shape.column_phases; ++i)
      memset(packed + i * shape.plane() + filled, 0, (shape.plane() - filled) * sizeof(bfloat16));
  }

  void fold(const Unit& unit, const bfloat16* singles, int64_t steps, bfloat16* folded) const {
    const int64_t terms = plan_.sums.blocks.size(unit.block) * plan_.sums.terms;
    fold_singles(singles, plan_.positions.data(), terms, steps * kTileDepth, plan_.fold_line, folded);
  }

  // An image's gradient, as the steps from `first_step` on of `steps` in all.
  void pack_gradient(int64_t image, int64_t group, const ConvTile& tile, int64_t first_step, int64_t steps,
                     float* packed) const {
    const ImageSource<bfloat16>& grad = problem_.grad;
    const int64_t outputs = problem_.weights.outputs, line = plan_.shape.columns;
    // Rows that follow each other without a gap, here and there, are one long row.
    const bool joined = tile.columns == line && tile.columns * grad.column_stride == grad.row_stride;
    const int64_t rows = joined ? 1 : tile.rows, columns = joined ? tile.rows * tile.columns : tile.columns;
    const int64_t pairs = ceil_div(columns, 2), all = plan_.steps(tile.rows, tile.columns) * kTileRows;
    const int64_t origin = image * grad.image_stride + group * outputs * grad.channel_stride +
                           tile.row * grad.row_stride + tile.column * grad.column_stride;
    const auto panel = [&](int64_t k) { return packed + (k * steps + first_step * kTileRows) * kTileRows; };
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t begin = row * line / 2, next = row + 1 < rows ? begin + line / 2 : all;
      bf16_pack::for_each_segment(grad, columns, [&](int64_t first, int64_t count) {
        const int64_t from = origin + row * grad.row_stride + first * grad.column_stride;
        for (int64_t k = 0; k < plan_.sums.panels.padded(); k += kTileRows) {
          bf16_pack::pack_pair_row(grad, from + k * grad.channel_stride, count,
                                   std::clamp<int64_t>(outputs - k, 0, kTileRows), kTileRows,
                                   panel(k) + (begin + first / 2) * kTileRows);
        }
      });
      for (int64_t k = 0; k < plan_.sums.panels.padded(); k += kTileRows)
        std::fill(panel(k) + (begin + pairs) * kTileRows, panel(k) + next * kTileRows, 0.0f);
    }
  }

  void add_to_bias(int64_t pairs, const float* packed, float* sums, bool accumulate) const {
    for (int64_t k = 0; k < plan_.sums.panels.padded(); k += kTileRows, packed += pairs * kTileRows)
      bf16_pack::add_pairs(pairs, packed, kTileRows, sums + k, accumulate);
  }

  void set_offsets(int64_t images, int64_t steps, int64_t* offsets) const {
    for (int64_t k = 0; k < images; ++k) {
      for (int64_t step = 0; step < steps; ++step) {
        const int64_t at = k * steps + step, image = plan_.folded ? steps * kTileDepth : plan_.image_size();
        offsets[at] = (k * image + step * kTileDepth) * WeightGradientPlan::kBytes;
        offsets[images * steps + at] = at * kTileBytes;
      }
    }
  }

  // Rows of sums: a channel each, tap by tap, or a term each where they are folded.
  void add_products(const Unit& unit, int64_t steps, const UnitScratch& scratch, bool accumulate) const {
    const WeightSums<bfloat16>& sums = plan_.sums;
    const int64_t channels = sums.blocks.size(unit.block), padded = sums.panels.padded();
    const int64_t taps = plan_.folded ? 1 : sums.terms,
                  rows = plan_.folded ? channels * sums.terms : channels;
    const int64_t ld = taps * padded, line = plan_.folded ? plan_.fold_line : plan_.shape.channel();
    const bfloat16* const input = plan_.folded ? scratch.folded : scratch.input;
    float* const to =
        sums.weight(unit.chunk, unit.first_group) + sums.blocks.begin(unit.block) * sums.terms * padded;
    for (int64_t k = 0; k < padded; k += 2 * kTileRows) {
      const char* const right = reinterpret_cast<const char*>(scratch.grad + k * steps * kTileRows);
      const TileOperand grad{
          {right, right + steps * kTileBytes}, kTileRowBytes, scratch.offsets + steps, {0, kTileRows}};
      const int64_t wide = std::min<int64_t>(2, (padded - k) / kTileRows);
      for (int64_t row = 0; row < rows; row += 2 * kTileRows) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          const bfloat16* const first = input + row * line + (plan_.folded ? 0 : plan_.positions[tap]);
          const TileOperand left{
              {reinterpret_cast<const char*>(first), reinterpret_cast<const char*>(first + kTileRows * line)},
              line * WeightGradientPlan::kBytes,
              scratch.offsets,
              {0, kTileRows * ld}};
          add_block(std::min<int64_t>(2 * kTileRows, rows - row), wide, steps, left, grad,
                    to + row * ld + tap * padded + k, ld, accumulate);
        }
      }
    }
  }

  // sums (+)= a * b, of `rows` rows, which may be less than a's tiles have.
  static void add_block(int64_t rows, int64_t wide, int64_t steps, TileOperand a, const TileOperand& b,
                        float* sums, int64_t ld, bool accumulate) {
    const int64_t high = ceil_div(rows, int64_t{kTileRows});
    if (rows % kTileRows == 0) return multiply_tiles<Tiles>(high, wide, steps, a, b, sums, ld, accumulate);
    constexpr int64_t kWide = 2 * kTileRows;
    alignas(kVectorBytes) float block[kWide * kWide];
    a.place[1] = kTileRows * kWide;
    multiply_tiles<Tiles>(high, wide, steps, a, b, block, kWide, false);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < wide * kTileRows; j += Vec<float>::kLanes) {
        const Vec<float> v = load<float>(block + i * kWide + j);
        float* const to = sums + i * ld + j;
        store(to, accumulate ? load<float>(to) + v : v);
      }
    }
  }

  const WeightGradientProblem<bfloat16>& problem_;
  WeightGradientPlan plan_;
};

}  // namespace pyops::cpu::amx

#endif
