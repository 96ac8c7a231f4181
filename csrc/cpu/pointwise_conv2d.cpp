// Pointwise convolution on a CPU: arguments and registration. The kernel is in pointwise_conv2d_tile.h.
#include "pointwise_conv2d.h"

#include <optional>
#include <string>

#define FASTNETS_KERNELS "pointwise_conv2d_tile.h"
#include "isa.h"
#define FASTNETS_BF16
#include "isa_avx512.h"
#define FASTNETS_VNNI
#include "isa_avx512.h"

namespace fastnets {
namespace {

using namespace pointwise;

using Maybe = std::optional<Tensor>;

// Its arguments, as those of the op below.
template <typename X, typename Y>
Tensor multiply(const Tensor& x, const Tensor& panels, int64_t out, const Maybe& bias, const Maybe& residual,
                const std::optional<Text>& activation, const std::vector<Tensor>& quantized, const Maybe& levels,
                const Maybe& into, int64_t channel) {
  ProblemOf<X, Y> p;
  const Four s = sizes_of(x), size{s.n, out, s.h, s.w};
  const Results<Y> y(x, size, into, channel);
  p.y = y.pixels, p.residual = check_residual<Y>(residual, size);
  p.w = check_panels<X>(panels, s.c, out), p.bias = check_bias(bias, out);
  p.in = kIsBytes<X> ? bytes_of(s.c) : s.c, p.out = out, p.activation = parse_activation(activation);
  p.streams = streams(size), p.levels = StoredLevels(levels);
  std::optional<BytesOf> bytes;
  if constexpr (kIsBytes<X>) {
    const Quantized of = check_quantized(quantized, 0, out);
    p.scales = of.scales;
    if (x.numel() > 0) p.x = bytes.emplace(x, of.levels, Quantize{FASTNETS_FOR_THIS_CPU(quantize_pixels)}).found;
  } else {
    p.x = check_slice<X>(x);
  }
  if (x.numel() > 0) run(p, s.n * s.h * s.w, FASTNETS_FOR_THIS_CPU_AND_BYTES(X, pointwise::multiply_tasks<X, Y>));
  return y.images;
}

// Of x in channels_last and weights in panels (see Problem), of which there are `out` results, as channels of `into`
// from `channel` on where that is given. Weights are of the type of x, or int8 with what check_quantized says and an x
// of float32 or bytes; with `levels` (see StoredLevels), results and residual are bytes.
Tensor pointwise_conv2d(const Tensor& x, const Tensor& panels, int64_t out, const Maybe& bias, const Maybe& residual,
                        const std::optional<Text>& activation, const std::vector<Tensor>& quantized,
                        const Maybe& levels, const Maybe& into, int64_t channel) {
  STD_TORCH_CHECK(x.dim() == 4, "expected images");
  return with_types(x, quantized, levels, activation, [&](auto multiplied, auto stored) {
    return multiply<decltype(multiplied), decltype(stored)>(x, panels, out, bias, residual, activation, quantized,
                                                            levels, into, channel);
  });
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) { m.impl("pointwise_conv2d", TORCH_BOX(&fastnets::pointwise_conv2d)); }
