// Pointwise convolution on a CPU: arguments and registration. The kernel is in pointwise_conv2d_tile.h.
#include "pointwise_conv2d.h"

#include <algorithm>
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

// Of x in channels_last and weights in panels (see Problem), of which there are `out` results, as channels of `into`
// from `channel` on where that is given. Weights are of the type of x, or int8 with what check_quantized says.
template <typename X>
Tensor multiply(const Tensor& x, const Tensor& panels, int64_t out, const std::optional<Tensor>& bias,
                const std::optional<Tensor>& residual, const std::optional<Text>& activation,
                const std::vector<Tensor>& quantized, const std::optional<Tensor>& into, int64_t channel) {
  using T = Number<X>;
  ProblemOf<X> p;
  Quantized levels;
  if constexpr (kIsBytes<X>) levels = check_quantized(quantized, 0, out);
  const Four s = sizes_of(x), size{s.n, out, s.h, s.w};
  const Results<T> y(x, size, into, channel);
  p.y = y.pixels, p.residual = check_residual<T>(residual, size);
  p.w = check_panels<X>(panels, s.c, out), p.bias = check_bias(bias, out), p.scales = levels.scales;
  p.in = kIsBytes<X> ? bytes_of(s.c) : s.c, p.out = out, p.activation = parse_activation(activation);
  p.streams = streams(size);
  if (x.numel() == 0) return y.images;
  std::optional<BytesOf> bytes;
  if constexpr (kIsBytes<X>)
    p.x = bytes.emplace(x, levels.levels, FASTNETS_FOR_THIS_CPU(quantize_pixels)).pixels;
  else
    p.x = check_slice<X>(x);
  run(p, s.n * s.h * s.w, FASTNETS_FOR_THIS_CPU_AND_BYTES(X, pointwise::multiply_tasks));
  return y.images;
}

Tensor pointwise_conv2d(const Tensor& x, const Tensor& panels, int64_t out, const std::optional<Tensor>& bias,
                        const std::optional<Tensor>& residual, const std::optional<Text>& activation,
                        const std::vector<Tensor>& quantized, const std::optional<Tensor>& into, int64_t channel) {
  STD_TORCH_CHECK(x.dim() == 4, "expected images");
  if (!quantized.empty())
    return multiply<uint8_t>(x, panels, out, bias, residual, activation, quantized, into, channel);
  return with_type(x, [&](auto type) {
    return multiply<decltype(type)>(x, panels, out, bias, residual, activation, quantized, into, channel);
  });
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) { m.impl("pointwise_conv2d", TORCH_BOX(&fastnets::pointwise_conv2d)); }
