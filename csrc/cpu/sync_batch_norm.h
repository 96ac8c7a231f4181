// What the kernels of sync_batch_norm are given, for both layouts and all instruction sets.
#pragma once

#include "../convolution.h"
#include "batch_moments.h"

namespace fastnets::batch_norm {

// Vectors are per channel, in the type of sums (float or double); xhat = (x - mean) * r, r = 1 / sqrt(var + eps). The
// result is y = f(z), z = (x - mean) * scale + bias; backward, dz = dy * f'(z) with a z that is computed again.
struct Problem {
  moments::Cut cut;
  const void *x = nullptr, *dy = nullptr;
  void* out = nullptr;  // y or dx
  void *mean = nullptr, *var = nullptr;
  const void *weight = nullptr, *bias = nullptr;
  double eps = 0;
  // scale = r * weight. Backward: dx = (dz - shift - (x - mean) * slope) * scale.
  void *scale = nullptr, *shift = nullptr, *slope = nullptr;
  void* sums = nullptr;  // [part][2][c]: of dz, of dz * (x - mean)
  double count = 0;      // values that the statistics are of
  bool streams = false;  // whether the result is stored past the caches
  Activation activation = Activation::kNone;
};

using Kernel = void (*)(const Problem&, int64_t begin, int64_t end);

// Tasks write disjoint memory and are the same whatever the number of threads. They are: of planes, the c * parts of
// `reduce` (channel by channel), the c channels of those that are both passes, the n * c planes of the others; of
// channels_last always the parts.
struct Kernels {
  moments::Kernel moments;
  Kernel forward;         // y of statistics that are given
  Kernel local;           // mean, var and y; null where that takes two passes over all channels
  Kernel reduce;          // sums
  Kernel dx;              // dx of sums that are given
  Kernel local_backward;  // sums and dx; null likewise
};

}  // namespace fastnets::batch_norm
