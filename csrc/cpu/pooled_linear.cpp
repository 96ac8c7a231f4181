// The end of a classifier on a CPU, global average pooling and a linear layer: arguments, cut into tasks, registration.
#include <optional>

#include "pointwise_conv2d.h"

#define FASTNETS_KERNELS "pooled_linear_kernels.h"
#include "isa.h"
#define FASTNETS_BF16
#include "isa_avx512.h"

namespace fastnets {
namespace {

// Of x (n, c, h, w) in channels_last and weights in panels, of which there are `out` results: (n, out).
Tensor pooled_linear(const Tensor& x, const Tensor& panels, int64_t out, const std::optional<Tensor>& bias) {
  using namespace pointwise;
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    check_images<T>(x);
    const Four s = sizes_of(x);
    STD_TORCH_CHECK(s.h * s.w > 0, "expected images of at least one pixel");
    const StepScratch means(x, s.n * s.c);
    const Tensor y = empty_strided(x, {s.n, out}, {out, 1}, dtype_of(x));
    ProblemOf<T> p;
    p.x = {means.data<T>(), s.c}, p.y = {mutable_data<T>(y), out};
    p.w = check_panels<T>(panels, s.c, out), p.bias = check_bias(bias, out), p.in = s.c, p.out = out;
    if (y.numel() == 0) return y;
    run(FASTNETS_FOR_THIS_CPU(pooled::tasks)(s.n, s.c), x.numel(),
        [s, from = data<T>(x), to = means.data<T>(), kernel = FASTNETS_FOR_THIS_CPU_AND(T, pooled::means<T>)](
            int64_t begin, int64_t end) { kernel(from, s.h * s.w, s.c, to, begin, end); });
    run(p, s.n, FASTNETS_FOR_THIS_CPU_AND(T, pointwise::multiply_tasks<T, T>));
    return y;
  });
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) { m.impl("pooled_linear", TORCH_BOX(&fastnets::pooled_linear)); }
