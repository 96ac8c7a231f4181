// Numbers as bytes: level q of 0 to 255 stands for (q - zero) / inverse.
#pragma once

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

// Of the `product`th of the op, whose tensors are two for each: scales, and inverse and zero.
// Bytes that pixels of so many channels take, a whole number of what is multiplied at a time.
inline int64_t bytes_of(int64_t channels) { return ceil_div(channels, 4) * 4; }

inline Quantized check_quantized(const std::vector<Tensor>& tensors, size_t product, int64_t out) {
  STD_TORCH_CHECK(tensors.size() >= 2 * product + 2, "expected scales and levels for each product in int8");
  const Tensor &scales = tensors[2 * product], &levels = tensors[2 * product + 1];
  for (const Tensor* t : {&scales, &levels})
    STD_TORCH_CHECK(t->is_contiguous() && t->scalar_type() == ScalarType::Float && t->is_cpu(),
                    "expected scales and levels in float32 on the CPU");
  STD_TORCH_CHECK(scales.numel() == out && levels.numel() == 2, "expected ", out, " scales, and two numbers of levels");
  const Levels of{data<float>(levels)[0], data<float>(levels)[1]};
  const bool whole =
      of.zero >= 0 && of.zero <= Levels::kMost && of.zero == static_cast<float>(static_cast<int>(of.zero));
  STD_TORCH_CHECK(of.inverse > 0 && whole, "expected levels with a positive inverse and a zero of 0 to 255");
  return {data<float>(scales), of};
}

}  // namespace fastnets
