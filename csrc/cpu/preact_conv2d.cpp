// A pointwise convolution behind its BatchNorm and ReLU, on a CPU: arguments and registration. The kernel is in the
// header.
#include "preact_conv2d.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#define FASTNETS_KERNELS "preact_conv2d_kernels.h"
#include "isa.h"
#define FASTNETS_BF16
#include "isa_avx512.h"

namespace fastnets {
namespace {

// Sets the parts of x and its size, all their channels together.
template <typename T>
void take(const std::vector<Tensor>& xs, preact::Problem<T>& p) {
  for (const Tensor& x : xs) {
    pointwise::check_images<T>(x);
    const Four s = sizes_of(x);
    if (p.parts.empty()) p.size = {s.n, 0, s.h, s.w};
    STD_TORCH_CHECK(s.n == p.size.n && s.h == p.size.h && s.w == p.size.w, "expected images of one size");
    p.parts.push_back({data<T>(x), s.c});
    p.size.c += s.c;
  }
}

// Of the images together, with weights in panels, of which there are `out` results; `norm` is as in Problem, `into` and
// `channel` as in pointwise_conv2d.
Tensor preact_conv2d(const Tensor& norm, const std::vector<Tensor>& xs, int64_t pool, const Tensor& panels, int64_t out,
                     const std::optional<Tensor>& bias, const std::optional<Text>& activation,
                     const std::optional<Tensor>& into, int64_t channel) {
  STD_TORCH_CHECK(!xs.empty(), "expected images");
  return pointwise::with_type(xs[0], [&](auto type) {
    using T = decltype(type);
    preact::Problem<T> p;
    take(xs, p);
    const Four& s = p.size;
    STD_TORCH_CHECK(0 < pool && pool <= s.h && pool <= s.w, "expected images no smaller than what is pooled");
    STD_TORCH_CHECK(norm.is_contiguous() && norm.scalar_type() == ScalarType::Float &&
                        norm.numel() == 2 * (s.c + pointwise::kLanes),
                    "expected float32 scales and shifts of ", s.c, " channels");
    const Four size{s.n, out, s.h / pool, s.w / pool};
    const pointwise::Results<T> y(xs[0], size, into, channel);
    p.pool = pool, p.norm = data<float>(norm);
    p.product.w = pointwise::check_panels<T>(panels, s.c, out), p.product.bias = pointwise::check_bias(bias, out);
    p.product.y = y.pixels, p.product.in = s.c, p.product.out = out;
    p.product.activation = parse_activation(activation), p.product.streams = pointwise::streams(size);
    const int64_t work = size.n * size.c * size.h * size.w * s.c;
    if (work == 0) return y.images;
    p.tasks = pointwise::made_blocks(p.product, size.n * size.h * size.w);
    const int64_t tasks = p.tasks.count();
    pointwise::run(tasks, work,
                   [p = std::move(p), kernel = FASTNETS_FOR_THIS_CPU_AND(T, preact::forward<T>)](
                       int64_t begin, int64_t end) { kernel(p, begin, end); });
    return y.images;
  });
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) { m.impl("preact_conv2d", TORCH_BOX(&fastnets::preact_conv2d)); }
