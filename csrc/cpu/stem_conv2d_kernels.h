// A dense convolution of few input channels, the first of a network. Included by isa.h: no guard.
//
// In channels_last the kw * c numbers under one kernel row lie side by side, and those of the next output pixel
// stride * c further on: the convolution is the product of pointwise_conv2d_tile.h over pixels that overlap, its panels
// the kernel's rows. So that there is no border, rows are copied between zeros first, as each row of the result needs
// them; the copies, which are float32, stay in the first-level cache. Of an image in planes, rows of all are
// interleaved on the way. A task is a row of the result. Moves the bytes of (kh / stride * x + y).
#include "interleave.h"
#include "pointwise_conv2d_tile.h"

namespace fastnets::FASTNETS_ISA::stem {

// `count` pixels of G planes, each `plane` after the one before, to side by side.
template <int G, typename T>
void interleave_row(const T* x, int64_t plane, int64_t count, float* to) {
  using pointwise::L;
  int64_t i = 0;
  for (; i + L <= count; i += L, to += G * L) {
    Vec<float, L> v[G];
    for (int k = 0; k < G; ++k) v[k] = load<T, L>(x + k * plane + i);
    interleave<G, L>(v);
    for (int k = 0; k < G; ++k) store<float, L>(to + k * L, v[k]);
  }
  for (; i < count; ++i)
    for (int k = 0; k < G; ++k) *to++ = static_cast<float>(x[k * plane + i]);
}

template <typename T>
void copy_row(const fastnets::stem::Problem<T>& p, int64_t image, int64_t row, float* to) {
  const Convolution& g = p.g;
  const int64_t plane = g.h * g.w, count = g.w * g.c;
  const T* const x = p.x + image * plane * g.c + row * (p.in_planes ? g.w : count);
  if (!p.in_planes) {
    std::copy_n(x, count, to);
    return;
  }
  switch (g.c) {
    case 2:
      return interleave_row<2>(x, plane, g.w, to);
    case 3:
      return interleave_row<3>(x, plane, g.w, to);
    case 4:
      return interleave_row<4>(x, plane, g.w, to);
    default:
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(x[i % g.c * plane + i / g.c]);
  }
}

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
        copy_row(p, image, first + i, to);
    }
    product.x = {padded.get(), g.sw * g.c, width, g.kw * g.c};
    product.y.data = p.product.y.data + task * g.ow * product.y.pixel;
    for (int64_t panel = 0; panel < product.panels(); ++panel) pointwise::multiply(product, {0, g.ow}, panel);
  }
}

}  // namespace fastnets::FASTNETS_ISA::stem
