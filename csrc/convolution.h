// What the CPU and the CUDA side of a convolution share: geometry and the names of activations.
#pragma once

#include <algorithm>
#include <optional>

#include "tensor.h"

namespace fastnets {

enum class Activation : int32_t { kNone, kRelu, kRelu6, kLeakyRelu, kSilu, kHardswish, kSigmoid };

inline Activation parse_activation(const std::optional<Text>& name) {
  constexpr const char* names[] = {"", "relu", "relu6", "leaky_relu", "silu", "hardswish", "sigmoid"};
  if (!name) return Activation::kNone;
  for (int32_t i = 1; i < 7; ++i)
    if (*name == names[i]) return static_cast<Activation>(i);
  STD_TORCH_CHECK(false, "unknown activation '", *name, "'");
}

// Geometry of a convolution: x (n, c, h, w) with w (o, depth, kh, kw) gives y (n, o, oh, ow). Output channels fall into
// groups of m, and each group reads `depth` input channels of its own; depthwise: depth = 1.
struct Convolution {
  int64_t n, c, h, w;
  int64_t o, m, kh, kw;
  int64_t oh, ow;
  int64_t sh, sw, ph, pw, dh, dw;
  int64_t groups, depth;
};

// Of an input of the sizes s with kernels of the sizes k. The padding is that of both sides or, of two sides, that
// before rows and columns, then that after them, which kernels see in the sizes of the results alone.
inline Convolution geometry(const Four& s, const Four& k, const std::vector<int64_t>& stride,
                            const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
                            size_t sides = 1) {
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 * sides && dilation.size() == 2,
                  "expected pairs, and a padding of ", 2 * sides, " numbers");
  const int64_t below = padding[2 * sides - 2], right = padding[2 * sides - 1];
  STD_TORCH_CHECK(groups > 0 && k.n > 0 && k.n % groups == 0, "expected a multiple of ", groups, " kernels, got ", k.n);
  STD_TORCH_CHECK(k.c > 0 && s.c == groups * k.c, "expected ", groups, " groups of ", k.c, " channels, got ", s.c);
  Convolution g{s.n, s.c,       s.h,       s.w,        k.n,        k.n / groups, k.h,         k.w,    0,
                0,   stride[0], stride[1], padding[0], padding[1], dilation[0],  dilation[1], groups, k.c};
  STD_TORCH_CHECK(
      g.kh > 0 && g.kw > 0 && g.sh > 0 && g.sw > 0 && std::min({g.ph, g.pw, below, right}) >= 0 && g.dh > 0 && g.dw > 0,
      "kernel, stride and dilation must be positive, padding not negative");
  constexpr int64_t kFar = int64_t{1} << 31;  // from where offsets in memory may no longer fit
  STD_TORCH_CHECK(std::max({g.kh, g.kw, g.sh, g.sw, g.ph, g.pw, below, right, g.dh, g.dw}) < kFar,
                  "expected kernel, stride, padding and dilation below ", kFar);
  const int64_t rows = g.h + g.ph + below - g.dh * (g.kh - 1) - 1;
  const int64_t columns = g.w + g.pw + right - g.dw * (g.kw - 1) - 1;
  STD_TORCH_CHECK(rows >= 0 && columns >= 0, "the kernel is larger than the padded input");
  g.oh = rows / g.sh + 1;
  g.ow = columns / g.sw + 1;
  return g;
}

inline Convolution geometry(const Tensor& x, const Tensor& w, const std::vector<int64_t>& stride,
                            const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups) {
  STD_TORCH_CHECK(x.dim() == 4 && w.dim() == 4, "expected x (n, c, h, w) and w (o, c / groups, kh, kw)");
  STD_TORCH_CHECK(x.scalar_type() == w.scalar_type(), "expected x and w of one type");
  return geometry(sizes_of(x), sizes_of(w), stride, padding, dilation, groups);
}

inline Convolution depthwise_geometry(const Tensor& x, const Tensor& w, const std::vector<int64_t>& stride,
                                      const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(x.dim() == 4 && w.dim() == 4 && w.size(1) == 1, "expected x (n, c, h, w) and w (c * m, 1, kh, kw)");
  return geometry(x, w, stride, padding, dilation, x.size(1));
}

}  // namespace fastnets
