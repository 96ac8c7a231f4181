// The sum of two images, each perhaps some channels of a larger one, and its activation. Included by isa.h: no guard.
//
// Lanes are channels, a task is a pixel. Moves the bytes of both and of the result.
#include "activate.h"

namespace fastnets::FASTNETS_ISA::images {

template <typename T>
void add(const fastnets::images::Sum<T>& p, int64_t begin, int64_t end) {
  constexpr int L = kLanes<float>;
  const Activate<float> activate(p.activation);
  for (int64_t i = begin; i < end; ++i) {
    const T *const a = p.a.data + i * p.a.pixel, *const b = p.b.data + i * p.b.pixel;
    T* const y = p.y.data + i * p.y.pixel;
    for (int64_t c = 0; c < p.channels; c += L) {
      const int64_t left = p.channels - c;
      Vec<float, L> sum[1] = {load_first<T, L>(a + c, left) + load_first<T, L>(b + c, left)};
      activate.template operator()<L, 1>(sum);
      store_first<T, L>(y + c, sum[0], left);
    }
  }
}

}  // namespace fastnets::FASTNETS_ISA::images
