// The mean of each channel over its pixels, for the product that follows. Included by isa.h: no guard.
//
// Lanes are channels. A task is two vectors of channels of an image, whose pixels are added one after the other. Moves
// the bytes of x.
#include "levels_kernels.h"
#include "pointwise_conv2d_multiply.h"

namespace fastnets::FASTNETS_ISA::pooled {

using pointwise::L;

// Of [pixel][channels], the means of `count` channels, at most two vectors of them.
template <typename T>
void mean(const T* x, int64_t pixels, int64_t channels, int64_t count, T* y) {
  Vec<float, L> low{}, high{};
  for (int64_t i = 0; i < pixels; ++i, x += channels) {
    low += load_first<T, L>(x, count);
    if (count > L) high += load_first<T, L>(x + L, count - L);
  }
  store_first<T, L>(y, low / static_cast<float>(pixels), count);
  if (count > L) store_first<T, L>(y + L, high / static_cast<float>(pixels), count - L);
}

// Tasks: images times pairs of vectors.
template <typename T>
void means(const T* x, int64_t pixels, int64_t channels, T* y, int64_t begin, int64_t end) {
  const int64_t pairs = ceil_div(channels, 2 * L);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / pairs, c = task % pairs * 2 * L;
    mean(x + image * pixels * channels + c, pixels, channels, std::min<int64_t>(2 * L, channels - c),
         y + image * channels + c);
  }
}

inline int64_t tasks(int64_t images, int64_t channels) { return images * ceil_div(channels, 2 * L); }

}  // namespace fastnets::FASTNETS_ISA::pooled
