// Numbers as bytes: level q of 0 to 255 stands for (q - zero) / inverse.
#pragma once

#include <optional>
#include <vector>

#include "../tensor.h"

namespace fastnets {

struct Levels {
  static constexpr float kMost = 255;
  float inverse = 0, zero = 0;  // zero: a whole number of 0 to kMost
};

// What an op in int8 is told of a product: scales of its `out` sums of bytes, and the levels of what it multiplies.
struct Quantized {
  const float* scales = nullptr;
  Levels levels;
};

inline Levels check_levels(const Tensor& levels, int64_t i = 0) {
  STD_TORCH_CHECK(levels.is_contiguous() && levels.scalar_type() == ScalarType::Float && levels.is_cpu() &&
                      levels.numel() >= 2 * i + 2,
                  "expected an inverse and a zero for all levels, in float32 on the CPU");
  const Levels of{data<float>(levels)[2 * i], data<float>(levels)[2 * i + 1]};
  const bool whole =
      of.zero >= 0 && of.zero <= Levels::kMost && of.zero == static_cast<float>(static_cast<int>(of.zero));
  STD_TORCH_CHECK(of.inverse > 0 && whole, "expected levels with a positive inverse and a zero of 0 to 255");
  return of;
}

// Of the `product`th of an op, whose tensors are two for each: scales and levels.
inline Quantized check_quantized(const std::vector<Tensor>& tensors, size_t product, int64_t out) {
  STD_TORCH_CHECK(tensors.size() >= 2 * product + 2, "expected scales and levels for each product in int8");
  const Tensor& scales = tensors[2 * product];
  STD_TORCH_CHECK(
      scales.is_contiguous() && scales.scalar_type() == ScalarType::Float && scales.is_cpu() && scales.numel() == out,
      "expected ", out, " scales in float32 on the CPU");
  return {data<float>(scales), check_levels(tensors[2 * product + 1])};
}

// Bytes that pixels of so many channels take, a whole number of what is multiplied at a time.
inline int64_t bytes_of(int64_t channels) { return ceil_div(channels, 4) * 4; }

// Where an op's results are bytes, the levels of these and of its residual, which then is bytes too.
struct StoredLevels {
  explicit StoredLevels(const std::optional<Tensor>& levels)
      : results(levels ? check_levels(*levels) : Levels()), residual(levels ? check_levels(*levels, 1) : Levels()) {}
  StoredLevels() = default;
  Levels results, residual;
};

}  // namespace fastnets
