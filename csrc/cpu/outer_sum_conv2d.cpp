// A pointwise convolution of strips of an image, added up all over it, on a CPU: arguments and registration. The kernel
// is in the header.
#include "outer_sum_conv2d.h"

#include <optional>

#define FASTNETS_KERNELS "outer_sum_conv2d_kernels.h"
#include "isa.h"
#define FASTNETS_BF16
#include "isa_avx512.h"

namespace fastnets {
namespace {

// Of relu(rows + columns), (n, c, h, 1) and (n, c, 1, w), with weights in panels, of which there are `out` results;
// `factor`, images of these, is multiplied by them. `into` and `channel` are as in pointwise_conv2d.
Tensor outer_sum_conv2d(const Tensor& rows, const Tensor& columns, const Tensor& panels, int64_t out,
                        const std::optional<Tensor>& bias, const std::optional<Text>& activation,
                        const std::optional<Tensor>& factor, const std::optional<Tensor>& into, int64_t channel) {
  STD_TORCH_CHECK(rows.dim() == 4 && columns.dim() == 4, "expected images");
  return pointwise::with_type(rows, [&](auto type) {
    using T = decltype(type);
    pointwise::check_images<T>(rows), pointwise::check_images<T>(columns);
    const Four r = sizes_of(rows), c = sizes_of(columns), size{r.n, out, r.h, c.w};
    STD_TORCH_CHECK(r.n == c.n && r.c == c.c && r.w == 1 && c.h == 1,
                    "expected rows (n, c, h, 1), columns (n, c, 1, w)");
    packed::check_residual(factor, size, pointwise::kType<T>);
    const pointwise::Results<T> y(rows, size, into, channel);
    outer_sum::Problem<T> p;
    p.rows = data<T>(rows), p.columns = data<T>(columns), p.height = r.h, p.width = c.w;
    p.factor = factor ? data<T>(*factor) : nullptr;
    p.product.w = pointwise::check_panels<T>(panels, r.c, out), p.product.bias = pointwise::check_bias(bias, out);
    p.product.y = y.pixels, p.product.in = r.c, p.product.out = out;
    p.product.activation = parse_activation(activation), p.product.streams = !factor && pointwise::streams(size);
    const int64_t pixels = size.n * size.h * size.w;
    if (pixels == 0) return y.images;
    p.tasks = pointwise::made_blocks(p.product, pixels);
    pointwise::run(p.tasks.count(), pixels * r.c * out,
                   [p, kernel = FASTNETS_FOR_THIS_CPU_AND(T, outer_sum::forward<T>)](int64_t begin, int64_t end) {
                     kernel(p, begin, end);
                   });
    return y.images;
  });
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) { m.impl("outer_sum_conv2d", TORCH_BOX(&fastnets::outer_sum_conv2d)); }
