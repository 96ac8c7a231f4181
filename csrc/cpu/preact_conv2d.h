// What the kernel of preact_conv2d is given, for all instruction sets.
#pragma once

#include "pointwise_conv2d.h"

namespace fastnets::preact {

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
  pointwise::Tasks tasks{};           // made_blocks
};

}  // namespace fastnets::preact
