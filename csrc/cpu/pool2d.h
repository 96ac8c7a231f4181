// What the kernels of the two poolings are given, for all instruction sets.
#pragma once

#include "pointwise_conv2d.h"

namespace fastnets::pool {

template <typename T>
struct Problem {
  Convolution g;  // of windows for kernels
  pointwise::Pixels<const T> x;
  pointwise::Pixels<T> y;
  bool mean = false;            // else the maximum
  bool counts_padding = false;  // whether the padding's zeros are part of the mean
};

}  // namespace fastnets::pool
