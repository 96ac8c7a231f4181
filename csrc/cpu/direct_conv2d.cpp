// A direct dense convolution on a CPU: arguments, the cut into tasks, registration. The kernel is in the header.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "pointwise_conv2d.h"

namespace fastnets::direct {

template <typename X, typename T>
struct Problem {
  Convolution g;
  const T* x = nullptr;                // without gaps
  bool in_planes = false;              // else in channels_last
  pointwise::ProblemOf<X, T> product;  // its x is made row by row
};
template <typename X, typename T>
using Kernel = void (*)(const Problem<X, T>&, int64_t begin, int64_t end);

}  // namespace fastnets::direct

#define FASTNETS_KERNELS "direct_conv2d_kernels.h"
#include "isa.h"
#define FASTNETS_BF16
#include "isa_avx512.h"

namespace fastnets {
namespace {

// What is multiplied is X, float32 or the type of the images, T.
template <typename X, typename T>
Tensor convolve(const Tensor& x, const Tensor& panels, const Convolution& g, const std::optional<Tensor>& bias,
                Activation activation, const std::optional<Tensor>& into, int64_t channel,
                direct::Kernel<X, T> kernel) {
  const Four size{g.n, g.o, g.oh, g.ow};
  const pointwise::Results<T> y(x, size, into, channel);
  direct::Problem<X, T> p{g, data<T>(x), !is_dense(x, true), {}};
  p.product.in = g.kh * g.kw * g.c, p.product.out = g.o, p.product.activation = activation;
  p.product.w = pointwise::check_panels<X>(panels, p.product.in, g.o);
  p.product.bias = pointwise::check_bias(bias, g.o), p.product.y = y.pixels;
  p.product.streams = pointwise::streams(size);
  const int64_t results = g.n * g.oh * g.ow * g.o;
  if (results == 0) return y.images;
  pointwise::run(g.n * g.oh * p.product.panels(), results * p.product.in,
                 [p, kernel](int64_t begin, int64_t end) { kernel(p, begin, end); });
  return y.images;
}

// Of x in either layout and weights in panels, of the numbers below a kernel in the order of its rows and columns, as
// channels of `into` from `channel` on where that is given. Weights are float32 or, for an even number of channels, of
// the type of x.
Tensor direct_conv2d(const Tensor& x, const Tensor& panels, int64_t out, const std::vector<int64_t>& kernel,
                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                     const std::optional<Tensor>& bias, const std::optional<std::string>& activation,
                     const std::optional<Tensor>& into, int64_t channel) {
  STD_TORCH_CHECK(kernel.size() == 2, "expected pairs");
  return pointwise::with_type(x, [&](auto type) {
    using T = decltype(type);
    STD_TORCH_CHECK(x.dim() == 4 && (is_dense(x, true) || is_dense(x, false)), "expected images without gaps");
    const Convolution g = geometry(sizes_of(x), {out, x.size(1), kernel[0], kernel[1]}, stride, padding, {1, 1}, 1);
    const Activation kind = parse_activation(activation);
    if constexpr (!std::is_same_v<T, float>) {
      if (panels.scalar_type() == x.scalar_type()) {
        STD_TORCH_CHECK(g.c % pointwise::kTogether<T> == 0, "expected float32 weights for ", g.c, " channels");
        return convolve<T, T>(x, panels, g, bias, kind, into, channel,
                              FASTNETS_FOR_THIS_CPU_AND(T, direct::forward_as_it_is));
      }
    }
    return convolve<float, T>(x, panels, g, bias, kind, into, channel, FASTNETS_FOR_THIS_CPU_AND(T, direct::forward));
  });
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) { m.impl("direct_conv2d", TORCH_BOX(&fastnets::direct_conv2d)); }
