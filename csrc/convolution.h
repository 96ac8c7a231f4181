// What the CPU and the CUDA side of a convolution share: geometry, layouts, allocation, names of activations.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace fastnets {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

enum class Activation : int32_t { kNone, kRelu, kRelu6, kLeakyRelu, kSilu, kHardswish, kSigmoid };

inline Activation parse_activation(const std::optional<std::string>& name) {
  constexpr const char* names[] = {"", "relu", "relu6", "leaky_relu", "silu", "hardswish", "sigmoid"};
  if (!name) return Activation::kNone;
  for (int32_t i = 1; i < 7; ++i)
    if (*name == names[i]) return static_cast<Activation>(i);
  STD_TORCH_CHECK(false, "unknown activation '", *name, "'");
}

// Sizes or strides of a tensor of four dimensions.
struct Four {
  int64_t n, c, h, w;
};

inline Four sizes_of(const Tensor& t) {
  const auto s = t.sizes();
  return {s[0], s[1], s[2], s[3]};
}

inline Four strides_of(const Tensor& t) {
  const auto s = t.strides();
  return {s[0], s[1], s[2], s[3]};
}

// Geometry of a convolution: x (n, c, h, w) with w (o, 1, kh, kw) gives y (n, o, oh, ow); o = c * m.
struct Convolution {
  int64_t n, c, h, w;
  int64_t o, m, kh, kw;
  int64_t oh, ow;
  int64_t sh, sw, ph, pw, dh, dw;
};

inline Convolution depthwise_geometry(const Tensor& x, const Tensor& w, const std::vector<int64_t>& stride,
                                      const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(x.dim() == 4 && w.dim() == 4 && w.size(1) == 1, "expected x (n, c, h, w) and w (c * m, 1, kh, kw)");
  STD_TORCH_CHECK(x.scalar_type() == w.scalar_type(), "expected x and w of one type");
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, "expected pairs");
  const Four s = sizes_of(x), k = sizes_of(w);
  STD_TORCH_CHECK(s.c > 0 && k.n > 0 && k.n % s.c == 0, "expected a multiple of ", s.c, " kernels, got ", k.n);
  Convolution g{s.n, s.c, s.h,       s.w,       k.n,        k.n / s.c,  k.h,         k.w,
                0,   0,   stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1]};
  STD_TORCH_CHECK(g.kh > 0 && g.kw > 0 && g.sh > 0 && g.sw > 0 && g.ph >= 0 && g.pw >= 0 && g.dh > 0 && g.dw > 0,
                  "kernel, stride and dilation must be positive, padding not negative");
  const int64_t rows = g.h + 2 * g.ph - g.dh * (g.kh - 1) - 1, columns = g.w + 2 * g.pw - g.dw * (g.kw - 1) - 1;
  STD_TORCH_CHECK(rows >= 0 && columns >= 0, "the kernel is larger than the padded input");
  g.oh = rows / g.sh + 1;
  g.ow = columns / g.sw + 1;
  return g;
}

// PyTorch's rule (as in fastnets/ops/_convolution.py): channels_last where the strides grow in the order c, w, h, n.
inline bool is_channels_last(const Tensor& x) {
  const Four n = sizes_of(x), s = strides_of(x);
  const bool nested = 0 < s.c && s.c * n.c <= s.w && s.w * n.w <= s.h && s.h * n.h <= s.n && n.n * n.c * n.h * n.w > 0;
  return nested && s.h * n.h != s.c;
}

inline Tensor empty(const Tensor& like, const Four& size, bool channels_last) {
  const int64_t sizes[] = {size.n, size.c, size.h, size.w};
  const auto at_least_1 = [](int64_t v) { return v > 1 ? v : 1; };
  const int64_t c = at_least_1(size.c), h = at_least_1(size.h), w = at_least_1(size.w);
  const int64_t contiguous[] = {c * h * w, h * w, w, 1}, last[] = {c * h * w, 1, w * c, c};
  int32_t dtype, device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(4, sizes, channels_last ? last : contiguous, dtype,
                                                         device_type, like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor empty(const Tensor& like, int64_t length) {
  const int64_t stride = 1;
  int32_t dtype, device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(1, &length, &stride, dtype, device_type, like.get_device_index(), &handle));
  return Tensor(handle);
}

}  // namespace fastnets
