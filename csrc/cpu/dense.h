// Tensors for kernels that take one of the two layouts, without gaps.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../tensor.h"

namespace fastnets {

// Whether elements lie in the order that strides give, one after another; strides of a size of 1 do not matter.
inline bool is_dense(const Tensor& x, bool channels_last) {
  const Four n = sizes_of(x), s = strides_of(x);
  const int64_t order[4][2] = {{channels_last ? n.c : n.w, channels_last ? s.c : s.w},
                               {channels_last ? n.w : n.h, channels_last ? s.w : s.h},
                               {channels_last ? n.h : n.c, channels_last ? s.h : s.c},
                               {n.n, s.n}};
  int64_t expected = 1;
  for (const auto& [size, stride] : order) {
    if (size != 1 && stride != expected) return false;
    expected *= size;
  }
  return true;
}

// The tensor itself where it is dense in that layout, else a copy.
inline Tensor dense(const Tensor& x, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  if (is_dense(x, channels_last)) return x;
  return torch::stable::contiguous(x, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fastnets
