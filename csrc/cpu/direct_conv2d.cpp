// A direct dense convolution on a CPU, and the maxima of windows of its results: arguments, the cut into tasks,
// registration. The kernels are in the header.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "pointwise_conv2d.h"
#include "pool2d.h"

namespace fastnets::direct {

// Of x, T, what is multiplied is X; results are Y.
template <typename X, typename T, typename Y = T>
struct Problem {
  Convolution g;
  const T* x = nullptr;                // without gaps
  bool in_planes = false;              // else in channels_last
  X zero{};                            // what padding is
  pointwise::ProblemOf<X, Y> product;  // its x is made row by row
  pool::Problem<Y> pool;               // where it has windows, the product's y is its x, made row by row too

  bool pools() const { return pool.y.data != nullptr; }
};
template <typename X, typename T, typename Y>
using Kernel = void (*)(const Problem<X, T, Y>&, int64_t begin, int64_t end);

}  // namespace fastnets::direct

#define FASTNETS_KERNELS "direct_conv2d_kernels.h"
#include "isa.h"
#define FASTNETS_BF16
#include "isa_avx512.h"
#define FASTNETS_VNNI
#include "isa_avx512.h"

namespace fastnets {
namespace {

using pool::Into;
using pool::Pair;
using Windows = std::optional<Convolution>;

// What both ops are told of.
struct Arguments {
  const Tensor& x;
  const Tensor& panels;
  Convolution g;
  Windows windows;
  const std::optional<Tensor>& bias;
  const std::optional<Tensor>& residual;
  Activation activation;
  const Into& into;
  int64_t channel;
};

// Results of a problem whose x, and all that is only there in int8, is known.
template <typename X, typename T, typename Y>
Tensor convolve(const Arguments& a, direct::Problem<X, T, Y> p, direct::Kernel<X, T, Y> kernel) {
  const Convolution& g = p.g = a.g;
  const Four size{g.n, g.o, a.windows ? a.windows->oh : g.oh, a.windows ? a.windows->ow : g.ow};
  const pointwise::Results<Y> y(a.x, size, a.into, a.channel);
  p.product.in = g.kh * g.kw * g.c, p.product.out = g.o, p.product.activation = a.activation;
  p.product.w = pointwise::check_panels<X>(a.panels, p.product.in, g.o);
  p.product.bias = pointwise::check_bias(a.bias, g.o);
  p.product.residual = pointwise::check_residual<Y>(a.residual, size);
  if (a.windows)
    p.product.y.pixel = g.o, p.pool = {*a.windows, {nullptr, g.o}, y.pixels};
  else
    p.product.y = y.pixels, p.product.streams = pointwise::streams(size);
  if (size.n * size.c * size.h * size.w == 0) return y.images;
  pointwise::run(size.n * size.h * (a.windows ? 1 : p.product.panels()), g.n * g.oh * g.ow * g.o * p.product.in,
                 [p, kernel](int64_t begin, int64_t end) { kernel(p, begin, end); });
  return y.images;
}

// Of x in either layout and weights in panels, of the numbers below a kernel in the order of its rows and columns, as
// channels of `into` from `channel` on where that is given. The padding is that above, left, below and right. Weights
// are float32 or, for an even number of channels, of the type of x.
Tensor direct(const Arguments& a) {
  return pointwise::with_type(a.x, [&](auto type) {
    using T = decltype(type);
    if constexpr (!std::is_same_v<T, float>) {
      if (a.panels.scalar_type() == a.x.scalar_type()) {
        STD_TORCH_CHECK(a.g.c % pointwise::kTogether<T> == 0, "expected float32 weights for ", a.g.c, " channels");
        return convolve<T, T, T>(a, {{}, data<T>(a.x), !is_dense(a.x, true), {}, {}, {}},
                                 FASTNETS_FOR_THIS_CPU_AND(T, direct::forward_as_it_is<T>));
      }
    }
    return convolve<float, T, T>(a, {{}, data<T>(a.x), !is_dense(a.x, true), {}, {}, {}},
                                 FASTNETS_FOR_THIS_CPU_AND(T, direct::forward<T>));
  });
}

// The same of x in float32, or of bytes in channels_last, with weights in int8, whose channels are in fours; Y are
// results.
template <typename Y>
Tensor direct_in_bytes(Arguments a, const std::vector<Tensor>& quantized, const std::optional<Tensor>& levels) {
  using X = uint8_t;
  const bool is_float = a.x.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(is_float || (a.x.scalar_type() == ScalarType::Byte && is_dense(a.x, true)),
                  "expected images in float32, or bytes in channels_last");
  const Quantized of = check_quantized(quantized, 0, a.g.o);
  direct::Problem<X, X, Y> p;
  p.zero = static_cast<X>(of.levels.zero), p.product.scales = of.scales, p.product.levels = StoredLevels(levels);
  std::optional<pointwise::BytesOf> bytes;
  const pointwise::Quantize kernels{FASTNETS_FOR_THIS_CPU(quantize_pixels), FASTNETS_FOR_THIS_CPU(quantize_planes)};
  if (a.x.numel() > 0) p.x = bytes.emplace(a.x, of.levels, kernels).found.data;
  a.g.c = bytes_of(a.g.c);
  return convolve<X, X, Y>(a, p, FASTNETS_FOR_THIS_CPU_AND_BYTES(X, direct::forward_in_bytes<X, Y>));
}

Convolution check(const Tensor& x, int64_t out, const Pair& kernel, const Pair& stride, const Pair& padding) {
  STD_TORCH_CHECK(kernel.size() == 2, "expected pairs");
  STD_TORCH_CHECK(x.dim() == 4 && (is_dense(x, true) || is_dense(x, false)), "expected images without gaps");
  return geometry(sizes_of(x), {out, x.size(1), kernel[0], kernel[1]}, stride, padding, {1, 1}, 1, 2);
}

Tensor direct_conv2d(const Tensor& x, const Tensor& panels, int64_t out, const Pair& kernel, const Pair& stride,
                     const Pair& padding, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                     const std::optional<Text>& activation, const std::vector<Tensor>& quantized,
                     const std::optional<Tensor>& levels, const Into& into, int64_t channel) {
  const Arguments a{x,      panels,   check(x, out, kernel, stride, padding), {},
                    bias,   residual, parse_activation(activation),           into,
                    channel};
  if (!quantized.empty())
    return pointwise::with_stored(levels, activation,
                                  [&](auto y) { return direct_in_bytes<decltype(y)>(a, quantized, levels); });
  STD_TORCH_CHECK(!levels, "expected no levels of results but in int8");
  return direct(a);
}

Tensor direct_max_pool2d(const Tensor& x, const Tensor& panels, int64_t out, const Pair& kernel, const Pair& stride,
                         const Pair& padding, const std::optional<Tensor>& bias, const std::optional<Text>& activation,
                         const Pair& pool_kernel, const Pair& pool_stride, const Pair& pool_padding, bool ceil_mode,
                         const Into& into, int64_t channel) {
  const Convolution g = check(x, out, kernel, stride, padding);
  const Windows windows = pool::windows({g.n, g.o, g.oh, g.ow}, pool_kernel, pool_stride, pool_padding, ceil_mode);
  return direct({x, panels, g, windows, bias, {}, parse_activation(activation), into, channel});
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("direct_conv2d", TORCH_BOX(&fastnets::direct_conv2d));
  m.impl("direct_max_pool2d", TORCH_BOX(&fastnets::direct_max_pool2d));
}
