// What the kernels of the two poolings are given, for all instruction sets.
#pragma once

#include "pointwise_conv2d.h"

namespace fastnets::pool {

using Pair = std::vector<int64_t>;
using Into = std::optional<Tensor>;  // images whose channels from a given one on the results become

// Windows on images of the sizes s. With ceil_mode a last one may begin within the image, or the padding before it, and
// end beyond.
inline Convolution windows(const Four& s, const Pair& kernel, const Pair& stride, const Pair& padding, bool ceil_mode) {
  STD_TORCH_CHECK(kernel.size() == 2 && stride.size() == 2 && padding.size() == 2, "expected pairs");
  STD_TORCH_CHECK(2 * padding[0] <= kernel[0] && 2 * padding[1] <= kernel[1],
                  "expected a padding of at most half of the kernel");
  const int64_t more_h = ceil_mode ? stride[0] - 1 : 0, more_w = ceil_mode ? stride[1] - 1 : 0;
  Convolution g =
      geometry({s.n, s.c, s.h + more_h, s.w + more_w}, {s.c, 1, kernel[0], kernel[1]}, stride, padding, {1, 1}, s.c);
  g.h = s.h, g.w = s.w;
  if ((g.oh - 1) * g.sh >= g.h + g.ph) --g.oh;
  if ((g.ow - 1) * g.sw >= g.w + g.pw) --g.ow;
  return g;
}

template <typename T>
struct Problem {
  Convolution g;  // of windows for kernels
  pointwise::Pixels<const T> x;
  pointwise::Pixels<T> y;
  bool mean = false;            // else the maximum
  bool counts_padding = false;  // whether the padding's zeros are part of the mean
};

}  // namespace fastnets::pool
