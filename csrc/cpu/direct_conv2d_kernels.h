// A dense convolution as the product of pointwise_conv2d_tile.h. Included by isa.h: no guard.
//
// In channels_last the kw * c numbers under one kernel row lie side by side, and those of the next output pixel
// stride * c further on: pixels of the product overlap, and its panels are the kernel's rows. So that there is no
// border, the rows that a row of the result needs are copied between zeros first, of an image in planes interleaved on
// the way; the copies stay in the first-level cache. A task is a panel of a row of the result. Moves the bytes of
// (kh / stride * x + y), and of the weights for each row of y, from the second-level cache as long as they fit there.
#include "interleave.h"
#include "pointwise_conv2d_tile.h"

namespace fastnets::FASTNETS_ISA::direct {

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

template <typename X, typename T>
void copy_row(const fastnets::direct::Problem<X, T>& p, int64_t image, int64_t row, X* to) {
  const Convolution& g = p.g;
  const int64_t plane = g.h * g.w, count = g.w * g.c;
  const T* const x = p.x + image * plane * g.c + row * (p.in_planes ? g.w : count);
  if (!p.in_planes) {
    std::copy_n(x, count, to);
    return;
  }
  if constexpr (std::is_same_v<X, float>) {
    if (g.c == 2) return interleave_row<2>(x, plane, g.w, to);
    if (g.c == 3) return interleave_row<3>(x, plane, g.w, to);
    if (g.c == 4) return interleave_row<4>(x, plane, g.w, to);
  }
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<X>(x[i % g.c * plane + i / g.c]);
}

template <typename X, typename T>
void convolve(const fastnets::direct::Problem<X, T>& p, int64_t begin, int64_t end) {
  const Convolution& g = p.g;
  const int64_t width = (g.w + 2 * g.pw) * g.c, row = g.w * g.c;
  const std::unique_ptr<X[]> padded(new X[g.kh * width]());
  fastnets::pointwise::ProblemOf<X, T> product = p.product;
  product.x = {padded.get(), g.sw * g.c, width, g.kw * g.c};
  const int64_t panels = product.panels();
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / panels / g.oh, first = task / panels % g.oh * g.sh - g.ph;
    for (int64_t i = 0; i < g.kh && (task == begin || task % panels == 0); ++i) {
      X* const to = padded.get() + i * width + g.pw * g.c;
      if (first + i < 0 || first + i >= g.h)
        std::fill(to, to + row, X(0));
      else
        copy_row(p, image, first + i, to);
    }
    product.y.data = p.product.y.data + task / panels * g.ow * product.y.pixel;
    pointwise::multiply(product, {0, g.ow}, task % panels);
  }
}

// Multiplied in float32.
template <typename T>
void forward(const fastnets::direct::Problem<float, T>& p, int64_t begin, int64_t end) {
  convolve(p, begin, end);
}

// Multiplied in the type of the images.
template <typename T>
void forward_as_it_is(const fastnets::direct::Problem<T, T>& p, int64_t begin, int64_t end) {
  convolve(p, begin, end);
}

}  // namespace fastnets::FASTNETS_ISA::direct
