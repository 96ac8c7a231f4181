// A network's first convolution on a CPU: arguments, the cut into tasks, registration. The kernel is in the header.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "pointwise_conv2d.h"

namespace fastnets::stem {

template <typename T>
struct Problem {
  Convolution g;
  const T* x = nullptr;                    // without gaps
  bool in_planes = false;                  // else in channels_last
  pointwise::ProblemOf<float, T> product;  // its x is made row by row
};

}  // namespace fastnets::stem

#define FASTNETS_KERNELS "stem_conv2d_kernels.h"
#include "isa.h"
#define FASTNETS_BF16
#include "isa_avx512.h"

namespace fastnets {
namespace {

// Of x in either layout and float32 weights in panels, of the numbers below a kernel in the order of its rows and
// columns, as channels of `into` from `channel` on where that is given.
Tensor stem_conv2d(const Tensor& x, const Tensor& panels, int64_t out, const std::vector<int64_t>& kernel,
                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                   const std::optional<Tensor>& bias, const std::optional<std::string>& activation,
                   const std::optional<Tensor>& into, int64_t channel) {
  STD_TORCH_CHECK(kernel.size() == 2, "expected pairs");
  return pointwise::with_type(x, [&](auto type) {
    using T = decltype(type);
    STD_TORCH_CHECK(x.dim() == 4 && (is_dense(x, true) || is_dense(x, false)), "expected images without gaps");
    stem::Problem<T> p;
    p.g = geometry(sizes_of(x), {out, x.size(1), kernel[0], kernel[1]}, stride, padding, {1, 1}, 1);
    const Convolution& g = p.g;
    const Four size{g.n, out, g.oh, g.ow};
    const pointwise::Results<T> y(x, size, into, channel);
    p.x = data<T>(x), p.in_planes = !is_dense(x, true);
    p.product.w = pointwise::check_panels(panels, g.kh * g.kw * g.c, out);
    p.product.bias = pointwise::check_bias(bias, out), p.product.y = y.pixels;
    p.product.in = g.kh * g.kw * g.c, p.product.out = out, p.product.activation = parse_activation(activation);
    p.product.streams = pointwise::streams(size);
    const int64_t pixels = g.n * g.oh * g.ow;
    if (pixels * out == 0) return y.images;
    pointwise::run(g.n * g.oh, pixels * out * p.product.in,
                   [p, kernel = FASTNETS_FOR_THIS_CPU_AND(T, stem::forward)](int64_t begin, int64_t end) {
                     kernel(p, begin, end);
                   });
    return y.images;
  });
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) { m.impl("stem_conv2d", TORCH_BOX(&fastnets::stem_conv2d)); }
