// Images whose channels are scaled, with a residual and an activation in the store. Included by isa.h: no guard.
//
// Lanes are channels, a task is a pixel. Moves the bytes of x, of the residual and of y; the means that the scales are
// made of took those of x once before, which is in a cache where it is no larger than that.
#include "pooled_linear_kernels.h"
#include "squeeze_excitation_scales.h"

namespace fastnets::FASTNETS_ISA::squeeze {

template <typename T>
void scale(const fastnets::squeeze::Scaling<T>& p, int64_t begin, int64_t end) {
  const Activate<float> activate(p.activation);
  for (int64_t i = begin; i < end; ++i) {
    const T *const x = p.x.data + i * p.x.pixel, *const scales = p.scales + i / p.image_pixels * p.channels;
    const T* const residual = p.residual.data ? p.residual.data + i * p.residual.pixel : nullptr;
    T* const y = p.y.data + i * p.y.pixel;
    for (int64_t c = 0; c < p.channels; c += L) {
      const int64_t left = p.channels - c;
      Vec<float, L> z[1] = {load_first<T, L>(x + c, left) * scales_of(scales + c, left, p.hard)};
      if (residual) z[0] += load_first<T, L>(residual + c, left);
      activate.template operator()<L, 1>(z);
      store_first<T, L>(y + c, z[0], left);
    }
  }
}

}  // namespace fastnets::FASTNETS_ISA::squeeze
