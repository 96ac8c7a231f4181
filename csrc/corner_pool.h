// What the CPU and CUDA sources of corner_pool share: directions and argument checks.
#pragma once

#include "tensor.h"

namespace fastnets {

// A scan along the height or the width; reversed, it begins at the last row or column.
struct Direction {
  bool vertical, reverse;
};

inline Direction parse_direction(const Text& name) {
  const bool vertical = name == "top" || name == "bottom", reverse = name == "top" || name == "left";
  STD_TORCH_CHECK(vertical || reverse || name == "right", "unknown direction ", name);
  return {vertical, reverse};
}

inline bool takes_first(const Text& tie) {
  STD_TORCH_CHECK(tie == "first" || tie == "last", "unknown tie ", tie);
  return tie == "first";
}

// Whether the scans towards a corner are reversed.
inline bool parse_corner(const Text& name) {
  STD_TORCH_CHECK(name == "top_left" || name == "bottom_right", "unknown corner ", name);
  return name == "top_left";
}

inline void check_image_batch(const Tensor& x) { STD_TORCH_CHECK(x.dim() == 4, "expected x (n, c, h, w)"); }

inline void check_alike(const Tensor& x, const Tensor& t) {
  const Four size = sizes_of(x);
  bool alike = t.dim() == 4 && t.scalar_type() == x.scalar_type() && t.device() == x.device();
  for (int i = 0; alike && i < 4; ++i) alike = t.size(i) == (&size.n)[i];
  STD_TORCH_CHECK(alike, "expected two tensors of one shape, type and device");
}

}  // namespace fastnets
