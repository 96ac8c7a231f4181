// The kernels of depthwise_conv2d by type and layout. Included by isa.h: no guard.
#include "activate.h"
// Above: what the two below are written with.
#include "depthwise_conv2d_channels_last.h"
#include "depthwise_conv2d_planar.h"

namespace fastnets::FASTNETS_ISA {

template <typename T>
depthwise::Kernels depthwise_kernels_of(bool channels_last, int64_t channels) {
  return channels_last ? channels_last::kernels<T>(channels) : planar::kernels<T>();
}

inline depthwise::Kernels depthwise_kernels(ScalarType type, bool channels_last, int64_t channels) {
  switch (type) {
    case ScalarType::Float:
      return depthwise_kernels_of<float>(channels_last, channels);
    case ScalarType::Double:
      return depthwise_kernels_of<double>(channels_last, channels);
    case ScalarType::BFloat16:
      return depthwise_kernels_of<BFloat16>(channels_last, channels);
    case ScalarType::Half:
      return depthwise_kernels_of<Half>(channels_last, channels);
    default:
      STD_TORCH_CHECK(false, "depthwise_conv2d takes float32, float64, bfloat16 and float16");
  }
}

}  // namespace fastnets::FASTNETS_ISA
