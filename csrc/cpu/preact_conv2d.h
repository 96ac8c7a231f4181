// What the kernel of preact_conv2d is given, for all instruction sets.
#pragma once

#include "pointwise_conv2d.h"

namespace fastnets::preact {

struct Problem {
  static constexpr int64_t kLanes = 16;

  const float* x = nullptr;
  Four size{};                   // of x
  int64_t pixel = 0, pool = 1;   // x's pixels are so far apart; pool * pool of them are added up
  const float* norm = nullptr;   // scale and shift of each channel, [2][padded_channels()], zeros at the end
  pointwise::Problem product{};  // its x is made block by block
  pointwise::Tasks tasks{};

  int64_t padded_channels() const { return ceil_div(product.in, kLanes) * kLanes; }
  // Of pixels in scratch: an odd number of cache lines mostly, as pixels 2 KB apart would share sets of the first
  // level.
  int64_t step() const { return padded_channels() + kLanes; }

  // Blocks of a tile's pixels, all about as many, which are made once for all panels.
  void cut() {
    const int64_t pixels = size.n * (size.h / pool) * (size.w / pool);
    const int64_t most = capability() == Capability::kAvx512 ? 14 : 12;
    tasks = {pixels, product.panels(), ceil_div(pixels, ceil_div(pixels, most)), true};
  }
};

}  // namespace fastnets::preact
