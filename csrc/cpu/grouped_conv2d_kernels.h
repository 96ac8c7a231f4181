// The kernels of grouped_conv2d by type. Included by isa.h: no guard.
#include "pointwise_conv2d_multiply.h"
#include "transpose.h"
// Above: what those below are written with.
#include "grouped_conv2d_strip.h"
// Above: strips.
#include "grouped_conv2d_correlate.h"
#include "grouped_conv2d_dots.h"
// Above: dots.
#include "grouped_conv2d_multiply.h"
// Above: permutations.
#include "grouped_conv2d_weight.h"

#if !defined(FASTNETS_BF16)  // there, only `correlate`
namespace fastnets::FASTNETS_ISA {

template <typename T>
fastnets::grouped::Kernels grouped_kernels_of() {
  // The instruction sets that permute a whole vector do so for float.
  constexpr bool permutes = FASTNETS_VECTOR_BYTES > 16 && std::is_same_v<Sum<T>, float>;
  return {kLanes<Sum<T>>,
          permutes,
          &grouped::correlate<T>,
          nullptr,
          std::is_same_v<T, float> ? &grouped::multiply : nullptr,
          &grouped::weight_gradient<T>};
}

inline fastnets::grouped::Kernels grouped_kernels(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return grouped_kernels_of<float>();
    case ScalarType::Double:
      return grouped_kernels_of<double>();
    case ScalarType::BFloat16:
      return grouped_kernels_of<BFloat16>();
    case ScalarType::Half:
      return grouped_kernels_of<Half>();
    default:
      STD_TORCH_CHECK(false, "grouped_conv2d takes float32, float64, bfloat16 and float16");
  }
}

}  // namespace fastnets::FASTNETS_ISA
#endif
