// The end of a classifier on a CPU, global average pooling and a linear layer: arguments, cut into tasks, registration.
#include <optional>

#include "pointwise_conv2d.h"

#define FASTNETS_KERNELS "pooled_linear_kernels.h"
#include "isa.h"
#define FASTNETS_BF16
#include "isa_avx512.h"
#define FASTNETS_VNNI
#include "isa_avx512.h"

namespace fastnets {
namespace {

using namespace pointwise;

// Of images of T, whose means are multiplied as X.
template <typename X, typename T>
Tensor multiply(const Tensor& x, const Tensor& panels, int64_t out, const std::optional<Tensor>& bias,
                const std::vector<Tensor>& quantized) {
  check_images<T>(x);
  const Four s = sizes_of(x);
  STD_TORCH_CHECK(s.h * s.w > 0, "expected images of at least one pixel");
  const int64_t row = kIsBytes<X> ? bytes_of(s.c) : s.c;
  const StepScratch means(x, s.n * s.c);
  std::optional<StepScratch> bytes;
  const Tensor y = empty_strided(x, {s.n, out}, {out, 1}, dtype_of(x));
  ProblemOf<X> p;
  p.y = {mutable_data<T>(y), out};
  p.w = check_panels<X>(panels, s.c, out), p.bias = check_bias(bias, out), p.in = row, p.out = out;
  Quantized of;
  if constexpr (kIsBytes<X>) of = check_quantized(quantized, 0, out), p.scales = of.scales;
  if (y.numel() == 0) return y;
  T* const to = means.data<T>();
  pointwise::run(FASTNETS_FOR_THIS_CPU(pooled::tasks)(s.n, s.c), x.numel(),
                 [s, to, from = data<T>(x), kernel = FASTNETS_FOR_THIS_CPU_AND(T, pooled::means<T>)](
                     int64_t begin, int64_t end) { kernel(from, s.h * s.w, s.c, to, begin, end); });
  if constexpr (kIsBytes<X>) {
    X* const levels = bytes.emplace(x, s.n * row, aoti_torch_dtype_uint8()).template data<X>();
    pointwise::run(s.n, s.n * s.c, [=, kernel = FASTNETS_FOR_THIS_CPU(quantize_pixels)](int64_t begin, int64_t end) {
      kernel({to, s.c}, s.c, of.levels, levels, row, begin, end);
    });
    p.x = {levels, row};
  } else {
    p.x = {to, row};
  }
  run(p, s.n, FASTNETS_FOR_THIS_CPU_AND_BYTES(X, pointwise::multiply_tasks<X, T>));
  return y;
}

// Of x (n, c, h, w) in channels_last and weights in panels, of which there are `out` results: (n, out). Weights are of
// the type of x, or int8 with what check_quantized says of them and of the means.
Tensor pooled_linear(const Tensor& x, const Tensor& panels, int64_t out, const std::optional<Tensor>& bias,
                     const std::vector<Tensor>& quantized) {
  if (!quantized.empty()) return multiply<uint8_t, float>(x, panels, out, bias, quantized);
  return with_type(
      x, [&](auto type) { return multiply<decltype(type), decltype(type)>(x, panels, out, bias, quantized); });
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) { m.impl("pooled_linear", TORCH_BOX(&fastnets::pooled_linear)); }
