// The axes of pixel_shuffle and pixel_unshuffle as strided copies. Shared by CPU and CUDA.
#pragma once

#include "strided_copy.h"

namespace fastnets {

inline void check_factor(const Tensor& x, int64_t r) {
  STD_TORCH_CHECK(x.dim() == 4, "expected an input (n, c, h, w), got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(r > 0 && r < int64_t{1} << 31, "expected a positive factor under 2^31, got ", r);
}

inline Four fine_sizes(const Tensor& x, int64_t r) {
  check_factor(x, r);
  const Four n = sizes_of(x);
  STD_TORCH_CHECK(n.c % (r * r) == 0, "expected channels that ", r * r, " divides, got ", n.c);
  return {n.n, n.c / (r * r), n.h * r, n.w * r};
}

inline Four coarse_sizes(const Tensor& x, int64_t r) {
  check_factor(x, r);
  const Four n = sizes_of(x);
  STD_TORCH_CHECK(n.h % r == 0 && n.w % r == 0, "expected rows and columns that ", r, " divides, got ", n.h, " and ",
                  n.w);
  return {n.n, n.c * r * r, n.h / r, n.w / r};
}

// fine[n, c, h * r + i, w * r + j] = coarse[n, c * r * r + i * r + j, h, w]; from coarse to fine.
inline std::vector<Axis> pixel_shuffle_axes(const Tensor& coarse, const Tensor& fine, int64_t r) {
  const Four n = sizes_of(fine), m = sizes_of(coarse), s = strides_of(coarse), t = strides_of(fine);
  const int64_t b = coarse.element_size(), d = fine.element_size();
  return {{n.n, s.n * b, t.n * d},     {n.c, r * r * s.c * b, t.c * d}, {m.h, s.h * b, r * t.h * d},
          {m.w, s.w * b, r * t.w * d}, {r, r * s.c * b, t.h * d},       {r, s.c * b, t.w * d}};
}

inline StridedCopy pixel_shuffle_copy(const Tensor& coarse, const Tensor& fine, int64_t r) {
  return {data<char>(coarse), mutable_data<char>(fine), static_cast<int64_t>(coarse.element_size()),
          pixel_shuffle_axes(coarse, fine, r)};
}

}  // namespace fastnets
