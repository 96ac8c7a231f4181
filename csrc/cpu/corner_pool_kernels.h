// The kernels of corner_pool by type, layout and pass. Included by isa.h: no guard.
#include "corner_pool_number.h"
#include "transpose.h"
// Above: what the two below are written with.
#include "corner_pool_lanes.h"
#include "corner_pool_rows.h"

namespace fastnets::FASTNETS_ISA {

template <typename T>
corner::Kernel corner_pool_forward_kernel(bool one_lane, bool reverse, bool sum) {
  using namespace corner_pool;
  if (!one_lane) return sum ? &forward_lanes<T, true> : &forward_lanes<T, false>;
  if (reverse) return sum ? &forward_rows<T, true, true> : &forward_rows<T, true, false>;
  return sum ? &forward_rows<T, false, true> : &forward_rows<T, false, false>;
}

template <typename T>
corner::Kernel corner_pool_backward_kernel(bool one_lane, bool reverse, bool first) {
  using namespace corner_pool;
  if (!one_lane) return first ? &backward_lanes<T, true> : &backward_lanes<T, false>;
  if (reverse) return first ? &backward_rows<T, true, true> : &backward_rows<T, true, false>;
  return first ? &backward_rows<T, false, true> : &backward_rows<T, false, false>;
}

template <typename T>
corner::Kernel corner_pool_kernel_of(bool one_lane, bool reverse, corner::Pass pass) {
  using corner::Pass;
  if (pass == Pass::kForward || pass == Pass::kSum)
    return corner_pool_forward_kernel<T>(one_lane, reverse, pass == Pass::kSum);
  if constexpr (!std::is_integral_v<T>)
    return corner_pool_backward_kernel<T>(one_lane, reverse, pass == Pass::kBackwardFirst);
  STD_TORCH_CHECK(false, "integers have no gradient");
}

inline corner::Kernel corner_pool_kernel(ScalarType type, bool one_lane, bool reverse, corner::Pass pass) {
  switch (type) {
    case ScalarType::Float:
      return corner_pool_kernel_of<float>(one_lane, reverse, pass);
    case ScalarType::Double:
      return corner_pool_kernel_of<double>(one_lane, reverse, pass);
    case ScalarType::BFloat16:
      return corner_pool_kernel_of<BFloat16>(one_lane, reverse, pass);
    case ScalarType::Half:
      return corner_pool_kernel_of<Half>(one_lane, reverse, pass);
    case ScalarType::Bool:
    case ScalarType::Byte:
      return corner_pool_kernel_of<uint8_t>(one_lane, reverse, pass);
    case ScalarType::Char:
      return corner_pool_kernel_of<int8_t>(one_lane, reverse, pass);
    case ScalarType::Short:
      return corner_pool_kernel_of<int16_t>(one_lane, reverse, pass);
    case ScalarType::Int:
      return corner_pool_kernel_of<int32_t>(one_lane, reverse, pass);
    case ScalarType::Long:
      return corner_pool_kernel_of<int64_t>(one_lane, reverse, pass);
    default:
      STD_TORCH_CHECK(false, "corner_pool does not take this type");
  }
}

}  // namespace fastnets::FASTNETS_ISA
