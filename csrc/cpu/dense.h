// Tensors for kernels that take one of the two layouts, without gaps.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "../tensor.h"

namespace fastnets {

// The tensor itself where it is dense in that layout, else a copy.
inline Tensor dense(const Tensor& x, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  if (is_dense(x, channels_last)) return x;
  return torch::stable::contiguous(x, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

}  // namespace fastnets
