// What the CPU and the CUDA side of precision_gate_conv2d share: geometry and checks.
#pragma once

#include <optional>

#include "convolution.h"

namespace fastnets::gate {

// Bits of a magnitude. The input's fall into a high and a low part.
struct Bits {
  int64_t high, low, weight;
  int32_t levels, weight_levels;  // the largest magnitudes
};

using MaybeTensor = std::optional<Tensor>;

inline Bits bits(int64_t activation, int64_t high, int64_t weight) {
  STD_TORCH_CHECK(1 <= high && high < activation && activation <= 8 && 1 <= weight && weight <= 8,
                  "expected 1 <= high_bits < activation_bits <= 8 and 1 <= weight_bits <= 8");
  return {high, activation - high, weight, (1 << activation) - 1, (1 << weight) - 1};
}

// Whether t, which may be missing, has `count` numbers of the type of x, on its device.
inline void check_numbers(const Tensor& x, const Tensor& t, int64_t count, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type() && t.device() == x.device() && t.numel() == count, "expected ",
                  name, " of ", count, " numbers of the input's type, on its device");
}

inline void check(const Tensor& x, const Tensor& threshold, const MaybeTensor& bias, const MaybeTensor& scale,
                  const Convolution& g, const Bits& b) {
  check_numbers(x, threshold, g.o, "threshold");
  STD_TORCH_CHECK(threshold.dim() == 1, "expected a threshold of one dimension");
  if (bias) check_numbers(x, *bias, g.o, "bias");
  STD_TORCH_CHECK(!bias || bias->dim() == 1, "expected a bias of one dimension");
  if (scale) check_numbers(x, *scale, 1, "scale");
  const int64_t terms = g.depth * g.kh * g.kw;
  STD_TORCH_CHECK(terms < (int64_t{1} << (31 - b.high - b.low - b.weight)), "sums may pass 32 bits");
}

}  // namespace fastnets::gate
