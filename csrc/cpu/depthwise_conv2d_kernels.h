// The kernels of depthwise_conv2d by type and layout. Included by isa.h: no guard.
#include "activate.h"
#include "batch_moments_kernels.h"
#include "batch_norm_rows.h"
#include "transpose.h"
// Above: what those below are written with.
#include "depthwise_conv2d_channels_last.h"
#if !defined(FASTNETS_BF16)  // there, only channels_last
#include "depthwise_conv2d_planar.h"
#include "depthwise_conv2d_rows.h"

namespace fastnets::FASTNETS_ISA {

template <typename T>
depthwise::Kernels depthwise_kernels_of(const depthwise::Problem& p) {
  if (p.layout == depthwise::Layout::kChannelsLast) return channels_last::kernels<T>();
  if constexpr (!std::is_same_v<T, double>)
    if (p.by_rows()) return rows::kernels<T>(p);
  return planar::kernels<T>();
}

inline depthwise::Lanes depthwise_lanes(ScalarType type) {
  if (type == ScalarType::Double) return {kLanes<double>, 0};
  return {kLanes<float>, type == ScalarType::Float ? rows::kPixelStride<float> : rows::kPixelStride<BFloat16>};
}

inline depthwise::Kernels depthwise_kernels(ScalarType type, const depthwise::Problem& p) {
  switch (type) {
    case ScalarType::Float:
      return depthwise_kernels_of<float>(p);
    case ScalarType::Double:
      return depthwise_kernels_of<double>(p);
    case ScalarType::BFloat16:
      return depthwise_kernels_of<BFloat16>(p);
    case ScalarType::Half:
      return depthwise_kernels_of<Half>(p);
    default:
      STD_TORCH_CHECK(false, "depthwise_conv2d takes float32, float64, bfloat16 and float16");
  }
}

}  // namespace fastnets::FASTNETS_ISA
#endif
