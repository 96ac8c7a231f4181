// What Soft-NMS means to the CPU and the CUDA code: its arguments, in the type in which scores decay.
#pragma once

#include <cmath>
#include <limits>
#include <optional>

#include "tensor.h"

namespace fastnets {

enum class Method { kLinear, kGaussian, kHard };

// Whose rules: those of ops.soft_nms, of mmcv 2, or of the code that the paper's authors released.
enum class Rules { kOurs, kMmcv, kPaper };

template <typename A>
struct SoftNms {
  A threshold, sigma, min_score;
  A prune;  // a score under this one is never taken, however it decays
  int64_t most;
  Method method;
};

inline Method parse_method(const Text& name) {
  if (name == "linear") return Method::kLinear;
  if (name == "gaussian") return Method::kGaussian;
  STD_TORCH_CHECK(name == "hard", "unknown method ", name);
  return Method::kHard;
}

inline Rules parse_rules(const std::optional<Text>& compat) {
  if (!compat) return Rules::kOurs;
  if (*compat == "mmcv") return Rules::kMmcv;
  STD_TORCH_CHECK(*compat == "paper", "unknown compat ", *compat);
  return Rules::kPaper;
}

template <typename A>
SoftNms<A> soft_nms_arguments(double threshold, double sigma, double min_score, const Text& method, int64_t most) {
  STD_TORCH_CHECK(threshold >= 0 && sigma > 0 && std::isfinite(min_score),
                  "expected a threshold of 0 or more, a positive sigma and a finite min_score");
  // A negative score may rise to 0 as it decays. Where that could be enough, nothing is given up.
  const A min = static_cast<A>(min_score), prune = min > A(0) ? min : -std::numeric_limits<A>::infinity();
  return {static_cast<A>(threshold), static_cast<A>(sigma), min, prune, most, parse_method(method)};
}

// exp(x) for x <= 0 is 2^k * e^r with k = round(x / ln 2), |r| <= ln 2 / 2, and e^r by its Taylor series; under e^-708
// it is 0. Every backend takes these steps, each rounded on its own, so that all get the same bits. The series ends
// where its rest is under 2^-53 for double, and under 2^-42 for a result that is rounded to float: that is then the
// float next to the exact value, but for one argument in 10^5.
namespace exponential_constants {
constexpr double kLowest = -708.0, kLog2E = 1.4426950408889634;
constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer, held in the low bits
constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
template <typename A>
constexpr int kTerms = std::is_same_v<A, double> ? 13 : 10;
struct Coefficients {
  double of[14];
};
constexpr Coefficients kInverseFactorials{{1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040,
                                           1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600,
                                           1.0 / 6227020800.0}};
}  // namespace exponential_constants

}  // namespace fastnets
