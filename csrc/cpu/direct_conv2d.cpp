// A direct dense convolution on a CPU, and the maxima of windows of its results: arguments, the cut into tasks,
// registration. The kernels are in the header.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "pointwise_conv2d.h"
#include "pool2d.h"

namespace fastnets::direct {

template <typename X, typename T>
struct Problem {
  Convolution g;
  const T* x = nullptr;                // without gaps
  bool in_planes = false;              // else in channels_last
  Levels levels;                       // of x, where it is multiplied as bytes
  pointwise::ProblemOf<X, T> product;  // its x is made row by row
  pool::Problem<T> pool;               // where it has windows, the product's y is its x, made row by row too

  bool pools() const { return pool.y.data != nullptr; }
};
template <typename X, typename T>
using Kernel = void (*)(const Problem<X, T>&, int64_t begin, int64_t end);

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

// What is multiplied is X, float32, the type of the images, T, or bytes, of which `quantized` are levels and scales.
template <typename X, typename T>
Tensor convolve(const Tensor& x, const Tensor& panels, const Convolution& g, const Windows& windows,
                const std::optional<Tensor>& bias, const std::optional<Tensor>& residual, Activation activation,
                const Quantized& quantized, const Into& into, int64_t channel, direct::Kernel<X, T> kernel) {
  const Four size{g.n, g.o, windows ? windows->oh : g.oh, windows ? windows->ow : g.ow};
  const pointwise::Results<T> y(x, size, into, channel);
  direct::Problem<X, T> p{g, data<T>(x), !is_dense(x, true), quantized.levels, {}, {}};
  p.product.scales = quantized.scales, p.product.residual = pointwise::check_residual<T>(residual, size);
  p.product.in = g.kh * g.kw * g.c, p.product.out = g.o, p.product.activation = activation;
  p.product.w = pointwise::check_panels<X>(panels, p.product.in, g.o);
  p.product.bias = pointwise::check_bias(bias, g.o);
  if (windows)
    p.product.y.pixel = g.o, p.pool = {*windows, {nullptr, g.o}, y.pixels};
  else
    p.product.y = y.pixels, p.product.streams = pointwise::streams(size);
  if (size.n * size.c * size.h * size.w == 0) return y.images;
  pointwise::run(size.n * size.h * (windows ? 1 : p.product.panels()), g.n * g.oh * g.ow * g.o * p.product.in,
                 [p, kernel](int64_t begin, int64_t end) { kernel(p, begin, end); });
  return y.images;
}

// Of x in either layout and weights in panels, of the numbers below a kernel in the order of its rows and columns, as
// channels of `into` from `channel` on where that is given. The padding is that above, left, below and right. Weights
// are float32 or, for an even number of channels, of the type of x. Of the sizes of the results, windows_of makes the
// windows whose maxima are taken, if any.
template <typename F>
Tensor direct(const Tensor& x, const Tensor& panels, int64_t out, const Pair& kernel, const Pair& stride,
              const Pair& padding, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
              const std::optional<Text>& activation, const std::vector<Tensor>& quantized, const Into& into,
              int64_t channel, const F& windows_of) {
  STD_TORCH_CHECK(kernel.size() == 2, "expected pairs");
  return pointwise::with_type(x, [&](auto type) {
    using T = decltype(type);
    STD_TORCH_CHECK(x.dim() == 4 && (is_dense(x, true) || is_dense(x, false)), "expected images without gaps");
    const Convolution g = geometry(sizes_of(x), {out, x.size(1), kernel[0], kernel[1]}, stride, padding, {1, 1}, 1, 2);
    const Windows windows = windows_of(Four{g.n, g.o, g.oh, g.ow});
    const Activation kind = parse_activation(activation);
    const auto with = [&](auto kernel, const Quantized& in_bytes = {}) {
      return convolve(x, panels, g, windows, bias, residual, kind, in_bytes, into, channel, kernel);
    };
    if (!quantized.empty()) {
      STD_TORCH_CHECK((std::is_same_v<T, float>) && is_dense(x, true) && g.c % pointwise::kTogether<uint8_t> == 0,
                      "expected float32 images in channels_last for int8, with channels in fours");
      return with(FASTNETS_FOR_THIS_CPU_AND_BYTES(uint8_t, direct::forward_in_bytes),
                  check_quantized(quantized, 0, out));
    }
    if constexpr (!std::is_same_v<T, float>) {
      if (panels.scalar_type() == x.scalar_type()) {
        STD_TORCH_CHECK(g.c % pointwise::kTogether<T> == 0, "expected float32 weights for ", g.c, " channels");
        return with(FASTNETS_FOR_THIS_CPU_AND(T, direct::forward_as_it_is));
      }
    }
    return with(FASTNETS_FOR_THIS_CPU_AND(T, direct::forward));
  });
}

Tensor direct_conv2d(const Tensor& x, const Tensor& panels, int64_t out, const Pair& kernel, const Pair& stride,
                     const Pair& padding, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                     const std::optional<Text>& activation, const std::vector<Tensor>& quantized, const Into& into,
                     int64_t channel) {
  return direct(x, panels, out, kernel, stride, padding, bias, residual, activation, quantized, into, channel,
                [](const Four&) -> Windows { return {}; });
}

Tensor direct_max_pool2d(const Tensor& x, const Tensor& panels, int64_t out, const Pair& kernel, const Pair& stride,
                         const Pair& padding, const std::optional<Tensor>& bias, const std::optional<Text>& activation,
                         const Pair& pool_kernel, const Pair& pool_stride, const Pair& pool_padding, bool ceil_mode,
                         const Into& into, int64_t channel) {
  return direct(x, panels, out, kernel, stride, padding, bias, {}, activation, {}, into, channel,
                [&](const Four& size) -> Windows {
                  return pool::windows(size, pool_kernel, pool_stride, pool_padding, ceil_mode);
                });
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("direct_conv2d", TORCH_BOX(&fastnets::direct_conv2d));
  m.impl("direct_max_pool2d", TORCH_BOX(&fastnets::direct_max_pool2d));
}
