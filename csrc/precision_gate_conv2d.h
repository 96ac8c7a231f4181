// What the CPU and the CUDA side of precision_gate_conv2d share: geometry and checks.
#pragma once

#include <optional>
#include <vector>

#include "tensor.h"

namespace fastnets::gate {

// x (n, c, h, w) with w (o, c / groups, kh, kw) gives y (n, o, oh, ow).
struct Convolution {
  int64_t n, c, h, w;
  int64_t o, kh, kw, groups;
  int64_t sh, sw, ph, pw, dh, dw;
  int64_t oh, ow, taps, group_in, group_out;  // channels of a group
};

// Bits of a magnitude. The input's fall into a high and a low part.
struct Bits {
  int64_t high, low, weight;
  int32_t levels, weight_levels;  // the largest magnitudes
};

using Ints = std::vector<int64_t>;
using MaybeTensor = std::optional<Tensor>;

inline Convolution geometry(const Tensor& x, const Tensor& w, const Ints& stride, const Ints& padding,
                            const Ints& dilation, int64_t groups) {
  STD_TORCH_CHECK(x.dim() == 4 && w.dim() == 4, "expected x (n, c, h, w) and w (o, c / groups, kh, kw)");
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, "expected pairs");
  const Four s = sizes_of(x), k = sizes_of(w);
  STD_TORCH_CHECK(groups > 0 && k.n > 0 && k.c > 0 && k.n % groups == 0 && s.c == k.c * groups, "expected ", k.c,
                  " channels in each of ", groups, " groups");
  Convolution g{s.n,        s.c,        s.h,         s.w,         k.n, k.h, k.w,       groups, stride[0],   stride[1],
                padding[0], padding[1], dilation[0], dilation[1], 0,   0,   k.h * k.w, k.c,    k.n / groups};
  STD_TORCH_CHECK(g.kh > 0 && g.kw > 0 && g.sh > 0 && g.sw > 0 && g.ph >= 0 && g.pw >= 0 && g.dh > 0 && g.dw > 0,
                  "kernel, stride and dilation must be positive, padding not negative");
  const int64_t rows = g.h + 2 * g.ph - g.dh * (g.kh - 1) - 1, columns = g.w + 2 * g.pw - g.dw * (g.kw - 1) - 1;
  STD_TORCH_CHECK(rows >= 0 && columns >= 0, "the kernel is larger than the padded input");
  g.oh = rows / g.sh + 1;
  g.ow = columns / g.sw + 1;
  return g;
}

inline Bits bits(int64_t activation, int64_t high, int64_t weight) {
  STD_TORCH_CHECK(1 <= high && high < activation && activation <= 8 && 1 <= weight && weight <= 8,
                  "expected 1 <= high_bits < activation_bits <= 8 and 1 <= weight_bits <= 8");
  return {high, activation - high, weight, (1 << activation) - 1, (1 << weight) - 1};
}

// Whether t, which may be missing, has `count` numbers of the type of x, on its device.
inline void check_numbers(const Tensor& x, const Tensor& t, int64_t count, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type() && t.device() == x.device() && t.numel() == count, "expected ",
                  name, " of ", count, " numbers of the input's type, on its device");
}

inline void check(const Tensor& x, const Tensor& w, const Tensor& threshold, const MaybeTensor& bias,
                  const MaybeTensor& scale, const Convolution& g, const Bits& b) {
  check_numbers(x, w, w.numel(), "weight");
  check_numbers(x, threshold, g.o, "threshold");
  STD_TORCH_CHECK(threshold.dim() == 1, "expected a threshold of one dimension");
  if (bias) check_numbers(x, *bias, g.o, "bias");
  STD_TORCH_CHECK(!bias || bias->dim() == 1, "expected a bias of one dimension");
  if (scale) check_numbers(x, *scale, 1, "scale");
  const int64_t terms = g.group_in * g.taps;
  STD_TORCH_CHECK(terms < (int64_t{1} << (31 - b.high - b.low - b.weight)), "sums may pass 32 bits");
}

}  // namespace fastnets::gate
