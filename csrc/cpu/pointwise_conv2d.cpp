// Pointwise convolution on a CPU: arguments and registration. The kernel is in pointwise_conv2d_tile.h.
#include "pointwise_conv2d.h"

#include <optional>
#include <string>

#define FASTNETS_KERNELS "pointwise_conv2d_tile.h"
#include "isa.h"

namespace fastnets {
namespace {

// Of x in channels_last and weights in panels (see Problem), of which there are `out` results.
Tensor pointwise_conv2d(const Tensor& x, const Tensor& panels, int64_t out, const std::optional<Tensor>& bias,
                        const std::optional<Tensor>& residual, const std::optional<std::string>& activation) {
  using namespace pointwise;
  check_images(x);
  const Four s = sizes_of(x);
  const Tensor y = empty(x, {s.n, out, s.h, s.w}, true);
  check_panels(panels, s.c, out);
  Problem p;
  p.x = {data<float>(x), s.c}, p.y = {mutable_data<float>(y), out}, p.residual = check_residual(residual, y);
  p.w = data<float>(panels), p.bias = check_bias(bias, out);
  p.in = s.c, p.out = out, p.activation = parse_activation(activation);
  p.streams = streams(y);
  if (y.numel() == 0) return y;
  run(p, s.n * s.h * s.w, FASTNETS_FOR_THIS_CPU(pointwise::multiply_tasks));
  return y;
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) { m.impl("pointwise_conv2d", TORCH_BOX(&fastnets::pointwise_conv2d)); }
