// A pointwise convolution behind its BatchNorm and ReLU, on a CPU: arguments and registration. The kernel is in the
// header.
#include "preact_conv2d.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#define FASTNETS_KERNELS "preact_conv2d_kernels.h"
#include "isa.h"

namespace fastnets {
namespace {

// How far the pixels of x lie apart: all its channels, or more where it is a slice of an image's.
int64_t pixel_step(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && x.scalar_type() == ScalarType::Float, "expected float32 images");
  const Four s = sizes_of(x), t = strides_of(x);
  const int64_t step = s.w > 1 ? t.w : s.h > 1 ? t.h : s.n > 1 ? t.n : s.c;
  STD_TORCH_CHECK(
      (s.c == 1 || t.c == 1) && step >= s.c && (s.h == 1 || t.h == s.w * step) && (s.n == 1 || t.n == s.h * s.w * step),
      "expected images in channels_last, or some of their channels");
  return step;
}

// Of x and weights in panels, of which there are `out` results; `norm` is as in Problem.
Tensor preact_conv2d(const Tensor& x, const Tensor& norm, int64_t pool, const Tensor& panels, int64_t out,
                     const std::optional<Tensor>& bias, const std::optional<std::string>& activation) {
  preact::Problem p;
  p.pixel = pixel_step(x), p.size = sizes_of(x), p.pool = pool;
  STD_TORCH_CHECK(0 < pool && pool <= p.size.h && pool <= p.size.w, "expected images no smaller than what is pooled");
  pointwise::check_panels(panels, p.size.c, out);
  p.product.in = p.size.c, p.product.out = out;
  STD_TORCH_CHECK(
      norm.is_contiguous() && norm.scalar_type() == ScalarType::Float && norm.numel() == 2 * p.padded_channels(),
      "expected float32 scales and shifts of ", p.padded_channels(), " channels");
  const Tensor y = empty(x, {p.size.n, out, p.size.h / pool, p.size.w / pool}, true);
  p.x = data<float>(x), p.norm = data<float>(norm);
  p.product.w = data<float>(panels), p.product.bias = pointwise::check_bias(bias, out);
  p.product.y = {mutable_data<float>(y), out};
  p.product.activation = parse_activation(activation), p.product.streams = pointwise::streams(y);
  if (y.numel() == 0) return y;
  p.cut();
  pointwise::run(
      p.tasks.count(), y.numel() * p.size.c,
      [&, kernel = FASTNETS_FOR_THIS_CPU(preact::forward)](int64_t begin, int64_t end) { kernel(p, begin, end); });
  return y;
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) { m.impl("preact_conv2d", TORCH_BOX(&fastnets::preact_conv2d)); }
