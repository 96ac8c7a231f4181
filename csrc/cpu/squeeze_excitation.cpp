// Squeeze and excitation on a CPU: arguments, cut into tasks, registration.
#include "squeeze_excitation.h"

#include <optional>

#define FASTNETS_KERNELS "squeeze_excitation_kernels.h"
#include "isa.h"
#define FASTNETS_BF16
#include "isa_avx512.h"

namespace fastnets {
namespace {

using namespace pointwise;

// The numbers that scales are made of, [image][channel].
template <typename T>
void excite(squeeze::Gate<T> gate, const Tensor& x, T* scales) {
  const Four s = sizes_of(x);
  const StepScratch means(x, s.n * s.c), squeezed(x, s.n * gate.squeeze.out);
  gate.squeeze.x = {means.data<T>(), s.c}, gate.squeeze.y = {squeezed.data<T>(), gate.squeeze.out};
  gate.excite.x = {squeezed.data<T>(), gate.squeeze.out}, gate.excite.y = {scales, s.c};
  run(FASTNETS_FOR_THIS_CPU(pooled::tasks)(s.n, s.c), x.numel(),
      [s, from = data<T>(x), to = means.data<T>(), kernel = FASTNETS_FOR_THIS_CPU_AND(T, pooled::means<T>)](
          int64_t begin, int64_t end) { kernel(from, s.h * s.w, s.c, to, begin, end); });
  run(gate.squeeze, s.n, FASTNETS_FOR_THIS_CPU_AND(T, pointwise::multiply_tasks<T, T>));
  run(gate.excite, s.n, FASTNETS_FOR_THIS_CPU_AND(T, pointwise::multiply_tasks<T, T>));
}

// Of x in channels_last: the activation of x * scales + residual; `squeeze` are the tensors of check_gate, `into` and
// `channel` as in pointwise_conv2d.
Tensor squeeze_excitation(const Tensor& x, const std::vector<Tensor>& squeeze,
                          const std::optional<Text>& squeeze_activation, bool hard,
                          const std::optional<Tensor>& residual, const std::optional<Text>& activation,
                          const std::optional<Tensor>& into, int64_t channel) {
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    check_images<T>(x);
    const Four s = sizes_of(x);
    const auto gate = squeeze::check_gate<T>(squeeze, squeeze_activation, hard, s.c);
    STD_TORCH_CHECK(gate.is_there() && gate.excite.out == s.c, "expected squeeze and excitation of ", s.c, " channels");
    const Results<T> y(x, s, into, channel);
    squeeze::Scaling<T> p;
    p.residual = check_residual<T>(residual, s), p.activation = parse_activation(activation);
    if (x.numel() == 0) return y.images;
    const StepScratch scales(x, s.n * s.c);
    excite(gate, x, scales.data<T>());
    p.x = {data<T>(x), s.c}, p.y = y.pixels, p.scales = scales.data<T>(), p.hard = hard;
    p.channels = s.c, p.image_pixels = s.h * s.w;
    run(s.n * s.h * s.w, x.numel(),
        [p, kernel = FASTNETS_FOR_THIS_CPU_AND(T, squeeze::scale<T>)](int64_t begin, int64_t end) {
          kernel(p, begin, end);
        });
    return y.images;
  });
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("squeeze_excitation", TORCH_BOX(&fastnets::squeeze_excitation));
}
