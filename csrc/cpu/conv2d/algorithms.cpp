// The tables of algorithms and the choice of one.
#include "cpu/conv2d/algorithms.h"

#include <algorithm>
#include <cstdlib>

#include "binding/tensor.h"

namespace pyops::cpu {
namespace {

template <class A, class Problem>
constexpr Algorithm<Problem> entry(const char* name) {
  return {name, A::template can<Problem>, A::template suits<Problem>, A::template run<Problem>, A::kPacks};
}

// Forward pass and input gradient.
template <class T, class Problem = CorrelationProblem<T>>
constexpr Algorithm<Problem> kCorrelation[] = {
    entry<Depthwise, Problem>("depthwise"),
    entry<SmallImage, Problem>("small_image"),
    entry<Amx, Problem>("amx"),
    entry<ImageLanes, Problem>("image_lanes"),
    entry<Winograd4x4, Problem>("winograd_4x4"),
    entry<Bf16Dot, Problem>("bf16_dot"),
    entry<Winograd, Problem>("winograd"),
    entry<Direct, Problem>("direct"),
};

// Gradients of weight and bias.
template <class T, class Problem = WeightGradientProblem<T>>
constexpr Algorithm<Problem> kWeightGradient[] = {
    entry<Depthwise, Problem>("depthwise"),
    entry<SmallImage, Problem>("small_image"),
    entry<Amx, Problem>("amx"),
    entry<ImageLanes, Problem>("image_lanes"),
    entry<Winograd4x4, Problem>("winograd_4x4"),
    entry<Bf16Dot, Problem>("bf16_dot"),
    entry<Winograd, Problem>("winograd"),
    entry<Direct, Problem>("direct"),
};

template <class Problem>
constexpr const auto& table() {
  if constexpr (kIsCorrelation<Problem>) {
    return kCorrelation<typename Problem::Value>;
  } else {
    return kWeightGradient<typename Problem::Value>;
  }
}

template <class Problem>
std::vector<std::string> names() {
  std::vector<std::string> found;
  for (const Algorithm<Problem>& algorithm : table<Problem>()) found.push_back(algorithm.name);
  return found;
}

// The algorithm that the environment puts first; empty for none.
const std::string& wanted() {
  static const std::string name = [] {
    const char* const value = std::getenv("PYOPS_CONV2D");
    const std::string wanted = value == nullptr ? "" : value;
    std::vector<std::string> known = correlation_algorithms();
    for (const std::string& other : weight_gradient_algorithms()) {
      if (std::find(known.begin(), known.end(), other) == known.end()) known.push_back(other);
    }
    std::string list;
    for (const std::string& one : known) list += (list.empty() ? "" : ", ") + one;
    PYOPS_CHECK(wanted.empty() || std::find(known.begin(), known.end(), wanted) != known.end(),
                "the environment variable PYOPS_CONV2D must name one of ", list, ", got ", wanted);
    return wanted;
  }();
  return name;
}

}  // namespace

std::vector<std::string> correlation_algorithms() { return names<CorrelationProblem<float>>(); }
std::vector<std::string> weight_gradient_algorithms() { return names<WeightGradientProblem<float>>(); }

template <class Problem>
const Algorithm<Problem>& algorithm_for(const Problem& problem) {
  const auto& all = table<Problem>();
  if (!wanted().empty()) {
    for (const Algorithm<Problem>& algorithm : all) {
      if (algorithm.name == wanted() && algorithm.can(problem)) return algorithm;
    }
  }
  for (const Algorithm<Problem>& algorithm : all) {
    if (algorithm.can(problem) && algorithm.suits(problem)) return algorithm;
  }
  return *(std::end(all) - 1);
}

#define PYOPS_CONV2D_ALGORITHM_OF(_, Problem) \
  template const Algorithm<Problem>& algorithm_for(const Problem&);
PYOPS_CONV2D_FOR_ALL_PROBLEMS(PYOPS_CONV2D_ALGORITHM_OF, )

}  // namespace pyops::cpu
