// A dense convolution of few input channels, the first of a network. Included by isa.h: no guard.
//
// In channels_last the kw * c numbers under one kernel row lie side by side, and those of the next output pixel
// stride * c further on: the convolution is the product of pointwise_conv2d_tile.h over pixels that overlap, its panels
// the kernel's rows. So that there is no border, rows are copied between zeros first, as each row of the result needs
// them; the copies, which are float32, stay in the first-level cache. A task is a row of the result. Moves the bytes of
// (kh / stride * x + y).
#include "pointwise_conv2d_tile.h"

namespace fastnets::FASTNETS_ISA::stem {

template <typename T>
void forward(const fastnets::stem::Problem<T>& p, int64_t begin, int64_t end) {
  const Convolution& g = p.g;
  const int64_t width = (g.w + 2 * g.pw) * g.c, row = g.w * g.c;
  const std::unique_ptr<float[]> padded(new float[g.kh * width]());
  fastnets::pointwise::ProblemOf<float, T> product = p.product;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / g.oh, first = task % g.oh * g.sh - g.ph;
    for (int64_t i = 0; i < g.kh; ++i) {
      float* const to = padded.get() + i * width + g.pw * g.c;
      if (first + i < 0 || first + i >= g.h)
        std::fill(to, to + row, 0.0f);
      else
        std::copy_n(p.x + (image * g.h + first + i) * row, row, to);
    }
    product.x = {padded.get(), g.sw * g.c, width, g.kw * g.c};
    product.y.data = p.product.y.data + task * g.ow * product.y.pixel;
    for (int64_t panel = 0; panel < product.panels(); ++panel) pointwise::multiply(product, {0, g.ow}, panel);
  }
}

}  // namespace fastnets::FASTNETS_ISA::stem
