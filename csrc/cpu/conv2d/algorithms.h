// The algorithms of the convolution and the choice among them.
//
// algorithms.cpp has one table for each kind of problem (problem.h). The first algorithm that can solve a
// problem and suits it serves it; the last, Direct, always does. PYOPS_CONV2D=<name> in the environment puts
// one algorithm first wherever it can, for tests.
#pragma once

#include <string>
#include <vector>

#include "cpu/conv2d/problem.h"

namespace pyops::cpu {

template <class Problem>
struct Algorithm {
  const char* name;
  bool (*can)(const Problem&);    // whether it solves the problem
  bool (*suits)(const Problem&);  // if it can: whether it is the fastest, or faster than those after it
  void (*run)(const Problem&);
  bool packs;  // whether it can keep packed weights (packed_weights.h)
};

template <class Problem>
const Algorithm<Problem>& algorithm_for(const Problem& problem);

template <class Problem>
void solve(const Problem& problem) {
  algorithm_for(problem).run(problem);
}

// The names in the tables, in order.
std::vector<std::string> correlation_algorithms();
std::vector<std::string> weight_gradient_algorithms();

// An algorithm as the tables ask it (Algorithm, above); each defines its members in files of its own.
#define PYOPS_CONV2D_DECLARE(algorithm, packs) \
  struct algorithm {                           \
    static constexpr bool kPacks = packs;      \
    template <class Problem>                   \
    static bool can(const Problem& p);         \
    template <class Problem>                   \
    static bool suits(const Problem& p);       \
    template <class Problem>                   \
    static void run(const Problem& p);         \
  };

// Groups of one input and one output channel (depthwise/depthwise.cpp).
PYOPS_CONV2D_DECLARE(Depthwise, false)

// Images of a few pixels: weights are read or written once (small_image.cpp).
PYOPS_CONV2D_DECLARE(SmallImage, false)

// An image in each lane: many small images of few channels (image_lanes/correlation.h).
PYOPS_CONV2D_DECLARE(ImageLanes, false)

// bfloat16 by products of tiles (amx/plan.h).
PYOPS_CONV2D_DECLARE(Amx, false)

// 36 of 144 multiplications for kernels of 3 x 3 in 16 bits (winograd_4x4/transforms.h).
PYOPS_CONV2D_DECLARE(Winograd4x4, false)

// bfloat16 by the instruction that multiplies and adds pairs (bf16/bf16.h).
PYOPS_CONV2D_DECLARE(Bf16Dot, false)

// 16 of 36 multiplications for kernels of 3 x 3, in steps of 1 (winograd/winograd.cpp).
PYOPS_CONV2D_DECLARE(Winograd, true)

// Every product is formed (direct/direct.h).
PYOPS_CONV2D_DECLARE(Direct, true)

// Compiles an algorithm for every dtype, in its own file.
#define PYOPS_CONV2D_ALGORITHM_FOR(algorithm, Problem) \
  template bool algorithm::can(const Problem&);        \
  template bool algorithm::suits(const Problem&);      \
  template void algorithm::run(const Problem&);
#define PYOPS_CONV2D_FOR_ALL_PROBLEMS(what, algorithm)                                                 \
  what(algorithm, CorrelationProblem<float>) what(algorithm, CorrelationProblem<double>)               \
      what(algorithm, CorrelationProblem<bfloat16>) what(algorithm, CorrelationProblem<float16>)       \
          what(algorithm, WeightGradientProblem<float>) what(algorithm, WeightGradientProblem<double>) \
              what(algorithm, WeightGradientProblem<bfloat16>)                                         \
                  what(algorithm, WeightGradientProblem<float16>)
#define PYOPS_CONV2D_ALGORITHM(algorithm) PYOPS_CONV2D_FOR_ALL_PROBLEMS(PYOPS_CONV2D_ALGORITHM_FOR, algorithm)

}  // namespace pyops::cpu
