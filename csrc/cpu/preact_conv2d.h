// What the kernel of preact_conv2d is given, for all instruction sets.
#pragma once

#include "pointwise_conv2d.h"

namespace fastnets::preact {

constexpr int64_t kLanes = 16;

// Some of the channels, an image in channels_last.
template <typename T>
struct Part {
  const T* data;
  int64_t channels;
};

template <typename T>
struct Problem {
  std::vector<Part<T>> parts;         // one after the other, they are the channels of x
  Four size{};                        // of x
  int64_t pool = 1;                   // pool * pool pixels of x are added up
  const float* norm = nullptr;        // scale and shift of each channel, [2][in + kLanes]
  pointwise::ProblemOf<T> product{};  // its x is made block by block
  pointwise::Tasks tasks{};

  // Of pixels in scratch: pixels a multiple of 2 KB apart would share sets of the first-level cache.
  int64_t step() const { return ceil_div(product.in, kLanes) * kLanes + kLanes; }

  // Blocks of a tile's pixels, all about as many, which are made once for all panels.
  void cut() {
    const int64_t pixels = size.n * (size.h / pool) * (size.w / pool);
    const int64_t most = capability() == Capability::kAvx512 ? 14 : 12;
    tasks = {pixels, product.panels(), ceil_div(pixels, ceil_div(pixels, most)), true};
  }
};

}  // namespace fastnets::preact
