// What the kernels of the two poolings are given, for all instruction sets.
#pragma once

#include "../convolution.h"

namespace fastnets::pool {

struct Problem {
  Convolution g;             // of windows for kernels
  const float* x = nullptr;  // in channels_last, as is y
  float* y = nullptr;
  bool mean = false;            // else the maximum
  bool counts_padding = false;  // whether the padding's zeros are part of the mean
};

}  // namespace fastnets::pool
