// Pointwise convolution on a CPU: arguments and registration. The kernel is in pointwise_conv2d_tile.h.
#include "pointwise_conv2d.h"

#include <optional>
#include <string>

#define FASTNETS_KERNELS "pointwise_conv2d_tile.h"
#include "isa.h"
#define FASTNETS_BF16
#include "isa_avx512.h"

namespace fastnets {
namespace {

// Of x in channels_last and weights in panels (see Problem), of which there are `out` results, as channels of `into`
// from `channel` on where that is given.
Tensor pointwise_conv2d(const Tensor& x, const Tensor& panels, int64_t out, const std::optional<Tensor>& bias,
                        const std::optional<Tensor>& residual, const std::optional<Text>& activation,
                        const std::optional<Tensor>& into, int64_t channel) {
  using namespace pointwise;
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    ProblemOf<T> p;
    p.x = check_slice<T>(x);
    const Four s = sizes_of(x), size{s.n, out, s.h, s.w};
    const Results<T> y(x, size, into, channel);
    p.y = y.pixels, p.residual = check_residual<T>(residual, size);
    p.w = check_panels<T>(panels, s.c, out), p.bias = check_bias(bias, out);
    p.in = s.c, p.out = out, p.activation = parse_activation(activation);
    p.streams = streams(size);
    if (x.numel() > 0) run(p, s.n * s.h * s.w, FASTNETS_FOR_THIS_CPU_AND(T, pointwise::multiply_tasks));
    return y.images;
  });
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) { m.impl("pointwise_conv2d", TORCH_BOX(&fastnets::pointwise_conv2d)); }
