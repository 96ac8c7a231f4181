// What the kernel of outer_sum_conv2d is given, for all instruction sets.
#pragma once

#include "pointwise_conv2d.h"

namespace fastnets::outer_sum {

template <typename T>
struct Problem {
  const T *rows = nullptr, *columns = nullptr;  // [n][height][in], [n][width][in]
  const T* factor = nullptr;                    // of results, [n][height][width][out], or null
  int64_t height = 1, width = 1;
  pointwise::ProblemOf<T> product{};  // its x is made block by block
  pointwise::Tasks tasks{};           // made_blocks
};

}  // namespace fastnets::outer_sum
